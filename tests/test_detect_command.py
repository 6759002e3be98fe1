"""`rotescope detect`, on a tiny model."""
import json
import shlex
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from rotescope import detect as front
from rotescope.datasets.duplicate import DuplicationPlan, apply_plan
from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.mitigate import detect as scoring
from rotescope.mitigate.detect import DetectConfig, check, detect
from rotescope.mitigate.detectors import get_detector
from rotescope.settings import parse


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
    front.main(["--model", model, "--prompts", prompts, "--detector", "magnitude:n=1", "magnitude:n=2", "edges", "--tokens",
                "--device", "cpu", "--output_dir", str(out)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["scores"] == str(out / "scores.parquet")
    names = ["magnitude_n=1", "magnitude_n=2", "edges"]
    assert {name: cell["control"]["n_other"] for name, cell in printed["detection"].items()} == dict.fromkeys(names, 2)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    assert [(r["detector"], r["prompt"]) for r in rows] == [(n, p) for n in names for p in ("a cat", "a bus", "a frog", "a pig")]
    run = json.loads((out / "run.json").read_text())
    assert [run["detectors"][name]["denoiser_rows"] for name in names] == [2, 4, 8]
    assert run["detectors"]["edges"]["needs"] == "images"
    tokens = pq.read_table(out / "tokens.parquet").to_pylist()
    assert [t["token"] for t in tokens] == ["a", "cat", "a", "bus", "a", "frog", "a", "pig"]
    assert all(t["significance"] > 0 for t in tokens)


def test_another_run_gives_the_same_scores_and_another_seed_others(model, prompts, tmp_path):
    runs = [[r["score"] for r in detect(DetectConfig(prompts, str(tmp_path / name), model=model, seed=seed, device="cpu"))]
            for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert runs[0] == runs[1] != runs[2]


def test_recall_takes_the_training_images_from_the_manifest_or_where_it_is_told(model, images, prompts, tmp_path):
    manifest = apply_plan(load_source(images), DuplicationPlan(2, 3, controls=2))
    manifest.save(tmp_path / "manifest.parquet")
    config = DetectConfig(str(tmp_path / "manifest.parquet"), str(tmp_path / "own"), model=model, detector=("recall",),
                          device="cpu")
    rows = detect(config)
    assert [r["group"] for r in rows] == ["duplicated"] * 2 + ["control"] * 2
    (tmp_path / "p.csv").write_text("prompt,group,image_id\n" + "".join(
        f"{r['prompt']},{r['group']},{r['image_id']}\n" for r in rows) + "a bus,control,\n")
    other = replace(config, prompts=str(tmp_path / "p.csv"), output_dir=str(tmp_path / "other"), train_data=str(images))
    assert [r["score"] for r in detect(other)] == [*(r["score"] for r in rows), None]
    with pytest.raises(InputError, match="name them with --train_data"):
        detect(replace(other, prompts=prompts, train_data=None, output_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"detector": ("magnitud",)}, "did you mean 'magnitude'"), ({"detector": ()}, "must be a detector"),
    ({"detector": ("sail", "sail")}, "named twice"), ({"batch_size": 0}, "batch_size"), ({"model": "gone"}, "no model at gone"),
    ({"lora": "gone"}, "no LoRA at gone"),
])
def test_wrong_input_is_one_line_before_anything_runs(changes, message, model, prompts, tmp_path):
    with pytest.raises(InputError, match=message):
        check(DetectConfig(**{"prompts": prompts, "output_dir": str(tmp_path / "out"), "model": model, **changes}))


def test_the_commands_of_its_help_are_understood():
    lines = [line.strip() for line in scoring.__doc__.splitlines() if line.strip().startswith("rotescope detect")]
    assert lines
    for line in lines:
        config = parse(DetectConfig, shlex.split(line)[2:], prog="detect", description="")
        assert all(map(get_detector, config.detector))
