"""A training that is killed and resumed equals one that was not; a checkpoint is whole or absent."""
import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tiny import UNET, saved_pipeline, tiny_pipeline
from training import arguments, assert_same_state, config_of, in_process, largest_difference, weights

from rotescope.common.errors import InputError, RunError
from rotescope.train.checkpoints import resume
from rotescope.train.checkpoints.output_folder import RECORD, checkpoints, clear_work, durable_folder, result_folder
from rotescope.train.checkpoints.resume import STATE, flattened, unflattened
from rotescope.train.engine import sharding as sharded
from rotescope.train.engine import steps as loop
from rotescope.train.engine import training as module
from rotescope.train.engine.job import _megabytes
from rotescope.train.engine.sharding import rhythm
from rotescope.train.engine.steps import DenoisingLoss
from rotescope.train.engine.training import train_model
from rotescope.train.finetune import main
from rotescope.train.options.finetune_options import FinetuneConfig
from rotescope.train.tracking.validation import accelerator_of

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def killed_and_resumed(config, deaths):
    """Start again after each death until a run ends by itself -> how many died. Every checkpoint ever seen is whole."""
    died = 0
    for die in [*deaths, None]:
        process = in_process(config, die=die)
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        died += process.exitcode != 0
        for folder in checkpoints(config.output_dir):
            assert load_file(folder / STATE)
            assert json.loads((folder / RECORD).read_text())["step"] == int(folder.name.split("-")[1])
            assert UNet2DConditionModel.from_pretrained(folder / "unet")
        if process.exitcode == 0:
            return died
    return died


def deaths(n, seed=0):
    """n random moments: half of them in saving, half soon after some step."""
    rng = random.Random(seed)
    return [("line", rng.randint(1, 120)) if i % 2 else ("step", rng.randint(1, 3), rng.uniform(0, 0.02)) for i in range(n)]


def compare_with_uninterrupted(base, images, tmp_path, kills, steps, **changes):
    config = config_of(base, images, tmp_path / "killed", max_train_steps=steps, checkpointing_steps=2, use_ema=True,
                       checkpoints_total_limit=2, resume_from_checkpoint="latest", lr_scheduler="cosine", lr_warmup_steps=2,
                       **changes)
    whole = in_process(replace(config, output_dir=str(tmp_path / "whole")))
    died = killed_and_resumed(config, deaths(kills))
    whole.join(120)
    assert whole.exitcode == 0
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0
    ours, theirs = checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "killed")
    assert [c.name for c in ours] == [c.name for c in theirs] == [f"checkpoint-{steps - 2}", f"checkpoint-{steps}"]
    for one, other in zip(ours, theirs, strict=True):
        assert_same_state(one, other)
    records = [json.loads((tmp_path / name / "rotescope.json").read_text()) for name in ("whole", "killed")]
    assert records[0]["losses"] == records[1]["losses"]
    assert not [p for p in (tmp_path / "killed").iterdir() if p.name.startswith(".")]
    return died


@pytest.mark.slow
def test_killed_a_few_times_it_ends_as_if_it_had_not_been(base, images, tmp_path):
    assert compare_with_uninterrupted(base, images, tmp_path, kills=4, steps=12) >= 3


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_if_it_had_not_been(base, images, tmp_path):
    assert compare_with_uninterrupted(base, images, tmp_path, kills=24, steps=60) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("file", [UNET_FILE, STATE])
def test_killed_within_the_write_of_a_file_the_checkpoint_before_is_the_latest(base, images, tmp_path, file):
    """Half the bytes of the second checkpoint's weights, or of its state, are on the disk: nobody takes it for a checkpoint."""
    config = config_of(base, images, tmp_path / "out", max_train_steps=2, checkpointing_steps=1, resume_from_checkpoint="latest")
    out, whole = tmp_path / "out", tmp_path / "whole"
    processes = in_process(replace(config, output_dir=str(whole))), in_process(config, die=("file", 2, Path(file).name))
    assert [ended(p) for p in processes] == [0, -signal.SIGKILL]
    half, full = (folder / file for folder in (out / ".checkpoint-2.part", whole / "checkpoint-2"))
    assert half.read_bytes() == full.read_bytes()[:full.stat().st_size // 2]
    assert [c.name for c in checkpoints(out)] == ["checkpoint-1"]
    assert_same_state(out / "checkpoint-1", whole / "checkpoint-1")
    assert ended(in_process(config)) == 0
    assert largest_difference(weights(whole), weights(out)) == 0
    assert_same_state(out / "checkpoint-2", whole / "checkpoint-2")
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_dropout_is_drawn_by_the_seed(images, tmp_path):
    """In other processes, and in one that is killed within the write of its second checkpoint and resumed from its first."""
    pipe = tiny_pipeline()
    pipe.unet = UNet2DConditionModel(**UNET, dropout=0.3)
    pipe.unet.load_state_dict(tiny_pipeline().unet.state_dict())
    pipe.save_pretrained(tmp_path / "base")
    config = config_of(tmp_path / "base", images, tmp_path / "one", max_train_steps=4, checkpointing_steps=2,
                       resume_from_checkpoint="latest")
    one, killed = (replace(config, output_dir=str(tmp_path / name)) for name in ("one", "killed"))
    within = ("file", 4, Path(UNET_FILE).name)
    assert [ended(in_process(one)), ended(in_process(killed, die=within))] == [0, -signal.SIGKILL]
    assert [c.name for c in checkpoints(tmp_path / "killed")] == ["checkpoint-2"]
    half, full = (tmp_path / folder / UNET_FILE for folder in ("killed/.checkpoint-4.part", "one/checkpoint-4"))
    assert half.read_bytes() == full.read_bytes()[:full.stat().st_size // 2]
    assert_same_state(tmp_path / "one/checkpoint-2", tmp_path / "killed/checkpoint-2")
    assert ended(in_process(killed)) == 0
    assert_same_state(tmp_path / "one/checkpoint-4", tmp_path / "killed/checkpoint-4")
    assert not [p for p in (tmp_path / "killed").iterdir() if p.name.startswith(".")]


def ended(process):
    """-> its exit code."""
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("changes", [
    {"lora": True, "caption_perturbation": "caption_word_repetition", "caption_perturbation_probability": 0.5},
    {"use_ema": True, "gradient_accumulation_steps": 2, "random_flip": True, "mem_ratio": 1.0, "arr_ema_decay": 0.5}],
    ids=["lora", "ema"])
def test_goes_on_from_a_checkpoint_by_path(base, images, tmp_path, changes):
    config = config_of(base, images, tmp_path / "whole", checkpointing_steps=1, **changes)
    train_model(config, progress=False)
    train_model(replace(config, output_dir=str(tmp_path / "resumed"),
                        resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3")), progress=False)
    assert_same_state(tmp_path / "whole/checkpoint-5", tmp_path / "resumed/checkpoint-5")
    assert len(checkpoints(tmp_path / "resumed")) == 2


def test_a_run_keeps_its_newest_checkpoint_unasked(base, images, tmp_path, monkeypatch):
    """Every 500 steps, here 2: one, as long as nobody says how many; none if that is asked, or where weights lie in shards."""
    assert rhythm(Accelerator(), FinetuneConfig()) == (500, 1)
    monkeypatch.setattr(sharded, "USUAL_STEPS", 2)
    config = config_of(base, images, tmp_path / "out")
    for changes, kept in (({}, ["checkpoint-4"]), ({"checkpoints_total_limit": 2}, ["checkpoint-2", "checkpoint-4"]),
                          ({"checkpointing_steps": 0}, [])):
        train_model(replace(config, overwrite=True, **changes), progress=False)
        assert [c.name for c in checkpoints(tmp_path / "out")] == kept
    assert rhythm(SimpleNamespace(distributed_type=DistributedType.FSDP), config)[0] == 0


def test_room_for_two_checkpoints_is_part_of_what_a_whole_model_needs():
    """Of 4 bytes a weight and 8 of AdamW's, 4 more of the moving average; none in a run that is shorter than 500 steps."""
    pipe = tiny_pipeline()
    weights = pipe.unet.num_parameters()
    short, long = FinetuneConfig(max_train_steps=499), FinetuneConfig(max_train_steps=500)
    sizes = [_megabytes(pipe, config) for config in (short, long, replace(long, use_ema=True), replace(long, lora=True))]
    assert [size - sizes[0] for size in sizes[1:3]] == pytest.approx([24 * weights / 1e6, 32 * weights / 1e6], abs=1)
    assert sizes[3] == 50


def test_a_checkpoint_loads_in_a_stock_pipeline(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "out", checkpointing_steps=5, lora=True)
    train_model(config, progress=False)
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(tmp_path / "out/checkpoint-5", weight_name="pytorch_lora_weights.safetensors")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".safetensors"] == ["pytorch_lora_weights.safetensors"]


def test_the_average_is_what_diffusers_average_is(base, images, tmp_path):
    """By hand from the weights after each step: decay 0.5 once (1 + step) / (10 + step) exceeds it, the lesser before."""
    config = config_of(base, images, tmp_path / "out", checkpointing_steps=1, use_ema=True, ema_decay=0.15)
    average = weights(base)
    train_model(config, progress=False)
    for step in range(1, 6):
        decay = min(0.15, step / (9 + step)) if step > 1 else 0.0
        now = weights(tmp_path / f"out/checkpoint-{step}")
        average = {k: decay * average[k] + (1 - decay) * now[k] for k in now}
    assert largest_difference(average, weights(tmp_path / "out")) < 1e-6
    assert largest_difference(now, weights(tmp_path / "out")) > 1e-5


def test_a_run_that_resumes_before_other_checkpoints_replaces_them_once_it_has_its_own(base, images, tmp_path):
    """The learning rate is another, so is the history: "latest" is never a mixture of the two."""
    config = config_of(base, images, tmp_path / "out", max_train_steps=3, checkpointing_steps=1)
    first = weights(train_model(config, progress=False))
    again = replace(config, resume_from_checkpoint="checkpoint-1", overwrite=True, learning_rate=5e-3, checkpoints_total_limit=2)

    def there():
        return [int(c.name.split("-")[1]) for c in checkpoints(tmp_path / "out")]
    seen = {}
    with pytest.raises(KeyError):  # stopped before it has a checkpoint of its own, it has cost nothing
        train_model(again, on_step={}.__getitem__, progress=False)
    assert there() == [1, 2, 3]
    train_model(again, on_step=lambda result: seen.update({result.step: there()}), progress=False)
    assert (seen, there()) == ({2: [1, 2, 3], 3: [1, 2]}, [2, 3])
    assert largest_difference(first, weights(tmp_path / "out/checkpoint-3")) > 1e-4
    again = replace(again, resume_from_checkpoint="checkpoint-2", checkpointing_steps=9)
    train_model(again, progress=False)  # ends without one of its own
    assert there() == [2]


def test_nothing_to_resume_starts_anew_and_an_unfinished_run_is_not_overwritten_unasked(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "out", checkpointing_steps=2, resume_from_checkpoint="latest")
    train_model(config, progress=False)
    (tmp_path / "out/rotescope.json").unlink()
    with pytest.raises(InputError, match="holds an unfinished run: go on with --resume_from_checkpoint latest"):
        train_model(replace(config, resume_from_checkpoint=None), progress=False)
    train_model(replace(config, resume_from_checkpoint=None, overwrite=True, checkpointing_steps=5), progress=False)
    assert [c.name for c in checkpoints(tmp_path / "out")] == ["checkpoint-5"]
    assert (tmp_path / "out/rotescope.json").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"resume_from_checkpoint": "checkpoint-9"}, "no checkpoint at checkpoint-9"),
    ({"seed": 1}, "its --seed is 0, this one's 1"), ({"train_batch_size": 2}, "its global batch is 4, this one's 2"),
    ({"copies": 2}, "its data is"), ({"lora": True}, "its --lora is False, this one's True"),
    ({"hard_threshold": 3.0}, "its --hard_threshold is None, this one's 3.0"), ({"snr_gamma": 5.0}, "its --snr_gamma is None")])
def test_another_runs_checkpoint_is_bad_input(base, images, tmp_path, changes, message):
    config = config_of(base, images, tmp_path / "out", max_train_steps=1, checkpointing_steps=1)
    train_model(config, progress=False)
    other = {"output_dir": str(tmp_path / "other"), "resume_from_checkpoint": str(tmp_path / "out/checkpoint-1"), **changes}
    with pytest.raises(InputError, match=message):
        train_model(replace(config, **other), progress=False)
    assert not (tmp_path / "other").exists()


def test_what_a_start_changed_is_on_record_and_the_end_is_not_before_the_checkpoint(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "out", max_train_steps=2, checkpointing_steps=2)
    train_model(config, progress=False)
    resumed = replace(config, output_dir=str(tmp_path / "on"), resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    train_model(replace(resumed, max_train_steps=3, learning_rate=1e-3), progress=False)
    first, second = json.loads((tmp_path / "on/rotescope.json").read_text())["starts"]
    assert (first, second["step"]) == ({"step": 0}, 2)
    assert second["changed"] == {"output_dir": [config.output_dir, resumed.output_dir], "learning_rate": [1e-2, 1e-3],
                                 "max_train_steps": [2, 3], "resume_from_checkpoint": [None, resumed.resume_from_checkpoint]}
    with pytest.raises(InputError, match="is of step 2, and this run ends after 1: train longer"):
        train_model(replace(resumed, max_train_steps=1, overwrite=True), progress=False)


def test_a_checkpoint_of_another_model_is_bad_input(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "out", max_train_steps=1, checkpointing_steps=1)
    train_model(config, progress=False)
    other = {"pretrained_model_name_or_path": str(saved_pipeline(tmp_path / "base", "v_prediction")),
             "output_dir": str(tmp_path / "other"), "resume_from_checkpoint": str(tmp_path / "out/checkpoint-1")}
    with pytest.raises(InputError, match="checkpoint-1 is of another run: its model is"):
        train_model(replace(config, **other), progress=False)
    assert not (tmp_path / "other").exists()


def scaled(config, scale=4.0):
    """What fp16 has on a GPU beside its arithmetic: torch's own gradient scaler, which doubles its scale every other step."""
    def with_scaler(config, *_):
        accelerator = accelerator_of(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        return accelerator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "accelerator_of", with_scaler)
        return train_model(config, progress=False)


def test_a_gradient_scaler_goes_on_where_it_was_and_nowhere_else(base, images, tmp_path, capsys):
    config = config_of(base, images, tmp_path / "half", max_train_steps=4, checkpointing_steps=2)
    scaled(config)
    other = replace(config, output_dir=str(tmp_path / "other"), resume_from_checkpoint=str(tmp_path / "half/checkpoint-2"))
    scaled(other)
    assert json.loads((tmp_path / "other/checkpoint-4" / RECORD).read_text())["rest"]["scaler/scale"] == 16.0  # after 2 and 4
    assert_same_state(tmp_path / "half/checkpoint-4", tmp_path / "other/checkpoint-4")
    whole = train_model(replace(config, output_dir=str(tmp_path / "whole"), max_train_steps=2), progress=False)
    with pytest.raises(InputError, match="checkpoint-2 is of a run that was not in fp16 .*: pass the --mixed_precision"):
        scaled(replace(other, resume_from_checkpoint=str(whole / "checkpoint-2"), overwrite=True))
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(arguments(replace(other, overwrite=True)))
    assert left.value.code == 2
    assert "checkpoint-2 is of a run in fp16, whose gradient scaler it keeps, and this one has" in capsys.readouterr().err


def test_gradients_that_overflow_for_ever_stop_the_run(base, images, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "OVERFLOWS", 3)
    with pytest.raises(RunError, match="overflowed in fp16 in 3 steps in a row, up to step 3, learning rate 0.01"):
        scaled(config_of(base, images, tmp_path / "out"), scale=float("inf"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_loses_nothing(base, images, tmp_path, monkeypatch, capsys):
    """The second checkpoint meets it: one line; what was saved stays whole, and the run goes on from there as if nothing were."""
    config = config_of(base, images, tmp_path / "out", checkpointing_steps=2)
    whole = weights(train_model(replace(config, output_dir=str(tmp_path / "whole")), progress=False))
    written, save_file = [], resume.save_file

    def save(tensors, file):
        written.append(file)
        if len(written) < 2:
            save_file(tensors, file)
        else:
            Path("/dev/full").write_bytes(b"state")
    monkeypatch.setattr(resume, "save_file", save)
    with pytest.raises(SystemExit) as left:
        main(arguments(config))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (left.value.code, len(lines)) == (3, 1)
    assert "the disk is full: free some space" in lines[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    assert largest_difference(whole, weights(train_model(replace(config, resume_from_checkpoint="latest"), progress=False))) == 0


@pytest.mark.parametrize("file", [STATE, RECORD, "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_checkpoint_is_bad_input(base, images, tmp_path, file):
    config = config_of(base, images, tmp_path / "out", max_train_steps=1, checkpointing_steps=1)
    train_model(config, progress=False)
    damaged = tmp_path / "out/checkpoint-1" / file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(InputError, match="checkpoint-1 cannot be read"):
        train_model(replace(config, output_dir=str(tmp_path / "other"),
                            resume_from_checkpoint=str(tmp_path / "out/checkpoint-1")), progress=False)


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(base, images, tmp_path, monkeypatch):
    """From the fourth step on the model is asked about images that are no numbers."""
    steps, loss = [], DenoisingLoss.__call__
    monkeypatch.setattr(DenoisingLoss, "__call__",
                        lambda self, *args: loss(self, *args) * (torch.nan if len(steps) >= 3 else 1))
    config = config_of(base, images, tmp_path / "out", checkpointing_steps=2)
    with pytest.raises(RunError, match=r"the loss is nan at step 4, learning rate 0.01: .*checkpoint-2 is the last good"):
        train_model(config, on_step=steps.append, progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
    assert all(w.isfinite().all() for w in weights(tmp_path / "out/checkpoint-2").values())


def test_trees_are_flattened_and_rebuilt():
    tree = {"a": {"b": torch.ones(2), "c": {"d": 3, "e": torch.zeros(1)}}, "f": None}
    tensors, rest = flattened(tree)
    assert (sorted(tensors), rest) == (["a/b", "a/c/e"], {"a/c/d": 3, "f": None})
    again = unflattened(tensors, rest)
    assert again["a"]["c"]["d"] == 3
    assert torch.equal(again["a"]["b"], torch.ones(2))


def test_a_folder_is_whole_or_absent(tmp_path):
    def broken():
        with durable_folder(tmp_path / "checkpoint-1") as folder:
            (folder / "half").touch()
            raise KeyError
    with pytest.raises(KeyError):
        broken()
    assert not list(tmp_path.iterdir())
    for content in ("first", "second"):
        with durable_folder(tmp_path / "checkpoint-1") as folder:
            (folder / content).touch()
    assert [p.name for p in (tmp_path / "checkpoint-1").iterdir()] == ["second"]
    (tmp_path / "mine").touch()
    with result_folder(tmp_path, overwrite=False) as folder:
        (folder / "rotescope.json").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "mine", "rotescope.json"]
    clear_work(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "rotescope.json"]
