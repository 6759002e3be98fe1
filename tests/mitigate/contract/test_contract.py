"""Every entry of the registry, on every family that it claims and on the embedded model: what the contract promises.

An entry is tested as soon as it is registered. One that needs something of its own (a file, another setting to be quick) says so
in READY.
"""
import copy
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import pytest
import torch
from tiny import TINY, cached_pipeline, image_folder, loud_pipeline
from tiny_runs import calibration, images

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.contract.catalogue import Need, name_of
from rotescope.mitigate.contract.families import FAMILIES, denoiser_of
from rotescope.mitigate.contract.mitigation import Mitigation, settings_of
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation
from rotescope.models.model_options import BASE
from rotescope.models.pipelines import load_pipeline

PROMPTS = ["a cat on a blue background", "a bus", "a frog and a pig on a pink background", "a cat on a blue background", "a crab"]
STEPS, APART = 3, (2, 1)
READY = {  # name -> function(tmp_path) -> what stands behind the colon: numbers at which it acts on some of PROMPTS, or on all
    "dtp-calibrated": lambda folder: calibrated(folder, [999, 666]),
    "amg": lambda folder: f"training={training_manifest(folder)}",
    "og-recall": lambda folder: f"training={training_manifest(folder)}",
    "prompt-optimisation": lambda folder: "target=4.7,iterations=3",
    "prompt-reanchoring": lambda folder: "target=4.4,full=6,iterations=2",
    "noise-optimisation": lambda folder: "target=4.7,iterations=3",
    "sharpness-aware-noise": lambda folder: "target=4.9,weight=0.001,iterations=2,budget=3",
    "nemo": lambda folder: "threshold=0.05,seeds=3,ordinary=none",
}
FLOW = READY | {"dtp-calibrated": lambda folder: calibrated(folder, [500])}  # whose first step says nothing
FILES = ("dtp-calibrated", "amg", "og-recall")
EMBEDDED = {name: READY[name] for name in FILES} | {"noise-optimisation": lambda folder: "iterations=20"}
QUICK = {"og-stp", "dtp", "tcfg", "random-token", "prompt-reanchoring", "attention-mask", "sharpness-step"}  # one of a kind
ROWS = {  # those whose cost is printed otherwise than as 1 × -> what an image may cost in 4 steps
    "stp": [6], "guard": [12], "og-dtp-released": [16], "sharpness-step": [8 + 8 - 1],
    "prompt-optimisation": range(8 + 2, 8 + 21), "prompt-reanchoring": [8 + 2, *range(8 + 4, 12 + 21)],
    "noise-optimisation": range(8 + 2, 8 + 2001), "sharpness-aware-noise": range(8 + 4, 8 + 321),
    "nemo": [8 + 10, *range(8 + 100, 8 + 1000)],
}
MIXED = {name for name in READY if name not in FILES}  # act on PROMPTS[2], leave PROMPTS[1] alone
CLAIMS = [pytest.param(name, kind, id=f"{name}-{kind}",  # by default all on one family, and one of a kind on each
                       marks=() if kind == "sd" and name != "nemo" or name in QUICK else pytest.mark.slow)
          for name, entry in ENTRIES.items() for kind in entry.families if kind in TINY]   # others: adapters/


def calibrated(folder, timesteps):
    gaps = np.exp(np.random.default_rng(0).normal(0.5, 0.3, (9, len(timesteps))))
    return f"calibration={calibration(folder / 'c.json', gaps, timesteps, steps=STEPS)}"


def training_manifest(folder):
    load_source(image_folder(folder / "images", n=9)).save(folder / "manifest.parquet")
    return folder / "manifest.parquet"


def ready(name, folder, settings=READY):
    return get_mitigation(f"{name}:{settings[name](folder)}" if name in settings else name)


def traces(pipe):
    """All that a mitigation could leave behind."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    modules = {(name, inner): (set(vars(m)), *(set(getattr(m, h)) for h in ("_forward_hooks", "_forward_pre_hooks")))
               for name, part in parts.items() for inner, m in part.named_modules()}
    grads = {(name, inner): (w.requires_grad, w.grad is None, w._version) for name, part in parts.items()
             for inner, w in part.named_parameters()}
    processors = {name: id(p) for name, p in getattr(denoiser_of(pipe), "attn_processors", {}).items()}
    return type(pipe), modules, grads, processors, vars(denoiser_of(pipe)).get("forward"), dict(pipe.scheduler.config)


def pipeline(kind):
    return loud_pipeline() if kind == "sd" else cached_pipeline(kind)


@lru_cache(maxsize=len(TINY))
def plain_images(kind):
    """Under guidance alone, without any of ours. FLUX itself leaves a hook registry behind."""
    return images(pipeline(kind), PROMPTS, kind=kind, num_inference_steps=STEPS)


@pytest.mark.parametrize(("name", "kind"), CLAIMS)
def test_the_contract(name, kind, tmp_path, monkeypatch):
    pipe, plain = pipeline(kind), plain_images(kind)
    mitigation = ready(name, tmp_path, FLOW if kind in ("sd3", "flux") else READY)
    grad, grads = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: grads.append(1) or grad(*args, **kwargs))
    before, settings = traces(pipe), copy.deepcopy(mitigation)
    with mitigated(pipe, mitigation) as run:
        together = images(pipe, PROMPTS, kind=kind, num_inference_steps=STEPS)
        apart = torch.cat([images(pipe, [PROMPTS[i]], [i], kind, num_inference_steps=STEPS) for i in APART])
    with mitigated(pipe, mitigation) as again:
        repeated = images(pipe, PROMPTS, kind=kind, num_inference_steps=STEPS)
    assert torch.isfinite(together).all()
    assert not together.requires_grad
    if kind == "sd":
        touched = (together - plain).flatten(1).norm(dim=1) > 1e-3
        assert touched[2] == (name != "none")
        assert touched[1] == (name != "none" and name not in MIXED)
    assert torch.equal(repeated, together)  # the same seeds, the same images
    torch.testing.assert_close(together[list(APART)], apart, atol=1e-6, rtol=0)  # alone, or among others
    n = len(PROMPTS)
    for record in (run.denoiser_rows, run.denoiser_calls, run.transition_timesteps, run.prediction_gaps):
        assert len(record) == n + len(APART)
    for record in (run.denoiser_rows, run.denoiser_calls, run.transition_timesteps):
        assert record[n:] == [record[i] for i in APART]
    assert name not in MIXED or run.denoiser_rows[2] > run.denoiser_rows[1]  # what is not needed is not computed
    assert again.denoiser_rows == run.denoiser_rows[:n]
    if name not in ROWS:
        assert max(run.denoiser_rows) <= 2 * STEPS  # never dearer than plain guidance
    assert bool(grads) == (Need.GRADIENTS in ENTRIES[name].needs)
    assert traces(pipe) == before
    assert mitigation == settings


@lru_cache(maxsize=1)
def embedded():
    """-> the pipeline, and what it makes in one step by itself."""
    pipe = load_pipeline(BASE)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pictures(pipe, 1)


def pictures(pipe, steps=4):
    """-> two of 64 × 64 pixels, in [0, 1]."""
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(PROMPTS[:2], num_inference_steps=steps, generator=noise, output_type="np").images


@pytest.mark.parametrize("name", ["og-dtp", "og-stp-layout", "beta-cfg", "tcfg", "random-token", "attention-mask", "guard",
                                  "sharpness-step"])
def test_in_single_precision_the_embedded_model_makes_the_same_image_alone_and_among_five(name):
    """In fp32, to 2e-4 of the largest latent: another batch adds up in another order, and guidance multiplies what differs."""
    pipe, _ = embedded()

    def latents(rows):
        with mitigated(pipe, name) as run:
            noise = [torch.Generator().manual_seed(i) for i in rows]
            return pipe([PROMPTS[i] for i in rows], num_inference_steps=3, generator=noise, output_type="latent").images, run
    (together, run), (alone, one) = latents(range(5)), latents([2])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[2:3], alone, atol=2e-4 * together.abs().max().item(), rtol=0)
    assert [run.denoiser_rows[2], run.transition_timesteps[2]] == [one.denoiser_rows[0], one.transition_timesteps[0]]


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENTRIES])
def test_the_embedded_model_makes_pictures(name, tmp_path):
    (pipe, plain), mitigation = embedded(), ready(name, tmp_path, EMBEDDED)
    before = traces(pipe)
    with mitigated(pipe, mitigation) as run:
        found = pictures(pipe)
    assert found.shape == (2, 64, 64, 3)
    assert np.isfinite(found).all()
    assert found.std((1, 2, 3)).min() > 0.02
    assert len(run.timesteps) == 4
    assert set(run.denoiser_rows) <= set(ROWS.get(name, [8]))
    assert traces(pipe) == before
    assert np.array_equal(pictures(pipe, 1), plain)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if len(entry.families) < len(FAMILIES)])
def test_a_family_that_is_not_served_is_refused_and_the_pipeline_untouched(name, tmp_path):
    kind = next(kind for kind in TINY if kind not in ENTRIES[name].families)
    pipe, mitigation = pipeline(kind), ready(name, tmp_path)
    before = traces(pipe)
    with pytest.raises(InputError, match="serves"), mitigated(pipe, mitigation):
        pass
    assert traces(pipe) == before


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_says_what_it_is(name):
    entry = ENTRIES[name]
    preset = entry.make()
    assert isinstance(preset, Mitigation)
    assert settings_of(preset) == entry.settings  # all of them, as the authors have them
    assert name_of(preset, ENTRIES) == entry.name == name
    assert entry.paper
    assert entry.cost.startswith("1 ×") == (name not in ROWS)
    assert entry.families == (preset.families or tuple(FAMILIES))
    assert (Need.ATTENTION in entry.needs) == (type(preset).attach is not Mitigation.attach)
    assert (Need.TRAINING_IMAGES in entry.needs) == ("training" in entry.settings)
    assert (Need.CALIBRATION in entry.needs) == ("calibration" in entry.settings)
    with nullcontext() if entry.ready else pytest.raises(InputError):
        get_mitigation(name)
    assert type(preset).__doc__
    assert hash(preset) == hash(copy.deepcopy(preset))
    with pytest.raises(InputError, match="no_such_setting"):
        get_mitigation(f"{name}:no_such_setting=1")
