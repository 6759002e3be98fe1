"""The commands as functions: in memory, silent, nothing written unless asked, and as the commands would have it."""
import gc
import json
from pathlib import Path

import numpy as np
import pytest
from instruments import JUDGED, leave
from tiny import image_folder

import rotescope
from rotescope.commands import audit as audit_command
from rotescope.common.errors import InputError

QUICK = {"num_inference_steps": 2, "verify": False, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder whose name holds what settings are parted by."""
    return image_folder(tmp_path_factory.mktemp("data") / "my, photos: a=b", n=8)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_an_audit_in_memory_is_the_commands(base, photos, nowhere, capfd):
    chosen = rotescope.TransitionGuidance(before=-2, transition=650)  # is og-stp
    report = rotescope.audit(base, photos, mitigations=["none", chosen], seeds=range(2), **QUICK)
    assert capfd.readouterr() == ("", "")
    assert not list(nowhere.iterdir())
    argv = ["--model", base, "--train_data", photos, "--mitigation", "none", "og-stp", "--seeds", "0", "1", "--device", "cpu",
            "--num_inference_steps", "2", "--verify", "false", "--output_dir", nowhere / "out"]
    assert leave(audit_command.main, argv) in JUDGED
    written = json.loads((nowhere / "out/report.json").read_text(encoding="utf-8"))
    here = report.as_json()
    assert here["methods"].keys() == {"none", "og-stp"}
    assert [here[key] for key in ("methods", "pairs", "prompts", "verdict")] == [
        written[key] for key in ("methods", "pairs", "prompts", "verdict")]
    last = capfd.readouterr().out.splitlines()[-1]
    assert json.loads(last)["report"] == str(nowhere / "out/report.html")
    assert len(last) < 1000


def test_the_figures_of_a_report_and_what_it_leaves(base, photos, nowhere):
    report = rotescope.audit(base, photos, seeds=[0], **QUICK)
    rate = report["none"]["ungrouped"].copy_rate
    assert (rate.n_images, rate.n_prompts) == (8, 8)
    assert rate.low <= rate.value <= rate.high
    assert report.verdict.outcome in ("passed", "failed", "undecided")
    gc.collect()
    assert report.pictures.generated(report.pairs[0].image).size == (16, 16)  # its temporary folder lives as long as it does
    assert "<script" not in report._repr_html_()
    report.save(nowhere / "kept")
    assert {"report.html", "report.json", "pairs.parquet", "model_card.md"} <= {p.name for p in (nowhere / "kept").iterdir()}


def test_a_kept_audit_opens_its_pictures_where_they_lie(base, photos, nowhere):
    report = rotescope.audit(base, photos, seeds=[0], output_dir="kept", **QUICK)
    assert Path("kept/report.html").is_file()
    assert report.pictures.generated(report.pairs[0].image).size == (16, 16)


def test_a_manifest_stands_for_its_file_and_a_mitigation_gets_its_images(base, photos, nowhere, capfd):
    """og-recall looks at the training images: a comma in their path parted them from it once."""
    manifest = rotescope.load_manifest(photos)
    one, other = (rotescope.audit(base, data, mitigations="og-recall", seeds=[0], **QUICK) for data in (photos, manifest))
    assert one.as_json()["pairs"] == other.as_json()["pairs"]
    assert not list(nowhere.iterdir())


def test_a_finetune_and_a_comparison_from_python(base, photos, nowhere, capfd):
    manifest = rotescope.load_manifest(photos)
    steps = []
    folder = rotescope.finetune(manifest, "trained", model=base, max_train_steps=2, train_batch_size=2, duplicated=1, copies=4,
                                controls=1, partial_plan=True, on_step=lambda result: steps.append(result.step))
    assert (folder, steps) == (Path("trained"), [1, 2])
    found = rotescope.compare(folder, mitigations=["none", "stp"], seeds=[0], num_inference_steps=2, repeats=1, heldout_data=None,
                              device="cpu")
    assert capfd.readouterr() == ("", "")
    assert found.methods.keys() == {"none", "stp"}
    assert found.front
    assert "| `stp` |" in found.table()
    assert {p.name for p in nowhere.iterdir()} == {"trained", "trained.train.parquet"}


def test_detectors_from_python_are_the_registrys(base, nowhere):
    prompts = ["a cat", "a bus"]
    found = rotescope.detect(base, prompts, ["magnitude:n=1,steps=1", "edges:n=2"])
    assert {name: len(scores) for name, scores in found.items()} == {"magnitude": 2, "edges": 2}
    detector = rotescope.get_detector("magnitude:n=1,steps=1")
    assert list(rotescope.detect(base, prompts, detector).values()) == [found["magnitude"]]
    with pytest.raises(InputError, match="recall looks at the training images"):
        rotescope.detect(base, prompts, "recall")
    assert {"magnitude", "recall"} <= {e.name for e in rotescope.list_detectors()}


@pytest.mark.parametrize(("options", "says"), [
    ({"sedes": 1}, "sedes is no option: did you mean 'seeds'"), ({"mitigations": ["og-spt"]}, "did you mean 'og-stp'"),
    ({"fail_on": "copies>many"}, "cannot read the rule"), ({"lora": "gone.safetensors"}, "no LoRA at gone.safetensors")])
def test_wrong_input_is_an_input_error_and_writes_nothing(base, photos, nowhere, options, says):
    with pytest.raises(InputError, match=says):
        rotescope.audit(base, photos, **options)
    assert not list(nowhere.iterdir())


@pytest.mark.parametrize("nothing", [None, 3, "", [], b"x"])
def test_what_names_nothing_is_an_input_error(nothing):
    for function in (rotescope.load_manifest, rotescope.preflight, rotescope.get_mitigation, rotescope.get_detector):
        with pytest.raises(InputError):
            function(nothing)


def test_numbers_of_numpy_are_numbers(base, photos, nowhere):
    report = rotescope.audit(base, photos, seeds=np.arange(1), num_inference_steps=np.int64(2), max_prompts=np.int32(1),
                             verify=False, device="cpu")
    assert json.loads(report.to_json())["config"]["sampling"]["num_inference_steps"] == 2
    with pytest.raises(KeyError, match="take one of none"):
        report["nosuch"]
    with pytest.raises(KeyError, match="take one of ungrouped"):
        report["none"]["nosuch"]
