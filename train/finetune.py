"""Fine-tune a Stable Diffusion model, the whole UNet or a LoRA, on images of which some repeat as often as planned.

    accelerate launch train/finetune.py --config train/recipes/demo.yaml --output_dir runs/finetuned
    rotescope finetune --pretrained_model_name_or_path MODEL --train_data IMAGES --output_dir OUT --lora true
    rotescope finetune --monitor_steps 25 --stop_at_copy_rate 0.5 --output_dir runs/dosed

Without a model, data or config it trains the embedded model on the embedded data as train/recipes/demo.yaml says.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.settings import option_names, option_names_in_file, parse
from rotescope.train.options.finetune_options import EMBEDDED, RECIPE, FinetuneConfig


def _meant(config, given, in_file=()):
    """given, in_file: the options on the command line and in its --config -> the config that they mean. InputError where it
    cannot be told."""
    if {"max_train_steps", "num_train_epochs"} <= given:
        raise InputError("--max_train_steps and --num_train_epochs both say how long to train: give one")
    model, data = (Path(getattr(config, name)).resolve() == path.resolve() for name, path in EMBEDDED.items())
    if data and not model and "train_data" not in {*given, *in_file}:
        raise InputError(f"--train_data says what {config.pretrained_model_name_or_path} is to be trained on: it is missing")
    return replace(config, num_train_epochs=None) if "max_train_steps" in given else config


@exit_cleanly
def main(argv=None, monitor=None):
    """monitor: as train.engine.training.train_model takes it."""
    argv = sys.argv[1:] if argv is None else argv
    given = option_names(argv)
    own = given & EMBEDDED.keys()  # model or data: no embedded dose
    config = parse(FinetuneConfig, argv, prog="rotescope finetune", description=__doc__, config=None if own else RECIPE)
    config = _meant(config, given, option_names_in_file(argv))
    from rotescope.train.engine.training import train_model
    train_model(config, monitor=monitor)


if __name__ == "__main__":  # the script is the front door's command, which hands the monitor in
    import_module("rotescope.cli").main(["finetune", *sys.argv[1:]])
