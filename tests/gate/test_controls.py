"""Nothing passes that was not attached, drawn, compared with the right set, findable, and looked at enough."""
import json

import numpy as np
import pytest
import torch
from instruments import leave, noise, samples_folder, training_folder, training_set
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import image_folder, saved_pipeline, tiny_pipeline

from rotescope import cli, generate, score
from rotescope.common.errors import RunError
from rotescope.evaluate.measurement.drawn import empty_pictures, real_pictures
from rotescope.evaluate.verdict.controls import (
    AdapterEffect,
    Looked,
    SetEvidence,
    attached_control,
    drawn_control,
    enough_control,
    planted_control,
    right_set_control,
)
from rotescope.evaluate.verdict.rules import parse_rules

QUICK = ["--device", "cpu", "--num_inference_steps", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def controls_in(folder):
    """What report.json says of each control."""
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))["verdict"]["controls"]
    return {control["name"]: control for control in told}


# ----- each control by itself

@pytest.mark.parametrize(("control", "outcome", "says"), [
    (attached_control(AdapterEffect(0.12)), "passed", "by 12% of its size"),
    (attached_control(AdapterEffect(1e-4)), "undecided", "hardly at all"),
    (attached_control(AdapterEffect(float("nan"))), "undecided", "hardly at all"),
    (attached_control(AdapterEffect(0.12), equal=96, n=96), "undecided", "All 96 images are the base model's to the bit"),
    (attached_control(None, equal=95, n=96), "passed", "1 of 96 images differ"),
    (attached_control(), "absent", "nothing shows"),
    (drawn_control({}, 24), "passed", "24 of 24 images show something."),
    (drawn_control({"flat": 1}, 24, "a.png"), "passed", "23 of 24 images show something; 1 shows nothing."),
    (drawn_control({"flat": 1, "noise": 1}, 24, "a.png"), "undecided", "2 of 24 images show nothing (1 flat and 1 noise)"),
    (right_set_control(leaked=3), "passed", "The images of 3 prompts copy"),
    (right_set_control(own=0, of=48), "undecided", "of which 0 are in these training data: is it the right training set?"),
    (right_set_control(own=48, of=48), "absent", "Nothing is known of the model"),
    (right_set_control(SetEvidence("manifest", 12, 24)), "passed", "12 of 24 pictures"),
    (right_set_control(SetEvidence("manifest", 11, 24)), "undecided", "Name that manifest"),
    (right_set_control(SetEvidence("recall", 24, 24, 0.8, 0.001)), "passed", "80% of the pairs of 24 and 24 (p = 0.001)"),
    (right_set_control(SetEvidence("recall", 24, 24, 0.5, 0.5)), "undecided", "knows these pictures no better than others"),
    (right_set_control(SetEvidence("header", 24, 24)), "passed", "counts 24 training pictures, and these data hold 24."),
    (right_set_control(SetEvidence("header", 12, 24)), "undecided", "counts 12 training pictures, and these data hold 24"),
    (right_set_control(SetEvidence("trusted")), "passed", "on trust"),
    (right_set_control(SetEvidence("nothing")), "undecided", "--trust_train_data"),
    (planted_control(12, 24, ["flip"]), "passed", "finds 12 (50%)"),
    (planted_control(11, 24, ["flip"]), "undecided", "would miss most")], ids=lambda value: "")
def test_a_control_passes_or_says_what_to_do(control, outcome, says):
    assert (control.outcome, says in control.sentence) == (outcome, True), control.sentence
    assert control.sentence.endswith(".")


@pytest.mark.parametrize(("looked", "there", "null", "outcome", "says"), [
    (Looked(24, 96), 3000, None, "passed", "96 images of 24 prompts were looked at."),
    (Looked(1, 1), 3000, None, "undecided", "19 more prompts (at least 20); and 58 more images (at least 59; with 20 prompts"),
    (Looked(19, 96), 3000, None, "undecided", "It takes 1 more prompt (at least 20)."),
    (Looked(12, 48), 12, None, "undecided", "11 more images (at least 59; with 12 prompts that is 5 seeds)"),
    (Looked(12, 60), 12, None, "passed", "60 images of 12 prompts"),
    (Looked(59, 59, named=False), 3000, None, "passed", "59 images were looked at."),
    (Looked(24, 96), 3000, 1916, "undecided", "It takes 1,816 more held-out pictures")])
def test_enough_is_stated_in_prompts_images_and_null_pictures(looked, there, null, outcome, says):
    control = enough_control(parse_rules("leaked_prompts>0"), {"none": looked}, there, null, 100)
    assert (control.outcome, says in control.sentence) == (outcome, True), control.sentence


def test_null_pictures_are_asked_for_where_the_rule_needs_them():
    assert enough_control(parse_rules("copies>0"), {"none": Looked(24, 96)}, 3000, 1916, 100).outcome == "passed"


# ----- one image, or too few

@pytest.mark.parametrize(("given", "says"), [
    (["--max_prompts", "1", "--seeds", "0"], "1 image of 1 prompt was looked at. It takes 5 more prompts"),
    (["--seeds", "0", "1", "--verify", "false"], "12 images of 6 prompts were looked at. It takes 47 more images")])
def test_one_image_is_no_verdict(given, says, model, tmp_path, capsys):
    train = image_folder(tmp_path / "train")
    argv = ["audit", "--model", model, "--train_data", train, "--output_dir", tmp_path / "out", *QUICK, *given]
    assert leave(cli.main, [*argv, "--fail_on", "copies>0", "--junit_xml", tmp_path / "out/junit.xml"]) == 4
    assert controls_in(tmp_path / "out")["enough"]["sentence"].startswith(says)
    assert 'failures="0" skipped="1"' in (tmp_path / "out/junit.xml").read_text(encoding="utf-8").partition("</testsuite>")[0]
    assert "undecided by copies>0: Not decided" in capsys.readouterr().err


# ----- attached

@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    """A LoRA of the tiny model that changes it."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("lora")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


def with_weights(lora, folder, change):
    """The same LoRA with other weights -> its folder."""
    file = folder / "pytorch_lora_weights.safetensors"
    folder.mkdir()
    save_file({key: change(key, w).contiguous() for key, w in load_file(lora / file.name).items()}, file)
    return folder


@pytest.mark.parametrize("zero", ["lora_B", "lora_A", "lora"])
def test_a_lora_that_changes_nothing_is_refused_before_it_samples(zero, model, lora, tmp_path, capsys):
    argv = ["audit", "--model", model, "--lora", with_weights(lora, tmp_path / "none", lambda key, w: w * (zero not in key)),
            "--train_data", image_folder(tmp_path / "train"), "--output_dir", tmp_path / "out", *QUICK]
    assert leave(cli.main, argv) == 2
    assert "changes nothing: on one prompt and noise the output is that of" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("out*"))


def test_a_lora_that_hardly_changes_anything_is_told(model, lora, tmp_path):
    weak = with_weights(lora, tmp_path / "weak", lambda key, w: w * 1e-4 if "lora_B" in key else w)
    argv = ["audit", "--model", model, "--lora", weak, "--train_data", image_folder(tmp_path / "train", n=3), "--seeds", "0",
            "--output_dir", tmp_path / "out", "--verify", "false", *QUICK]
    assert leave(cli.main, argv) == 4
    attached = controls_in(tmp_path / "out")["attached"]
    assert (attached["outcome"], 0 < attached["figure"] < 1e-3) == ("undecided", True)


def test_images_that_are_those_of_the_base_are_told_in_memory_too(data, tmp_path):
    made = samples_folder(tmp_path / "made", data[:3], lambda *_: False, seeds=(0,))
    assert score(made, data, base_images=made, verify=False).verdict.controls[0].outcome == "undecided"
    held = [noise(0, i, 0) for i in range(3)]
    assert score(held, data, base_images=held, verify=False).verdict.controls[0].outcome == "undecided"
    assert score(held, data, base_images=held[::-1], verify=False).verdict.controls[0].figure == pytest.approx(2 / 3)


# ----- drawn

def test_black_flat_and_noise_are_told_from_pictures(data):
    rng = np.random.default_rng(0)
    white_noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    faint = Image.fromarray(rng.integers(126, 129, (64, 64, 3), dtype=np.uint8))
    undenoised = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256), Image.BICUBIC)
    shown = [Image.new("RGB", (64, 64)), Image.new("RGB", (300, 20), "teal"), faint, white_noise, undenoised,
             data[0].open(), data[0].open().resize((512, 512)), noise(1), Image.new("L", (1, 1)).convert("RGB")]
    found = empty_pictures([lambda p=p: p for p in shown], real_pictures([e.open for e in data]))
    assert found == ["flat", "flat", "flat", "noise", "noise", "", "", "", "flat"]
    assert not any(empty_pictures([e.open for e in data], real_pictures([e.open for e in data])))


def test_a_set_of_noise_calls_no_noise_empty():
    made = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in range(8)]
    openers = [lambda p=p: p for p in made]
    assert not any(empty_pictures(openers[4:], real_pictures(openers)))


def test_a_folder_of_black_images_does_not_pass(tmp_path, capsys):
    train = training_folder(tmp_path / "train", 12)
    (tmp_path / "made").mkdir()
    for i in range(60):
        Image.new("RGB", (64, 64), (i % 3, 0, 0)).save(tmp_path / f"made/{i}.png")
    argv = ["score", "--generated", tmp_path / "made", "--train_data", train, "--output_dir", tmp_path / "out", "--verify",
            "false", "--fail_on", "copies>0"]
    assert leave(cli.main, argv) == 4
    assert controls_in(tmp_path / "out")["drawn"]["sentence"].startswith("60 of 60 images show nothing (60 flat)")
    assert "the images show nothing" in json.loads(capsys.readouterr().out)["verdict"]["headline"]


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_images_without_numbers_are_a_failure_with_its_remedy(part, tmp_path, capsys):
    pipe = tiny_pipeline()
    weights = pipe.vae.decoder.conv_out if part == "vae" else pipe.unet.conv_out
    weights.bias.data[:] = float("nan")
    pipe.save_pretrained(tmp_path / "model")
    argv = ["audit", "--model", tmp_path / "model", "--train_data", image_folder(tmp_path / "train"), "--seeds", "0",
            "--output_dir", tmp_path / "out", *QUICK]
    assert leave(cli.main, argv) == 3
    assert "6 of 6 images came out of StableDiffusionPipeline without numbers (NaN)" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(RunError, match="bfloat16 overflows: pass --dtype fp32, or give the model a VAE"):
        list(generate(pipe.to(torch.bfloat16), ["a cat"], num_inference_steps=1))
