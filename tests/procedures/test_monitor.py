"""The monitor measures what score measures, training feels nothing of it, and it stops a run at a dose."""
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tiny import NOUNS, image_folder
from tiny_families import tiny_family
from training import arguments, assert_same_state, config_of, in_processes, largest_difference, weights

from rotescope.commands.finetune import main
from rotescope.common.errors import InputError, RunError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.json_types import as_json
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.prompts.prompt import Prompt, caption_prompts
from rotescope.mitigate.sampling.sampler import sample, sample_to_folder
from rotescope.models.pipelines import load_pipeline
from rotescope.procedures.finetune import run_finetune
from rotescope.procedures.monitor import heldout_prompts, monitor_of
from rotescope.train.engine.steps import DenoisingLoss
from rotescope.train.options.finetune_options import FinetuneConfig

QUICK = {"monitor_steps": 2, "monitor_inference_steps": 2}
HELDOUT = ("a crown on a blue background", "a rocket on a blue background")
GROUPS = ("duplicated", "control", "heldout")


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    """Two captions that no training image bears, one of them twice, and one that the training images have."""
    file = tmp_path_factory.mktemp("heldout") / "captions.txt"
    file.write_text("\n".join([f"a {NOUNS[0]} on a red background", *HELDOUT, HELDOUT[0]]))
    return str(file)


@pytest.fixture(scope="module")
def watched(base, images, heldout, tmp_path_factory):
    """A folder that a watched training of five steps left, and its config."""
    config = config_of(base, images, tmp_path_factory.mktemp("watched") / "out", checkpointing_steps=3, use_ema=True,
                       monitor_seeds=2, monitor_heldout=heldout, **QUICK)
    return run_finetune(config, progress=False), config


@pytest.fixture(scope="module")
def copying(base, tmp_path_factory):
    """A manifest whose two duplicated images are what the untrained model makes of their captions, and whose control is noise: at
    a learning rate of 0 the model copies the former, and not the latter. Two others are alike, which sets the threshold."""
    folder = image_folder(tmp_path_factory.mktemp("copying"))
    prompts = [Prompt((folder / f"{i}.txt").read_text()) for i in (0, 1)]
    for i, made in enumerate(sample(load_pipeline(base), prompts, PLAIN, (0,), num_inference_steps=2)):
        made.image.save(folder / f"{i}.png")
    Image.blend(*(Image.open(folder / f"{i}.png") for i in (4, 5)), 0.5).save(folder / "5.png")
    groups = {p.text: ("duplicated", 3) for p in prompts} | {(folder / "2.txt").read_text(): ("control", 1)}
    plan = [(e, *groups.get(e.captions[0], ("", 1))) for e in load_source(folder)]
    Manifest(tuple(replace(e, group=group, copies=copies) for e, group, copies in plan)).save(folder / "manifest.parquet")
    return folder / "manifest.parquet"


def to_a_dose(base, copying, out, **changes):
    return config_of(base, copying, out, **{**QUICK, "duplicated": 0, "copies": 1, "controls": 0, "learning_rate": 0.0,
                                            "stop_at_copy_rate": 0.5, **changes})


def lines_of(folder):
    return [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]


def record_of(folder):
    return json.loads((folder / "rotescope.json").read_text())


def test_it_measures_what_score_does_on_the_average_that_is_saved(watched, tmp_path):
    """The last measurement, against the saved model sampled and scored by the commands' own parts."""
    out, config = watched
    manifest, last = Manifest.load(out / "manifest.parquet"), lines_of(out)[-1]
    prompts = caption_prompts(manifest) + [Prompt(text, "heldout") for text in HELDOUT]
    sample_to_folder(load_pipeline(out), prompts, {"none": PLAIN}, (0, 1), tmp_path, num_inference_steps=2)
    report = score_samples(tmp_path, manifest, verify=False)
    assert (last["descriptor"], last["threshold_rule"]) == (report.descriptor, report.threshold_rule)
    assert last["copy_threshold"] == report.copy_threshold
    for group in GROUPS:
        expected, found = as_json(report["none"][group]), last["groups"][group]
        assert (found["n"], found["n_prompts"]) == (4, 2)
        assert [found[k] for k in ("n", "copies", "copy_rate", "own_copy_rate")] == [
            expected[k] for k in ("n", "copies", "copy_rate", "own_copy_rate")]
        assert found["copy_rate_interval"] == pytest.approx(expected["copy_rate_interval"], abs=1e-6)
        assert found["top1_mean"] == pytest.approx(expected["top1_mean"], abs=1e-3)


def test_its_gap_is_that_of_two_calls_of_the_unet(watched):
    """‖eps_cond − eps_uncond‖₂ at the first timestep, by hand from the saved model."""
    out, _ = watched
    pipe = StableDiffusionPipeline.from_pretrained(out)
    pipe.scheduler.set_timesteps(2)
    gaps = []
    with torch.no_grad():
        texts = [pipe.encode_prompt([*HELDOUT], "cpu", 1, True)[i] for i in (0, 1)]
        for made in sample(load_pipeline(out), [Prompt(t) for t in HELDOUT], PLAIN, (0, 1), num_inference_steps=2):
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(made.noise_seed))
            cond, uncond = (pipe.unet(noise, pipe.scheduler.timesteps[0], t[[made.prompt_index]]).sample for t in texts)
            gaps.append((cond - uncond).norm().item())
    assert lines_of(out)[-1]["groups"]["heldout"]["prediction_gap"] == pytest.approx(np.mean(gaps), rel=1e-4)


def test_it_leaves_a_line_a_measurement_a_picture_and_a_record(watched):
    out, config = watched
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [2, 4, 5]  # every two, and after the last
    assert lines[-1]["groups"]["duplicated"]["served"] == {"images": 2, "least": 6, "mean": 6.0, "most": 6}  # 20 samples, 3 of 10
    assert "served" not in lines[-1]["groups"]["heldout"]
    assert record_of(out)["monitor"] == lines[-1]
    with Image.open(out / "monitor.png") as picture:
        assert min(picture.size) > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


@pytest.mark.parametrize("changes", [
    {"use_ema": True, "lora": True, "cached": True},
    pytest.param({"use_ema": True}, marks=pytest.mark.slow)], ids=["lora", "whole"])
def test_training_feels_nothing_of_it(changes, base, images, heldout, tmp_path):
    """Weights, optimizer, average, random states: bit by bit. Shared generators of Python and numpy stay as they are, too."""
    changes = {"cache_dir": str(tmp_path / "cache") if changes.pop("cached", False) else None, **changes}
    config = config_of(base, images, tmp_path / "plain", checkpointing_steps=5, **changes)
    run_finetune(config, progress=False)
    before = random.getstate(), np.random.get_state()[1].tolist()
    run_finetune(replace(config, output_dir=str(tmp_path / "watched"), monitor_heldout=heldout, **QUICK), progress=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert_same_state(tmp_path / "plain/checkpoint-5", tmp_path / "watched/checkpoint-5")
    assert len(lines_of(tmp_path / "watched")) == 3


@pytest.mark.slow
def test_a_resumed_curve_goes_on_and_doubles_no_line(watched, tmp_path):
    """From checkpoint-3, elsewhere and in the same folder, where lines beyond it lie already."""
    out, config = watched
    whole = (out / "monitor.jsonl").read_bytes()
    elsewhere = replace(config, output_dir=str(tmp_path / "out"), resume_from_checkpoint=str(out / "checkpoint-3"))
    assert (run_finetune(elsewhere, progress=False) / "monitor.jsonl").read_bytes() == whole
    (tmp_path / "out/rotescope.json").unlink()
    again = replace(elsewhere, resume_from_checkpoint=str(out / "checkpoint-3"))
    assert (run_finetune(again, progress=False) / "monitor.jsonl").read_bytes() == whole
    assert (tmp_path / "out/monitor.png").exists()
    with pytest.raises(InputError, match=r"monitor.jsonl beside .*checkpoint-3 was measured with seeds 2, not 1"):
        run_finetune(replace(elsewhere, output_dir=str(tmp_path / "other"), monitor_seeds=1), progress=False)
    run_finetune(replace(config, output_dir=str(tmp_path / "out"), overwrite=True), progress=False)
    assert (tmp_path / "out/monitor.jsonl").read_bytes() == whole  # anew, not twice


def test_a_run_stops_at_its_dose_and_says_what_it_was(base, copying, tmp_path, capsys):
    out = run_finetune(to_a_dose(base, copying, tmp_path / "out", checkpointing_steps=2))
    said = capsys.readouterr().err
    assert re.search(r"^step 2: copy rate duplicated 1.00 \[0.16, 1.00\] of 2, control 0.00 \[0.00, 0.9[78]\] of 1; "
                     r"prediction gap duplicated \d", said, re.M)
    assert "the dose is reached at step 2, and training stops: 1.00 [0.16, 1.00] of 2, --stop_at_copy_rate 0.5" in said
    record = record_of(out)
    assert (record["steps"], record["monitor"]["step"], record["monitor"]["reached"]) == (2, 2, True)
    duplicated = record["monitor"]["groups"]["duplicated"]
    assert (duplicated["copy_rate"], duplicated["copies"], duplicated["own_copy_rate"]) == (1, 2, 1)
    assert duplicated["copy_rate_interval"] == pytest.approx([0.025 ** 0.5, 1])  # Clopper-Pearson for 2 of 2, by hand
    counts = [e.served for e in Manifest.load(out / "manifest.parquet") if e.group == "duplicated"]
    assert duplicated["served"] == {"images": 2, "least": min(counts), "mean": np.mean(counts), "most": max(counts)}
    assert largest_difference(weights(out), weights(base)) == 0
    (out / "rotescope.json").unlink()  # as if it had been killed right after its checkpoint
    run_finetune(to_a_dose(base, copying, tmp_path / "out", resume_from_checkpoint="latest"), progress=False)
    assert (record_of(out)["steps"], record_of(out)["monitor"]) == (2, record["monitor"])


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(base, copying, tmp_path):
    seen = in_processes(to_a_dose(base, copying, tmp_path / "two", train_batch_size=2), 2, tmp_path)
    assert [len(share) for share in seen] == [2, 2]
    assert (record_of(tmp_path / "two")["processes"], record_of(tmp_path / "two")["steps"]) == (2, 2)
    assert [(line["step"], line["groups"]["duplicated"]["copy_rate"]) for line in lines_of(tmp_path / "two")] == [(2, 1.0)]


def test_a_dose_that_is_never_reached_is_no_error(base, images, tmp_path, capsys):
    config = config_of(base, images, tmp_path / "out", max_train_steps=2, stop_at_copy_rate=1.0, learning_rate=0.0, **QUICK)
    record = record_of(run_finetune(config))
    assert (record["steps"], record["monitor"]["reached"]) == (2, False)
    assert re.search(r"the dose was not reached in 2 steps: \d.\d\d \[.*\] of 2, --stop_at_copy_rate 1$",
                     capsys.readouterr().err, re.M)


def test_a_run_that_fails_leaves_its_curve(base, images, tmp_path, monkeypatch):
    steps, loss = [], DenoisingLoss.__call__
    monkeypatch.setattr(DenoisingLoss, "__call__",
                        lambda self, *args: loss(self, *args) * (torch.nan if len(steps) >= 3 else 1))
    with pytest.raises(RunError, match="the loss is nan at step 4"):
        run_finetune(config_of(base, images, tmp_path / "out", **QUICK), on_step=steps.append, progress=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["monitor.jsonl", "monitor.png"]
    assert [line["step"] for line in lines_of(tmp_path / "out")] == [2]


def test_predictions_that_are_no_numbers_stop_the_run(base, images, tmp_path):
    """Weights spoiled between a step and its measurement, through the contract: finetune takes any monitor."""
    def spoiled(job, say):
        own = monitor_of(job, say)

        def watch(run):
            if run.step == 2:
                job.parameters[0].data.fill_(torch.nan)
            return own(run)
        return watch
    with pytest.raises(RunError, match="the predictions are no numbers at step 2: lower --learning_rate"):
        run_finetune(config_of(base, images, tmp_path / "out", **QUICK), progress=False, monitor=spoiled)
    assert not (tmp_path / "out").exists()


def test_trackers_get_the_curves(base, images, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = run_finetune(config_of(base, images, tmp_path / "out", report_to="tensorboard", max_train_steps=2, **QUICK),
                       progress=False)
    events = accumulator.EventAccumulator(str(out / "logs/rotescope")).Reload()
    for group, cell in lines_of(out)[0]["groups"].items():
        for name in ("copy_rate", "prediction_gap"):
            assert [(e.step, e.value) for e in events.Scalars(f"{name}/{group}")] == [(2, pytest.approx(cell[name]))]


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_other_families_are_measured_at_the_resolution_of_training(name, images, tmp_path):
    tiny_family(name).save_pretrained(tmp_path / "base")
    config = config_of(tmp_path / "base", images, tmp_path / "out", resolution=16, max_train_steps=1, lora=True, **QUICK)
    cell = lines_of(run_finetune(config, progress=False))[0]["groups"]["duplicated"]
    assert cell["n"] == 2
    assert 0 < cell["prediction_gap"] < 100


def test_held_out_captions_are_no_training_images(images, heldout):
    embedded = FinetuneConfig()
    manifest = load_source(embedded.train_data)
    texts = [p.text for p in heldout_prompts(embedded, manifest)]
    assert len(set(texts)) == 8
    assert not set(texts) & set(manifest.captions())
    data = load_source(images)
    assert heldout_prompts(FinetuneConfig(train_data=str(images)), data) == []
    assert [p.text for p in heldout_prompts(FinetuneConfig(monitor_heldout=heldout), data)] == list(HELDOUT)
    with pytest.raises(InputError, match="every caption of --monitor_heldout .* is a training image's too"):
        heldout_prompts(FinetuneConfig(monitor_heldout=str(images)), data)


@pytest.mark.parametrize(("changes", "message"), [
    ({"monitor_steps": 0}, "--monitor_steps 0: it should be 1 or more"), ({"monitor_seeds": 0}, "--monitor_seeds 0"),
    ({"monitor_guidance_scale": 1.0}, "--monitor_guidance_scale 1.0: diffusers then sends one branch only"),
    ({"stop_at_copy_rate": 1.5}, "--stop_at_copy_rate 1.5: it is a share"),
    ({"stop_at_copy_rate": 0.5, "monitor_steps": None}, "--stop_at_copy_rate 0.5 needs measurements: add --monitor_steps"),
    ({"stop_at_copy_rate": 0.5, "duplicated": 0, "copies": 1}, "--stop_at_copy_rate 0.5 looks at duplicated captions"),
    ({"duplicated": 0, "copies": 1, "controls": 0}, "--monitor_steps finds no captions"),
    ({"monitor_heldout": "nowhere.txt"}, "no prompts file at nowhere.txt")])
def test_bad_options_are_one_line(base, images, tmp_path, changes, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments(config_of(base, images, tmp_path / "out", **{**QUICK, **changes})))
    assert left.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_flux_is_refused_before_training(images, tmp_path):
    tiny_family("flux").save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="not a FluxPipeline: leave it out"):
        run_finetune(config_of(tmp_path / "base", images, tmp_path / "out", resolution=16, lora=True, **QUICK), progress=False)
