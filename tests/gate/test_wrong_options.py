"""Whatever is wrong with an option ends in one line and exit code 2; nothing a user types ends in a traceback."""
import random
import shutil
from dataclasses import fields

import pytest
import torch
from instruments import leave, samples_folder, training_set
from tiny import tiny_pipeline
from tiny_runs import images as latents_of

from rotescope import cli
from rotescope.common.errors import InputError
from rotescope.common.options import check_seeds
from rotescope.datasets.preflight import PreflightConfig
from rotescope.datasets.prepare import PrepareConfig
from rotescope.evaluate.options import IndexConfig, ScoreConfig
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.detectors.options import DetectConfig
from rotescope.mitigate.sampling.options import CalibrateConfig, GenerateConfig
from rotescope.models.pipelines import chosen_device
from rotescope.options.audit import AuditConfig
from rotescope.options.retrigger import RetriggerConfig
from rotescope.train.options.finetune_options import FinetuneConfig

MODEL = {"--model": "m", "--device": "cpu"}
SHORT = {**MODEL, "--num_inference_steps": "1", "--seeds": "0"}
COMMANDS = {  # name -> its options, and what makes a run of it that takes a moment
    "prepare": (PrepareConfig, {"--train_data": "t", "--output_file": "o.parquet"}),
    "preflight": (PreflightConfig, {"--train_data": "t", "--output_dir": "o"}),
    "index": (IndexConfig, {"--train_data": "t", "--index_dir": "o"}),
    "score": (ScoreConfig, {"--generated": "s", "--train_data": "t", "--output_dir": "o", "--verify": "false"}),
    "generate": (GenerateConfig, {**SHORT, "--prompts": "p.txt", "--output_dir": "o"}),
    "calibrate": (CalibrateConfig, {**SHORT, "--prompts": "p.txt", "--output_file": "o.json", "--watch": "1"}),
    "detect": (DetectConfig, {**MODEL, "--prompts": "p.txt", "--output_dir": "o", "--detector": "magnitude:n=1,steps=1"}),
    "audit": (AuditConfig, {**SHORT, "--train_data": "t", "--output_dir": "o", "--base": "", "--max_prompts": "1",
                            "--verify": "false"}),
    "retrigger": (RetriggerConfig, {**SHORT, "--train_data": "t", "--output_dir": "o", "--search_steps": "1",
                                    "--max_images": "1", "--search_draws": "1"}),
    "finetune": (FinetuneConfig, {"--pretrained_model_name_or_path": "m", "--train_data": "t", "--output_dir": "o",
                                  "--max_train_steps": "1", "--train_batch_size": "1", "--resolution": "16"}),
}
WORDS = ["", "nothing", "-", "a/b/c", "\N{SNOWMAN}", "x.yaml", ":", "=", "[", "none", "auto", "t", "m", "p.txt"]
NUMBERS = ["-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "99999999999999999999999", "x", "null", "[1]", "true"]
DEAR = {"max_train_steps", "num_train_epochs", "push_to_hub", "hub_model_id", "hub_token", "report_to", "resolution",
        "empty_images", "batch_size", "num_inference_steps", "train_batch_size", "gradient_accumulation_steps",
        "copies", "search_steps", "search_draws", "rank", "use_8bit_adam", "mixed_precision", "model",
        "pretrained_model_name_or_path", "copy_threshold", "dataloader_num_workers", "num_validation_images",
        "paraphrases", "retrigger", "budget", "mix_ratio", "iterations"}


def cases(number):
    """(command, option, value), drawn from the commands' own options."""
    draw, found = random.Random(0), []
    every = [(command, f) for command, (config, _) in COMMANDS.items() for f in fields(config) if f.name not in DEAR]
    for command, f in draw.sample(every, min(number, len(every))):
        found.append((command, f.name, draw.choice(NUMBERS if "str" not in str(f.type) else WORDS)))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("place")
    (folder / "m").symlink_to(base)
    data = training_set(folder / "t", 4)
    samples_folder(folder / "s", data, lambda *_: True, seeds=(0,))
    (folder / "p.txt").write_text("a cat\n")
    return folder


@pytest.mark.parametrize(("command", "option", "value"), [
    *cases(60), *(pytest.param(*case, marks=pytest.mark.slow) for case in cases(400)[60:])])
def test_an_option_of_any_value_ends_in_one_line(command, option, value, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = COMMANDS[command][1] | {f"--{option}": value}
    code = leave(cli.main, [command, *(f"{name}={text}" for name, text in given.items())])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code in (0, 1, 2, 4)  # 1: a rule is broken, as it may be; 4: too little is there for a verdict
    assert (code == 2) == ("error: " in said)
    assert not list(place.glob(".*.lock"))
    for left in place.glob("o*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


# ----- each of these was a traceback, or worse, a run

@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "", "cuda:x", "0x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match=r"--device \S* ?is not there"):
        chosen_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["generate", "audit", "detect", "calibrate", "retrigger"])
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_no_command_takes_the_cpu_for_a_gpu(name, command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = COMMANDS[command][1] | {"--device": name}
    assert leave(cli.main, [command, *(f"{option}={text}" for option, text in given.items())]) == 2
    assert f"--device {name} is not there" in capsys.readouterr().err.splitlines()[-1]


def test_seeds_are_whole_numbers_that_a_table_holds():
    check_seeds([0, 2**63 - 1, None])
    for wrong in (-1, 0.5, 2**63):
        with pytest.raises(InputError, match="from 0 on"):
            check_seeds([1, wrong])


@pytest.mark.parametrize(("command", "option"), [
    ("generate", "seeds"), ("audit", "seeds"), ("detect", "seed"), ("retrigger", "search_seeds"), ("finetune", "seed"),
    ("finetune", "plan_seed"), ("prepare", "plan_seed"), ("demo", "seed"), ("dose", "train_seeds"), ("compare", "seeds"),
    ("figures", "seeds")])
def test_no_command_takes_a_negative_seed(command, option, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = (COMMANDS[command][1] if command in COMMANDS else {}) | {f"--{option}": "-1"}
    given |= {"--checkpoint": "m", "--output_dir": "o"} if command in ("compare", "figures") else {}
    assert leave(cli.main, [command, *(f"{name}={text}" for name, text in given.items())]) == 2
    assert f"{option} -1: give whole numbers from 0 on" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["dose", "demo"])
def test_no_training_steps_are_not_taken_for_the_recipes(command, tmp_path, capsys):
    assert leave(cli.main, [command, "--output_dir", tmp_path / "o", "--max_train_steps", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: max_train_steps=0: give 1 or more")


@pytest.mark.parametrize(("content", "said"), [
    (b"# Title\n\n- a: b\n* c\n", "is no YAML"), (bytes(range(256)), "is no YAML"), (b"- a\n- b\n", "holds no options"),
    (b"a sentence\n", "holds no options"), (b"\x89PNG\r\n\x1a\n", "is no YAML"), (b"key: [1\n", "is no YAML")])
@pytest.mark.parametrize("command", ["finetune", "audit", "generate"])
def test_a_config_that_is_no_yaml_of_options_is_one_line(command, content, said, tmp_path, capsys):
    (tmp_path / "notes.md").write_bytes(content)
    assert leave(cli.main, [command, "--config", tmp_path / "notes.md"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"error: --config {tmp_path}/notes.md {said}")


@pytest.mark.parametrize("name", ["none", "prompt-optimisation", "prompt-reanchoring", "noise-optimisation", "sharpness-step",
                                  "sharpness-aware-noise"])
def test_prompt_embeddings_without_negative_ones_are_completed_as_the_pipeline_does(name):
    pipe, noise = tiny_pipeline().to(torch.float64), {"rows": [0, 1]}
    cond, uncond = pipe.encode_prompt("a cat", "cpu", 2, True)
    lacking, whole = {"prompt_embeds": cond}, {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    with mitigated(pipe, name):
        one, other = (latents_of(pipe, None, **noise, **given) for given in (lacking, whole))
    assert torch.equal(one, other)


def test_negative_embeddings_and_texts_are_kept_beside_the_prompts():
    """Under a mitigation that embeds the prompts itself, as without one."""
    pipe = tiny_pipeline().to(torch.float64)
    _, uncond = pipe.encode_prompt("a cat", "cpu", 1, True, "a bus")
    with mitigated(pipe, "prompt-optimisation:target=1e9"):
        made = [latents_of(pipe, ["a cat"], rows=[0], **given) for given in (
            {"negative_prompt_embeds": uncond}, {"negative_prompt": ["a bus"]}, {"negative_prompt": "a bus"})]
        plain = latents_of(pipe, ["a cat"], rows=[0])
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], plain)
