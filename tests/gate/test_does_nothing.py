"""A mitigation that does nothing says so: in a notebook by a warning, in a command by a line, in the records image by image."""
import json
import warnings
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline
from instruments import leave
from PIL import Image
from tiny import cached_pipeline, loud_pipeline, tiny_pipeline
from tiny_runs import PROMPTS, STEPS
from tiny_runs import images as latents_of

from rotescope.common.errors import InputError
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.measurement.notes import idle_notes
from rotescope.mitigate import generate as command
from rotescope.mitigate.adapters.effects import MitigationWarning, effect_lines
from rotescope.mitigate.adapters.guider import MitigationGuider
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation
from rotescope.mitigate.sampling.sampler import told_effects


def img2img(pipe, strength):
    """-> latents of two images from one picture."""
    noise = [torch.Generator().manual_seed(i) for i in (0, 1)]
    with torch.no_grad():
        return pipe(PROMPTS[:2], Image.new("RGB", (16, 16), (9, 99, 200)), strength=strength, num_inference_steps=10,
                    generator=noise, output_type="latent").images


@pytest.fixture(scope="module")
def painter():
    pipe = StableDiffusionImg2ImgPipeline(**loud_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_call_that_begins_below_the_transition_is_the_plain_one_and_says_so(painter):
    with pytest.warns(MitigationWarning, match="og-stp changed nothing of 2 images: the call begins at timestep 599") as told, \
            mitigated(painter, "og-stp") as run:
        found = img2img(painter, 0.6)
    assert torch.equal(found, img2img(painter, 0.6))
    assert run.active == [False, False]
    assert [one.filename for one in told if one.category is MitigationWarning] == [__file__]  # where the pipeline was called


def test_a_call_that_begins_above_it_is_silent(painter):
    with warnings.catch_warnings(), mitigated(painter, "og-stp") as run:
        warnings.simplefilter("error", MitigationWarning)
        found = img2img(painter, 0.9)
    assert run.active == [True, True]
    assert not torch.equal(found, img2img(painter, 0.9))


DEAR = ("nemo", "noise-optimisation", "sharpness-step", "sharpness-aware-noise")  # which search long
OTHER = ("prompt-optimisation:target=1e9", "prompt-optimisation:target=0.001", "noise-optimisation:target=1e9",
         "nemo:ordinary=none", "stp:transition=1000", "og-stp:before=7.5",
         "dtp:ordinary_gap=1e9", "stp:transition=0", "caption-noise:scale=0")


@pytest.mark.parametrize("name", [*(n for n, e in ENTRIES.items() if e.ready and "sd" in e.families and n not in DEAR), *OTHER])
@pytest.mark.filterwarnings("ignore::rotescope.mitigate.adapters.effects.MitigationWarning")
def test_an_image_is_active_if_and_only_if_it_is_another(name):
    pipe = loud_pipeline()
    if name.partition(":")[0] not in ENTRIES:
        pytest.skip(f"no {name}")
    with mitigated(pipe, name) as run:
        found = latents_of(pipe)
    plain = latents_of(pipe)
    changed = ((found - plain).flatten(1).abs().amax(1) > 1e-9 * plain.abs().max()).tolist()
    assert run.active == changed


@pytest.mark.parametrize("kind", ["flux", "sd3", "pixart", "sdxl"])
def test_every_family_tells_the_same(kind):
    pipe = cached_pipeline(kind)
    with mitigated(pipe, "og-stp") as run, warnings.catch_warnings():
        warnings.simplefilter("error", MitigationWarning)
        latents_of(pipe, PROMPTS[:1], kind=kind)
    assert run.active == [True]
    with mitigated(pipe, "stp:transition=1000") as idle, pytest.warns(MitigationWarning, match="changed nothing of 1 image:"):
        latents_of(pipe, PROMPTS[:1], kind=kind)
    assert idle.active == [False]


def test_guidance_that_never_sets_in_says_so():
    pipe = loud_pipeline()
    with pytest.warns(MitigationWarning, match="guidance never set in on 3 images: the last timestep is"), \
            mitigated(pipe, "stp:transition=0"):
        latents_of(pipe)
    policy = get_mitigation("stp:transition=0")
    assert effect_lines("stp", [policy], [True, True], [None, 0], [999, 0]) == []  # on one of two it did
    assert effect_lines("none", [get_mitigation("none")], [False], [999], [999]) == []


def test_a_distilled_model_says_so_once_and_a_call_of_one_branch_is_refused():
    pipe = tiny_pipeline().to(torch.float64)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with warnings.catch_warnings(record=True) as told, mitigated(pipe, "og-stp"):
        warnings.simplefilter("always", MitigationWarning)
        for _ in range(2):
            latents_of(pipe, PROMPTS[:1], num_inference_steps=4)
        for scale in (0.0, 1.0):
            with pytest.raises(InputError, match="sends one branch only"):
                latents_of(pipe, PROMPTS[:1], scale=scale)
    said = [str(one.message) for one in told if one.category is MitigationWarning]
    assert ["is distilled (its scheduler is LCMScheduler)" in line for line in said] == [True]
    with warnings.catch_warnings(), mitigated(pipe, "none"):
        warnings.simplefilter("error", MitigationWarning)
        latents_of(pipe, PROMPTS[:1], num_inference_steps=4)


def test_a_guider_tells_it_too():
    cond, uncond = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for first, expected in ((999, True), (600, False)):
        guider = MitigationGuider("og-stp", 7.5)
        for step, timestep in enumerate((first, 500, 100)):
            guider.set_state(step, 3, torch.tensor(timestep))
            guider.prepare_inputs({"encoder_hidden_states": (cond, uncond)})
            guider.forward(cond, uncond)
        assert guider.active.tolist() == [expected] * 2


def test_a_command_says_it_once_and_records_it_image_by_image(base, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS[:2]))
    argv = ["--model", base, "--prompts", tmp_path / "p.txt", "--output_dir", tmp_path / "out", "--seeds", "0", "--device", "cpu",
            "--batch_size", "1", "--num_inference_steps", STEPS, "--mitigation", "none", "og-stp", "stp:transition=1000"]
    assert leave(command.main, argv) == 0
    told = capsys.readouterr()
    active = {"none": 0, "og-stp": 2, "stp": 0}
    assert json.loads(told.out.splitlines()[-1])["active"] == active
    assert told.err.count("note: stp changed nothing of 2 images") == 1
    assert "Warning" not in told.err
    assert json.loads((tmp_path / "out/run.json").read_text())["active"] == active
    samples = read_samples(tmp_path / "out")
    assert [r.active for r in samples.records] == [False, False, True, True, False, False]
    assert [note.split()[0] for note in idle_notes(samples)] == ["stp"]

    table = pq.read_table(tmp_path / "out/records.parquet")  # an older release did not record it
    pq.write_table(table.set_column(table.column_names.index("active"), "active", [[None] * len(table)]),
                   tmp_path / "out/records.parquet")
    assert set(told_effects(tmp_path / "out", {"og-stp": get_mitigation("og-stp")}).values()) == {None}
    unknown = replace(samples, records=tuple(replace(r, active=None) for r in samples.records))
    assert list(idle_notes(unknown)) == []
