"""Every command on models that this project did not make: it runs, or refuses in one line; and what was sampled stays."""
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_families
from instruments import JUDGED, leave, noise, samples_folder, saved, training_folder, training_set
from PIL import Image
from places import EMOJI, ROOT

from rotescope import cli, score
from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.quality.alignment import get_alignment
from rotescope.evaluate.quality.recognition import Recognition, chosen_alignment, recognition, share_recognised
from rotescope.evaluate.statistics import paper_claims
from rotescope.procedures import checkpoint_prompts, compare, figures, retrigger
from rotescope.procedures.plots.figures import outcome_in_words

CPU = ["--device", "cpu"]
FAMILIES = {**tiny_families.FAMILIES, "pixart": tiny.tiny_pixart}
SD, EMBEDDED = ROOT / "train/base", ROOT / "train/base/alignment"


def foreign(folder, family="sd1"):
    """A model with a plan beside it, its training images, and others -> the folder: m/, bare/, photos/, others/, p.txt."""
    tiny.seeded(FAMILIES[family]).save_pretrained(folder / "m")
    shutil.copytree(folder / "m", folder / "bare")
    training_folder(folder / "photos", 8)
    training_folder(folder / "others", 8, seed=9)
    apply_plan(load_source(folder / "photos"), DuplicationPlan(2, 3, controls=2)).save(folder / "m/manifest.parquet")
    (folder / "p.txt").write_text("".join(f"a {noun}\n" for noun in tiny.NOUNS))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return foreign(tmp_path_factory.mktemp("foreign"))


def run(argv, place, monkeypatch, capsys):
    """-> exit code and what was said; `o`, the output, is new."""
    monkeypatch.chdir(place)
    shutil.rmtree("o", ignore_errors=True)
    code = leave(cli.main, argv)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


SHORT = ["--num_inference_steps", "2", *CPU, "--output_dir", "o"]
COMPARE = ["compare", "--checkpoint", "m", "--repeats", "1", "--mitigation", "none", "stp", "--seeds", "0", *SHORT]
FIGURES = ["figures", "--checkpoint", "m", "--seeds", "0", "1", "--transitions", "700", "300", *SHORT]
CALIBRATE = ["calibrate", "--model", "m", "--prompts", "p.txt", "--output_file", "o.json", "--num_inference_steps", "4", *CPU]
RETRIGGER = ["retrigger", "--model", "m", "--train_data", "photos", "--heldout_data", "others", "--search_steps", "1",
             "--max_images", "1", "--search_draws", "1", "--seeds", "0", *SHORT]


def test_compare_does_without_a_metric(place, monkeypatch, capsys):
    assert run(COMPARE, place, monkeypatch, capsys)[0] == 0
    assert "metric that this model lacks" in Path("o/table.md").read_text()


def test_claims_on_alignment_are_open_without_one():
    bare = SimpleNamespace(alignment=None)
    for claim in (paper_claims.later_is_newer([bare], bare), paper_claims.similarity_costs_alignment([bare])):
        assert claim.held is None
        assert outcome_in_words(claim) == "cannot be told"


@pytest.mark.parametrize(("argv", "fails", "kept"), [
    (COMPARE, (compare, "score_samples"), ["o.samples"]), (FIGURES, (figures, "score_samples"), ["o.controls", "o.samples"]),
    (RETRIGGER, (retrigger, "count_returns"), ["o.embeddings.safetensors", "o.samples"])])
def test_samples_outlive_what_fails_after_them(argv, fails, kept, place, monkeypatch, capsys):
    def broken(*_, **__):
        raise InputError("it failed: mend it")
    monkeypatch.setattr(*fails, broken)
    code, said = run(argv, place, monkeypatch, capsys)
    assert code == 2
    assert not Path("o").exists()
    assert sorted(p.name for p in place.glob("o.*")) == kept
    assert list((place / "o.samples").rglob("records.parquet"))
    if argv is COMPARE:
        monkeypatch.undo()
        words = said.partition("go on with: rotescope ")[2].splitlines()[0].split()
        assert run([*words, "--verify", "false"], place, monkeypatch, capsys)[0] in JUDGED
    for left in place.glob("o.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@pytest.mark.parametrize("command", ["compare", "figures"])
def test_a_model_without_a_manifest_is_refused_in_one_line(command, place, monkeypatch, capsys):
    code, said = run([command, "--checkpoint", "bare", "--output_dir", "o"], place, monkeypatch, capsys)
    assert code == 2
    assert said.startswith("error: bare has no manifest.parquet beside it")
    assert said.count("\n") == 1


def test_too_few_ordinary_prompts_are_refused_before_a_model_is_opened(place, monkeypatch, capsys):
    monkeypatch.delattr("rotescope.mitigate.sampling.calibration.open_model")
    code, said = run([*CALIBRATE, "--max_prompts", "7", "--seeds", "0"], place, monkeypatch, capsys)
    assert code == 2
    assert said.startswith("error: 7 ordinary images are too few")


# ----- held-out pictures and metrics are those of the model's own world

def test_held_out_pictures_are_of_the_checkpoints_own_world(place):
    own = load_source(place / "m/manifest.parquet")
    assert checkpoint_prompts.heldout_of("auto", own) is None
    assert checkpoint_prompts.heldout_of(None, own) is None
    assert len(checkpoint_prompts.heldout_of(str(place / "others"), own)) == 8
    embedded = tuple(load_source(EMOJI / "finetune.parquet"))[:4]
    for some, known in ((embedded, True), ((*embedded[:2], *own.examples[:2]), True),
                        ((*embedded[:1], *own.examples[:3]), False)):
        assert (checkpoint_prompts.heldout_of("auto", Manifest(some)) is not None) == known


def test_the_share_of_captions_recognised_by_hand():
    texts = np.eye(3)
    assert share_recognised(texts, texts) == 1
    assert share_recognised(texts[[1, 0, 2]], texts) == pytest.approx((0.5 + 0.5 + 2) / 6)  # two tie with the third's alone
    assert share_recognised(np.ones((3, 3)), texts) == 0.5                  # ties alone
    assert share_recognised(np.array([[2, 1, 0], [2, 1, 0], [0, 0, 1.0]]), texts) == pytest.approx((2 + 1 + 2) / 6)
    assert [Recognition(share, n).at_home for share, n in ((1, 2), (1, 3), (0.9, 4), (0.8, 100), (0.7, 1000))] == [
        False, True, False, True, False]


def test_the_embedded_metric_is_at_home_on_scenes_alone(tmp_path):
    metric, scenes = get_alignment(EMBEDDED), training_set(tmp_path / "scenes", 12)
    assert recognition(metric, list(scenes)) == Recognition(1.0, 12)
    photographs = tiny.image_folder(tmp_path / "photographs", 12, side=64)
    assert not recognition(metric, list(load_source(photographs))).at_home
    assert chosen_alignment("auto", str(SD), list(scenes))[0].label == metric.label
    assert "not at home on these pictures" in chosen_alignment("auto", str(SD), list(load_source(photographs)))[1][0]
    assert chosen_alignment(str(EMBEDDED), None, list(load_source(photographs)))[0] is not None  # who names it has it
    two = list(load_source(photographs))[:2]
    assert "fewer than 3 different captions" in chosen_alignment("auto", str(SD), two)[1][0]


def test_a_foreign_metric_is_left_out_of_a_report_with_a_note(tmp_path):
    photographs = load_source(tiny.image_folder(tmp_path / "photographs", 8, side=64))
    made = samples_folder(tmp_path / "made", photographs.examples[:2], lambda *_: False, seeds=(0,))
    (made / "run.json").write_text(f'{{"model": "{SD}", "methods": {{}}}}')
    report = score(made, photographs, verify=False)
    assert report.alignment_metric is None
    assert sum("not at home" in note for note in report.notes) == 1


# ----- small sets, and options out of range

@pytest.mark.parametrize("pictures", [
    [Image.new("RGB", (64, 64), c) for c in ("red", "black", "lime")], [noise(1), Image.new("RGB", (64, 64))],
    [Image.new("RGB", (1, 1)), Image.new("RGB", (2, 1), "red")]], ids=["flat", "one flat", "of a pixel"])
def test_sets_that_nothing_can_be_learned_from_show_no_copies(pictures, tmp_path):
    made, train = [Image.new("RGB", (64, 64)), noise(2)], saved(tmp_path / "train", pictures)
    for heldout in (None, [Image.new("RGB", (64, 64), "blue")]):
        report = score(made, train, heldout_data=heldout, verify=heldout is not None)
        assert report.verdict.outcome == "undecided"
        assert report["none"]["ungrouped"].copies == 0


def test_one_picture_is_scored_by_a_threshold_or_by_held_out_ones(tmp_path):
    train = saved(tmp_path / "train", [noise(1)] * 3)  # one picture, three times
    with pytest.raises(InputError, match="two different training images"):
        score([noise(1)], train, verify=False)
    for how in ({"copy_threshold": 0.9}, {"copy_null": "heldout", "heldout_data": [noise(i) for i in range(5, 9)]}):
        report = score([noise(1), noise(2)], train, verify=False, **how)
        assert report["none"]["ungrouped"].copies == 1


@pytest.mark.parametrize(("option", "value"), [
    ("copy_threshold", "7"), ("copy_threshold", "-1.01"), ("copy_threshold", "nan"), ("copy_quantile", "1"),
    ("copy_quantile", "nan")])
def test_a_threshold_that_no_similarity_could_be_is_refused(option, value, place, monkeypatch, capsys):
    for command in (["score", "--generated", "photos"], ["audit", "--model", "m"], ["retrigger", "--model", "m"]):
        argv = [*command, "--train_data", "photos", "--output_dir", "o", f"--{option}={value}"]
        code, said = run(argv, place, monkeypatch, capsys)
        assert code == 2
        assert said.startswith("error: ")
        assert option in said
    with pytest.raises(InputError, match=option):
        score([noise(1)], [noise(2), noise(3)], **{option: float(value)})


def test_no_sampling_beyond_what_a_model_has(place, monkeypatch, capsys):
    argv = ["generate", "--model", "m", "--prompts", "p.txt", "--output_dir", "o"]
    for option in ("--guidance_scale=inf", "--guidance_scale=1001", "--num_inference_steps=1001"):
        code, said = run([*argv, option], place, monkeypatch, capsys)
        assert (code, said[:7]) == (2, "error: ")


def test_two_scores_into_one_folder_do_not_meet(place, monkeypatch, capsys):
    """Not only when it writes: from its first look at the images on."""
    seen = []

    def looked(folder):
        other = "import sys; from rotescope.common.processes import check_alone; check_alone(sys.argv[1])"
        seen.append(subprocess.run([sys.executable, "-c", other, str(place / "o")], capture_output=True, text=True, cwd=ROOT))
        raise InputError("enough was seen: stop")
    monkeypatch.setattr("rotescope.evaluate.measurement.evaluation.read_samples", looked)
    assert run(EVERY["score"], place, monkeypatch, capsys)[0] == 2
    assert "another run is alive in" in seen[0].stderr
    assert not list(place.glob(".o*"))


# ----- the table

ON_DATA = ["--train_data", "photos"]
TRAIN = ["--pretrained_model_name_or_path", "bare", *ON_DATA, "--max_train_steps", "2", "--output_dir", "o"]
FINETUNE = ["finetune", *TRAIN, "--train_batch_size", "8", "--resolution", "16", "--duplicated", "2", "--copies", "3"]
ONE = ["--model", "bare", "--seeds", "0", *SHORT]
EVERY = {
    "finetune": FINETUNE, "monitor": [*FINETUNE, "--monitor_steps", "1", "--monitor_inference_steps", "2"],
    "preflight": ["preflight", *ON_DATA, "--output_dir", "o"], "index": ["index", *ON_DATA, "--index_dir", "o"],
    "generate": ["generate", *ONE, "--prompts", "p.txt", "--mitigation", "none", "og-dtp"],
    "score": ["score", "--generated", "others", *ON_DATA, "--output_dir", "o"],
    "audit": ["audit", *ONE, *ON_DATA, "--heldout_data", "others"],
    "audit, sscd": ["audit", *ONE, *ON_DATA, "--descriptor", "sscd"],
    "calibrate": CALIBRATE,
    "detect": ["detect", "--model", "m", "--prompts", "m/manifest.parquet", "--detector", "all", "--output_dir", "o", *CPU],
    "retrigger": RETRIGGER, "compare": [*COMPARE[:5], *COMPARE[8:]], "compare, held-out": [*COMPARE, "--heldout_data", "others"],
    "figures": FIGURES, "dose": ["dose", *TRAIN, "--recipe", "r.yaml", "--doses", "1", "2", "--images", "1", "--train_seeds", "0",
                                 "--seeds", "0", "--num_inference_steps", "2", *CPU]}
REFUSED = {"flux": {"monitor"}, "pixart": {"finetune", "monitor", "dose"}}   # family -> commands that do not serve it, and say so


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_command_runs_or_refuses_on_every_family(family, tmp_path, monkeypatch, capsys):
    place, found = foreign(tmp_path, family), {}
    (place / "r.yaml").write_text("train_batch_size: 8\nresolution: 16\n")
    for name, argv in EVERY.items():
        found[name], said = run(argv, place, monkeypatch, capsys)
        assert found[name] in JUDGED or found[name] == 2 and said.strip().splitlines()[-1].startswith("error: "), said
        assert not list(place.glob("o.samples*"))
        if name == "figures":
            assert said.count("cannot be told") == 2  # of seven claims
            assert sorted(file.name for file in Path("o").glob("*.png")) == [f"figure{i}.png" for i in range(1, 7)]
    refused = {name for name, code in found.items() if code == 2}
    assert refused - {"audit, sscd"} == REFUSED.get(family, set())  # SSCD, in an extra, may not be installed
