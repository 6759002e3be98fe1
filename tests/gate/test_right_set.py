"""Nothing passes against pictures that the model was not trained on."""
import json
import shutil

import pytest
import torch
from instruments import leave, noise, samples_folder, training_set
from safetensors.torch import save_file
from tiny import image_folder

from rotescope import cli
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.inputs.own_manifest import header_counts
from rotescope.evaluate.measurement.findings import score_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def told_in(folder):
    """What report.json says of the control."""
    controls = json.loads((folder / "report.json").read_text(encoding="utf-8"))["verdict"]["controls"]
    return next(control for control in controls if control["name"] == "the right set")


def right_set(report):
    return next(control for control in report.verdict.controls if control.name == "the right set")


def test_images_of_another_set_do_not_pass(data, tmp_path):
    """Of a run that wrote records: none of its training pictures is in these data."""
    others = training_set(tmp_path / "others", 60, seed=9)
    made = samples_folder(tmp_path / "made", data, lambda *_: True)
    report = score_samples(made, others, rule="copies>0", verify=False)
    assert (report.verdict.rules[0].outcome, report.verdict.outcome) == ("passed", "undecided")
    assert "captions of 40 training pictures, of which 0 are in these" in right_set(report).sentence
    assert right_set(score_samples(made, data, verify=False)).outcome == "passed"
    bare = score_samples(shutil.copytree(made / "none", tmp_path / "bare"), others, verify=False)
    assert right_set(bare).outcome == "absent"  # anyone's folder


@pytest.mark.parametrize("lora", [False, True])
def test_a_set_that_is_not_the_manifest_beside_the_model_does_not_pass(lora, data, tmp_path):
    """As where the samples were made from other prompts."""
    made, beside = samples_folder(tmp_path / "made", data, lambda *_: False, seeds=(0,)), tmp_path / "checkpoint"
    beside.mkdir()
    Manifest(data.examples[:30]).save(beside / "manifest.parquet")
    run = json.loads((made / "run.json").read_text())
    named = {"model": "some/base", "config": {"lora": str(beside)}} if lora else {"model": str(beside)}
    (made / "run.json").write_text(json.dumps(run | named))
    half = Manifest(data.examples[15:])
    assert "15 of 25 pictures are in the manifest" in right_set(score_samples(made, half, verify=False)).sentence
    other = Manifest(training_set(tmp_path / "others", 30, seed=9).examples + data.examples[35:])
    report = score_samples(made, other, verify=False, trust_train_data=False)
    assert (right_set(report).outcome, right_set(report).figure) == ("undecided", pytest.approx(5 / 40))


def test_what_an_audit_finds_of_the_set_is_kept_beside_its_samples(base, tmp_path):
    """Without a manifest beside the model its memory is tried, and without captioned held-out pictures nothing shows it."""
    train, held = image_folder(tmp_path / "train", n=8), image_folder(tmp_path / "held", n=16)
    for file in held.glob("[0-7].*"):
        file.unlink()
    for i in range(16, 24):
        noise(i, side=16).save(held / f"{i}.png")
        (held / f"{i}.txt").write_text(f"picture {i}")
    argv = ["audit", "--model", base, "--train_data", train, "--seeds", "0", "--verify", "false", "--device", "cpu",
            "--num_inference_steps", "1"]
    assert leave(cli.main, [*argv, "--heldout_data", held, "--output_dir", tmp_path / "known"]) == 4
    found = json.loads((tmp_path / "known/samples/run.json").read_text())["controls"]
    assert (found["adapter"], found["training_set"]["kind"]) == (None, "recall")
    assert (found["training_set"]["known"], found["training_set"]["of"]) == (8, 16)
    told = told_in(tmp_path / "known")
    assert told["outcome"] == ("passed" if found["training_set"]["p"] <= 0.05 else "undecided")
    assert leave(cli.main, ["score", "--generated", tmp_path / "known/samples", "--train_data", train, "--verify", "false",
                            "--output_dir", tmp_path / "again"]) == 4
    assert told_in(tmp_path / "again") == told
    assert leave(cli.main, [*argv, "--output_dir", tmp_path / "unknown"]) == 4
    assert "Nothing shows" in told_in(tmp_path / "unknown")["sentence"]
    assert leave(cli.main, [*argv, "--trust_train_data", "--output_dir", tmp_path / "trusted"]) == 4
    assert told_in(tmp_path / "trusted")["outcome"] == "passed"


@pytest.mark.parametrize(("header", "found"), [
    ({"10_cat": {"n_repeats": 10, "img_count": 5}, "1_dog": {"n_repeats": 1, "img_count": 3}}, 8), ({}, None), ([], None),
    ({"a": {}}, None), ({"a": {"img_count": "many"}}, None)])
def test_what_the_header_of_a_lora_counts_is_read(header, found, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"ss_dataset_dirs": json.dumps(header)})
    counts = header_counts(tmp_path / "a.safetensors")
    assert (counts and counts[0]) == found
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert header_counts(tmp_path / "b.safetensors") is None
