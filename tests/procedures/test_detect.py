"""`rotescope detect`, on a tiny model."""
import json
import shlex
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from instruments import with_models_of_ones_own
from tiny import cached_pipeline, image_folder

from rotescope.commands import detect as detect_command
from rotescope.common.errors import InputError
from rotescope.common.settings import parse
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.detectors import scores as scoring
from rotescope.mitigate.detectors.options import DetectConfig
from rotescope.mitigate.detectors.prompt_scores import unserved
from rotescope.mitigate.detectors.registry import DETECTORS, get_detector
from rotescope.mitigate.detectors.scores import (
    askable,
    check_detection,
    unseen_captions,
    without_images,
    write_scores,
)
from rotescope.mitigate.prompts.prompt import load_prompts
from rotescope.procedures import detect as front


@pytest.fixture(scope="module")
def model(base):
    return str(base)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,group,image_id\na cat,duplicated,x\na bus,duplicated,y\na frog,control,\na pig,control,z\n")
    return str(file)


def test_it_writes_scores_tokens_and_the_table(model, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    detect_command.main(["--model", model, "--prompts", prompts, "--detector", "magnitude:n=1", "magnitude:n=2", "edges",
                         "--tokens", "--device", "cpu", "--output_dir", str(out)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["scores"] == str(out / "scores.parquet")
    names = ["magnitude_n=1", "magnitude_n=2", "edges"]
    found = json.loads((out / "detection.json").read_text())
    assert {name: cell["control"]["n_other"] for name, cell in found.items()} == dict.fromkeys(names, 2)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    assert [(r["detector"], r["prompt"]) for r in rows] == [(n, p) for n in names for p in ("a cat", "a bus", "a frog", "a pig")]
    run = json.loads((out / "run.json").read_text())
    assert [run["detectors"][name]["denoiser_rows"] for name in names] == [2, 4, 8]
    assert run["detectors"]["edges"]["needs"] == ["generated images"]
    tokens = pq.read_table(out / "tokens.parquet").to_pylist()
    assert [t["token"] for t in tokens] == ["a", "cat", "a", "bus", "a", "frog", "a", "pig"]
    assert all(t["significance"] > 0 for t in tokens)


def test_another_run_gives_the_same_scores_and_another_seed_others(model, prompts, tmp_path):
    runs = [[r["score"] for r in write_scores(DetectConfig(prompts, str(tmp_path / name), model=model, seed=seed, device="cpu"))]
            for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert runs[0] == runs[1] != runs[2]


def test_recall_takes_the_training_images_from_the_manifest_or_where_it_is_told(model, images, prompts, tmp_path):
    manifest = apply_plan(load_source(images), DuplicationPlan(2, 3, controls=2))
    manifest.save(tmp_path / "manifest.parquet")
    config = DetectConfig(str(tmp_path / "manifest.parquet"), str(tmp_path / "own"), model=model, detector=("recall",),
                          device="cpu")
    rows = write_scores(config)
    assert [r["group"] for r in rows] == ["duplicated"] * 2 + ["control"] * 2
    (tmp_path / "p.csv").write_text("prompt,group,image_id\n" + "".join(
        f"{r['prompt']},{r['group']},{r['image_id']}\n" for r in rows) + "a bus,control,\n")
    other = replace(config, prompts=str(tmp_path / "p.csv"), output_dir=str(tmp_path / "other"), train_data=str(images))
    assert [r["score"] for r in write_scores(other)] == [*(r["score"] for r in rows), None]
    with pytest.raises(InputError, match="name them with --train_data"):
        write_scores(replace(other, prompts=prompts, train_data=None, output_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


QUICK = ("magnitude:n=1", "edges:n=2", "recall:n=1")


@pytest.fixture(scope="module")
def manifest(images, tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "manifest.parquet"
    apply_plan(load_source(images), DuplicationPlan(2, 3, controls=2)).save(file)
    return str(file)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Nine images, six of which bear captions of the training images."""
    return str(image_folder(tmp_path_factory.mktemp("others"), n=9))


def test_the_table_of_detectors_against_controls_and_heldout_captions(model, manifest, others, tmp_path, capsys):
    out = tmp_path / "out"
    detect_command.main(["--model", model, "--prompts", manifest, "--heldout_data", others, "--detector", *QUICK,
                         "--device", "cpu", "--output_dir", str(out)])
    said = capsys.readouterr()
    printed, table = json.loads(said.out), (out / "detection.md").read_text(encoding="utf-8")
    assert printed["table"] == str(out / "detection.md")
    assert all(cell.strip(" `") in said.err for cell in table.splitlines()[3].strip("|").split("|"))
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    heldout = [r for r in rows if r["group"] == "heldout"]
    assert [r["prompt"] for r in heldout[:2]] == ["a rocket on a red background", "a crab on a red background"]
    assert [r["score"] is None for r in heldout] == [False] * 4 + [True] * 2      # its training image is not there to recall
    known = {e.captions[0] for e in load_source(manifest)}
    assert not known & {r["prompt"] for r in heldout}
    scores = {(r["detector"], r["group"]): [] for r in rows}
    for r in rows:
        scores[r["detector"], r["group"]].append(r["score"])
    run = json.loads((out / "run.json").read_text())["detectors"]
    for name in ("magnitude", "edges", "recall"):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| `{name}:"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for place, group in ((1, "control"), (3, "heldout")):
            if (name, group) == ("recall", "heldout"):
                assert cells[place:place + 2] == ["–", "–"]
                continue
            high, low = scores[name, "duplicated"], scores[name, group]
            auc = sum((h > x) + (h == x) / 2 for h in high for x in low) / 4
            tpr = sum(h > max(low) for h in high) / 2
            assert cells[place].startswith(f"{auc:.2f} (")
            assert cells[place + 1].startswith(f"{tpr:.2f} (")
        assert cells[0] == f"`{run[name]['name']}`"
        assert cells[5:] == [str(run[name]["denoiser_rows"]), f"{run[name]['seconds']:.2f}"]
    assert "n = 2 duplicated captions against 2 control, 2 held-out" in table


def test_the_table_by_hand():
    """Of two detectors the surer comes first; one was asked of fewer prompts, and not of held-out captions."""
    def cell(n, auc, tpr):
        return {"n_memorized": n, "n_other": n, "auc": auc, "auc_interval": [0, auc], "tpr": tpr, "tpr_interval": [tpr, 1]}
    table = {"a": {"control": cell(3, 0.5, 0), "heldout": cell(3, 0.25, 1)}, "b": {"control": cell(2, 0.75, 0.5)}}
    detectors = {name: {"name": f"{name}:n=9", "denoiser_rows": 1600, "seconds": 1.234} for name in table}
    lines = front.detector_table(table, detectors).markdown().splitlines()
    assert lines[:4] == [
        "| detector | AUC, control (95 %) | TPR at 1 % FPR, control (95 %) | AUC, held-out (95 %) | "
        "TPR at 1 % FPR, held-out (95 %) | denoiser rows a prompt | seconds a prompt |",
        "|---|---|---|---|---|---|---|",
        "| `b:n=9` | 0.75 (0.00–0.75), n = 2 and 2 | 0.50 (0.50–1.00), n = 2 and 2 | – | – | 1,600 | 1.23 |",
        "| `a:n=9` | 0.50 (0.00–0.50) | 0.00 (0.00–1.00) | 0.25 (0.00–0.25) | 1.00 (1.00–1.00) | 1,600 | 1.23 |"]
    assert "n = 3 duplicated captions against 3 control, 3 held-out" in lines[5]
    assert front.detector_table({}, detectors) is None


def test_all_is_every_detector_and_of_those_that_cannot_be_asked_none(model, manifest, prompts):
    config = DetectConfig(manifest, "out", model=model, detector=("all", "recall:n=1"))
    texts = check_detection(config)
    assert list(texts.values()) == [*DETECTORS, "recall:n=1"]
    assert list(texts) == [*(name for name in DETECTORS if name != "recall"), "recall", "recall_n=1"]
    plain = load_prompts(prompts, ())
    assert set(askable(check_detection(replace(config, detector=("all",))), replace(config, detector=("all",)),
                       lambda d: without_images(d, plain, {}))) == set(DETECTORS) - {"recall"}
    with pytest.raises(InputError, match="name them with --train_data"):
        askable(texts, config, lambda d: without_images(d, plain, {}))
    pipe = cached_pipeline("sd3")
    assert list(askable({"sail": "sail", "edges": "edges", "cliques": "cliques"}, replace(config, detector=("all", "edges")),
                        lambda d: unserved(d, pipe))) == ["edges", "cliques"]
    with pytest.raises(InputError, match="not StableDiffusion3Pipeline"):
        askable({"sail": "sail"}, replace(config, detector=("sail",)), lambda d: unserved(d, pipe))


def test_heldout_captions_are_as_many_as_the_largest_group_has_or_as_was_said(manifest, others, images):
    config = DetectConfig(manifest, "out", heldout_data=others)
    examples = scoring.training_images(config)
    prompts = load_prompts(manifest, ("duplicated", "control"))
    unseen = ["a rocket on a red background", "a crab on a red background", "a cat on a blue background"]
    assert [p.text for p in unseen_captions(config, prompts, examples)] == unseen[:2]
    assert [p.text for p in unseen_captions(replace(config, max_prompts=9), prompts, examples)] == unseen
    assert unseen_captions(replace(config, heldout_data=None), prompts, examples) == []
    with pytest.raises(InputError, match="that the model never saw"):
        unseen_captions(replace(config, heldout_data=str(images)), prompts, examples)


@pytest.mark.parametrize(("changes", "message"), [
    ({"max_prompts": 0}, "max_prompts=0"), ({"detector": ("all", "sail")}, "named twice"),
    ({"detector": ("magnitud",)}, "did you mean 'magnitude'"), ({"detector": ()}, "must be a detector"),
    ({"detector": ("sail", "sail")}, "named twice"), ({"batch_size": 0}, "batch_size"), ({"model": "gone"}, "no model at gone"),
    ({"lora": "gone"}, "no LoRA at gone"),
])
def test_wrong_input_is_one_line_before_anything_runs(changes, message, model, prompts, tmp_path):
    with pytest.raises(InputError, match=message):
        check_detection(DetectConfig(**{"prompts": prompts, "output_dir": str(tmp_path / "out"), "model": model, **changes}))


def test_the_commands_of_its_help_are_understood(monkeypatch):
    with_models_of_ones_own(monkeypatch)
    lines = [line.strip() for line in detect_command.__doc__.splitlines() if line.strip().startswith("rotescope detect")]
    assert lines
    for line in lines:
        config = parse(DetectConfig, shlex.split(line)[2:], prog="detect", description="")
        assert all(get_detector(text) for text in config.detector if text != "all")
