"""The dose-response curve: by hand, on a generator whose copies are known, and the whole command on a tiny model."""
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from instruments import samples_folder, training_set
from training import with_broken_picture

from rotescope.common.errors import InputError, RunError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.statistics.dose_response import Outcome, curves_of, dose_table
from rotescope.options.dose import DoseConfig
from rotescope.procedures import dose as module
from rotescope.procedures.dose import dose
from rotescope.procedures.dose_plan import Arm, DoseRun, dose_runs
from rotescope.train.engine.job import FinetuneConfig
from rotescope.train.engine.run_state import total_steps
from rotescope.train.objective.training_mitigations import NAMES, named_mitigation


def outcomes():
    """Two training seeds, doses 1 and 8, two images each: 8 copies are copied in 3 of 4 images, else nothing is."""
    for seed in (0, 1):
        for copies in (1, 8):
            for image in range(2):
                hit = copies == 8 and (seed, image) != (1, 1)
                yield Outcome("none", seed, copies, "duplicated", hit, hit and image == 0, 0.5 + image, 10 * copies,
                              f"{copies}-{image}")
                yield Outcome("none", seed, copies, "control", False, False, float("nan"), 10,
                              f"control-{copies}-{image}")


def test_points_pool_the_training_seeds_by_hand():
    curve = curves_of(list(outcomes()))["none"]
    low, high = (p["duplicated"] for p in curve["points"])
    assert [p["dose"] for p in curve["points"]] == [1, 8]
    assert (low["n"], low["copies"], low["copy_rate"]) == (4, 0, 0)
    assert (high["n"], high["copies"], high["copy_rate"], high["own_copies"], high["own_copy_rate"]) == (4, 3, 0.75, 2, 0.5)
    assert low["copy_rate_interval"] == pytest.approx([0, 1 - 0.025 ** 0.5])  # closed form without copies, of two training images
    assert (low["n_prompts"], curve["all"]["control"]["n_prompts"]) == (2, 4)
    assert {s: c["copy_rate"] for s, c in high["by_train_seed"].items()} == {"0": 1.0, "1": 0.5}
    assert (high["alignment"], high["served"]) == (1.0, 80)
    assert curve["all"]["control"]["n"] == 8
    assert curve["all"]["control"]["alignment"] is None


def test_the_table_names_what_its_numbers_mean():
    about = {"curves": curves_of(list(outcomes())), "images": 2, "train_seeds": [0, 1], "seeds": [0], "descriptor": "pixels",
             "copy_threshold": 0.8612, "threshold_rule": "0.99 quantile"}
    lines = dose_table(about).markdown().splitlines()
    assert lines[0] == "| copies | `none` |"
    assert lines[3] == "| 8 | 75% (6.1–>99.9%) |"
    assert lines[4].startswith("| controls | 0% (0–")
    assert all(word in lines[-1] for word in ("pixels ≥ 0.861", "0.99 quantile", "n = 4 a point", "2 training seeds"))


def test_copies_of_the_high_doses_and_of_nothing_else_make_a_step(base, tmp_path):
    """Canaries at 4 and 16 copies come out exactly, those at 1 copy and all controls as noise."""
    canaries = DuplicationPlan(2, doses=(1, 4, 16), matched=1)
    plan = apply_plan(training_set(tmp_path / "images"), canaries)
    folder, shown = tmp_path / "run", [e for e in plan if e.group]
    samples_folder(_made(folder / "samples"), shown, lambda method, i, seed: shown[i].copies > 1, groups=[e.group for e in shown])
    plan.with_served([10 * e.copies for e in plan]).save(_made(folder / "checkpoint") / "manifest.parquet")
    config = DoseConfig(pretrained_model_name_or_path=str(base), doses=canaries.doses, images=2, train_seeds=(0,))
    found = module._score(config, [DoseRun(Arm(""), FinetuneConfig(), plan, Path("run"))], tmp_path)
    points = found["curves"]["none"]["points"]
    assert [(p["dose"], p["duplicated"]["own_copy_rate"], p["control"]["copy_rate"]) for p in points] == [
        (1, 0, 0), (4, 1, 0), (16, 1, 0)]
    assert [(p["duplicated"]["n"], p["duplicated"]["served"], p["control"]["served"]) for p in points] == [
        (4, 10, 10), (4, 40, 10), (4, 160, 10)]
    assert 0.5 < found["copy_threshold"] < 1
    assert found["descriptor"].startswith("pixels")


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def config_of(base, data, out, **changes):
    return DoseConfig(**{"output_dir": str(out), "pretrained_model_name_or_path": str(base), "train_data": str(data),
                         "doses": (1, 3), "images": 1, "train_seeds": (0, 1), "seeds": (0,), "max_train_steps": 3,
                         "num_inference_steps": 2, "device": "cpu", **changes})


@pytest.mark.slow
def test_the_whole_command_resumes_and_ends_in_curves(base, images, tmp_path, monkeypatch, capsys):
    """Dies in the third of four fine-tunes; the second start trains that and the last one alone. A broken picture is named."""
    spoilt = with_broken_picture(images, tmp_path / "images")
    config = config_of(base, spoilt, tmp_path / "dose", mitigation=("none", "stp"), train_mitigation=("deduplication",))
    trained, run_finetune = [], module.run_finetune

    def noted(finetuning, dies=True):
        trained.append(Path(finetuning.output_dir).parent.name)
        if dies and len(trained) == 3:
            raise RunError("the loss is nan")
        return run_finetune(finetuning, progress=False)
    monkeypatch.setattr(module, "run_finetune", noted)
    with pytest.raises(RunError):
        dose(config)
    assert not (tmp_path / "dose").exists()
    with pytest.raises(InputError, match="pass --resume"):
        dose(config)
    with pytest.raises(InputError, match="seeds"):
        dose(replace(config, seeds=(0, 1), resume=True))
    monkeypatch.setattr(module, "run_finetune", lambda finetuning: noted(finetuning, dies=False))
    found = dose(replace(config, resume=True))
    assert trained == [f"arm-{arm}-seed-{seed}" for arm, seed in ((0, 0), (0, 1), (1, 0), (1, 0), (1, 1))]
    assert json.loads((tmp_path / "dose/dose.json").read_text()) == found
    assert [q["name"] for q in found["left_out"]] == [str(spoilt / "broken.png")]
    assert "1 image is left out, all listed in" in capsys.readouterr().err
    assert list(found["curves"]) == ["none", "stp", "train:deduplication"]
    for curve in found["curves"].values():
        assert [(p["dose"], p["duplicated"]["n"], p["control"]["n"]) for p in curve["points"]] == [(1, 2, 2), (3, 2, 2)]
    served = {name: [p["duplicated"]["served"] for p in curve["points"]] for name, curve in found["curves"].items()}
    assert served["none"][1] > 2 * served["none"][0]          # 48 samples, 8 an epoch
    assert served["train:deduplication"] == [8, 8]            # 48 samples of 6 images
    plans = [Manifest.load(tmp_path / f"dose/arm-0-seed-{seed}/plan.parquet") for seed in (0, 1)]
    assert plans[0].hash != plans[1].hash
    assert Counter(e.group for e in plans[0]) == {"duplicated": 2, "control": 2, "": 2}
    assert (tmp_path / "dose/dose.png").stat().st_size > 10_000
    assert "`train:deduplication`" in (tmp_path / "dose/dose.md").read_text()
    assert not (tmp_path / "dose/cache").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"doses": (3, 1)}, "rising"), ({"images": 0}, "one image or more"), ({"train_seeds": (1, 1)}, "each named once"),
    ({"images": 9}, "the plan needs 18 duplicated images"), ({"max_train_steps": 1, "doses": (1, 90)}, "train longer"),
    ({"train_mitigation": ("poem",)}, "no training mitigation is called 'poem'"), ({"guidance_scale": 0.5}, "scale above 1"),
    ({"descriptor": "eyes"}, "no descriptor 'eyes'"),
    ({"train_mitigation": ("mem_ratio", "mem_ratio")}, "named twice"), ({"mitigation": ("poem",)}, "no mitigation is called"),
    ({"train_mitigation": ("hard_threshold",)}, "hard_threshold=VALUE"), ({"recipe": "nowhere.yaml"}, "nowhere.yaml"),
    ({"mitigation": ()}, "no curve to draw"), ({"train_mitigation": ("mem_ratio=0",)}, "above 0"),
    ({"pretrained_model_name_or_path": "nowhere"}, "no model at")])
def test_wrong_input_is_named_before_anything_is_trained(base, images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        dose(config_of(base, images, tmp_path / "dose", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "steps"), [(None, 4), (7, 7)])
def test_all_arms_train_as_many_steps(base, images, tmp_path, given, steps):
    """Two epochs of 8 samples in batches of 4: the deduplicated arm, of 6 samples an epoch, has as many."""
    (tmp_path / "recipe.yaml").write_text("num_train_epochs: 2\ntrain_batch_size: 4\n")
    config = config_of(base, images, tmp_path / "dose", recipe=str(tmp_path / "recipe.yaml"), max_train_steps=given,
                       train_mitigation=("deduplication",))
    manifest = load_source(images)
    assert [total_steps(job.config, job.manifest, 4) for job in dose_runs(config, manifest)] == [steps] * 4


def test_it_samples_at_the_size_that_it_trained_at(base, images, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("resolution: 32\n")
    config = config_of(base, images, tmp_path / "dose", recipe=str(tmp_path / "recipe.yaml"), train_seeds=(0,))
    made = {}
    monkeypatch.setattr(module, "sample_to_folder", lambda *args, resolution, **more: made.update(resolution=resolution))
    module._sample(config, dose_runs(config, load_source(images))[0], _base_as_checkpoint(base, tmp_path / "job"))
    assert made == {"resolution": 32}


def _base_as_checkpoint(base, folder):
    folder.mkdir()
    (folder / "checkpoint").symlink_to(base)
    return folder


def test_training_mitigations_by_name():
    assert named_mitigation("mem_ratio") == {"mem_ratio": 1.25}
    assert named_mitigation("hard_threshold=3") == {"hard_threshold": 3.0}
    assert named_mitigation("random_token_addition=0.4") == {"caption_perturbation": "random_token_addition",
                                                             "caption_perturbation_probability": 0.4}
    for name in NAMES:
        FinetuneConfig(**named_mitigation(f"{name}=0.5"))
    with pytest.raises(InputError, match="'much' is no number"):
        named_mitigation("mem_ratio=much")
