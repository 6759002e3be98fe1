"""Mitigations on the families beside Stable Diffusion's, against the stock pipeline whose scheduler is given another prediction.

The reference listens to what the denoiser says, mixes the two branches by itself at a scale of its own for each step, and hands
the scheduler the result in place of the pipeline's. It knows nothing of the adapter.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from families.mixed_by_hand import NORM, mixed_by_hand
from families.more_families import SIDES, small_family
from tiny import cached_pipeline

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.contract.catalogue import EVERY
from rotescope.mitigate.contract.families import (
    CLASSIC,
    FAMILIES,
    guidance_arguments,
    guidance_scale_of,
    two_branch_scale,
)
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.sampler import sample

PROMPTS, STEPS, SCALE = ("a cat on a red background", "a bus"), 4, 4.0
ONE = ("flux2", "ideogram4", "hunyuan-image", "qwen-image-21")   # of which no two branches are known
NAMES = [name for name in FAMILIES if name not in (*CLASSIC, "flux", "kolors")]


def latents(pipe, name, prompts=PROMPTS, seeds=(1, 2)):
    """Final latents (n, …) of the stock call; of one image after the other where the family's cannot make two."""
    if name == "prx" and len(prompts) > 1:
        return torch.cat([latents(pipe, name, [text], [seed]) for text, seed in zip(prompts, seeds, strict=True)])
    side = SIDES.get(name, 16)
    return pipe(prompt=list(prompts), num_inference_steps=STEPS, height=side, width=side, output_type="latent",
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                **guidance_arguments(pipe, len(prompts), SCALE)).images


@pytest.fixture(scope="module", params=NAMES)
def named(request):
    return request.param, small_family(request.param)


def threshold(pipe):
    """A timestep between the second and the third of a run."""
    own = pipe.scheduler.timesteps.double()
    return round(float((own[1] + own[2]) / 2))


def test_plain_guidance_is_the_stock_pipeline_bit_for_bit(named):
    name, pipe = named
    stock = latents(pipe, name)
    with mitigated(pipe, "none") as run:
        assert torch.equal(latents(pipe, name), stock)
    assert run.denoiser_rows == [2 * STEPS] * 2
    assert np.isfinite(run.prediction_gaps).all()
    assert torch.equal(latents(pipe, name), stock)          # and left as it was
    with mixed_by_hand(pipe, name, [SCALE] * STEPS):        # the reference mixes as the pipeline does
        torch.testing.assert_close(latents(pipe, name), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", [pytest.param(0.0, marks=pytest.mark.slow), -2.0])
def test_delayed_and_opposite_guidance_are_what_a_plain_loop_makes(named, before):
    name, pipe = named
    stock = latents(pipe, name)
    with mitigated(pipe, f"og-stp:before={before},transition={threshold(pipe)}") as run:
        found = latents(pipe, name)
    if before or name not in NORM:                          # without c its length is not known, and u keeps its own
        with mixed_by_hand(pipe, name, [before, before, SCALE, SCALE]):
            torch.testing.assert_close(found, latents(pipe, name), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, stock, atol=1e-3)
    assert run.transition_timesteps == pytest.approx([float(pipe.scheduler.timesteps[2])] * 2)
    assert run.timesteps == pytest.approx(pipe.scheduler.timesteps.tolist())
    assert all(run.active)


def test_the_sampler_makes_the_same_images_whatever_is_sampled_beside_them(named):
    name, pipe = named
    latents(pipe, name)
    prompts, policy = [Prompt(text) for text in PROMPTS], get_mitigation(f"og-stp:transition={threshold(pipe)}")
    settings = {"num_inference_steps": STEPS, "resolution": (SIDES.get(name, 16),) * 2}
    together, apart = (list(sample(pipe, prompts, policy, [0, 1], batch_size=size, **settings)) for size in (4, 1))
    for one, other in zip(together, apart, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert together[0].active


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry.name for entry in ENTRIES.values() if entry.families == EVERY and not entry.needs])
def test_every_mitigation_that_claims_a_family_serves_it(named, entry):
    name, pipe = named
    settings = {"num_inference_steps": STEPS, "resolution": (SIDES.get(name, 16),) * 2}
    found = list(sample(pipe, [Prompt(text) for text in PROMPTS], get_mitigation(entry), [0], **settings))
    again = list(sample(pipe, [Prompt(text) for text in PROMPTS], get_mitigation(entry), [0], **settings))
    assert [np.asarray(one.image).tobytes() for one in found] == [np.asarray(one.image).tobytes() for one in again]
    assert all(one.denoiser_rows > 0 for one in found)


@pytest.mark.parametrize("name", ONE)
def test_one_branch_is_sampled_plainly_and_takes_no_mitigation(name):
    pipe, side = small_family(name), SIDES.get(name, 16)
    if name == "hunyuan-image":
        pipe.tokenizer_max_length = 256
    settings = {"num_inference_steps": 2, "resolution": (side, side)}
    (found,) = sample(pipe, [Prompt(PROMPTS[0])], get_mitigation("none"), [0], **settings)
    assert found.image.size == (side, side)
    assert found.denoiser_calls == 2
    with pytest.raises(InputError, match="takes no mitigation"):
        list(sample(pipe, [Prompt(PROMPTS[0])], get_mitigation("stp"), [0], **settings))


def test_a_distilled_model_is_sampled_plainly_and_takes_no_mitigation():
    pipe = small_family("flux2-klein")
    pipe.register_to_config(is_distilled=True)
    (found,) = sample(pipe, [Prompt(PROMPTS[0])], get_mitigation("none"), [0], num_inference_steps=2, resolution=(16, 16))
    assert found.denoiser_rows == 2
    with pytest.raises(InputError, match="distilled into the model"):
        list(sample(pipe, [Prompt(PROMPTS[0])], get_mitigation("stp"), [0], num_inference_steps=2))


class OddDenoiser(torch.nn.Module):
    def forward(self, noisy, when, words=None):
        return (noisy,)


class OddPipeline(DiffusionPipeline):
    """Of no family: its denoiser names its arguments as no other does."""
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, prompt, num_inference_steps=3):
        self.scheduler.set_timesteps(num_inference_steps)
        noisy = torch.zeros(len(prompt), 4, 2, 2)
        for t in self.scheduler.timesteps:
            noisy = self.scheduler.step(self.unet(noisy, when=t)[0], t, noisy).prev_sample
        return noisy


def test_a_denoiser_with_names_of_its_own_is_counted():
    pipe = OddPipeline(OddDenoiser(), DDIMScheduler())
    with mitigated(pipe, "none") as run:
        pipe(["a cat", "a bus"])
    assert run.denoiser_rows == [3, 3]
    assert run.timesteps == pipe.scheduler.timesteps.tolist()


def test_scales_are_the_pipelines_own_where_none_is_given():
    assert guidance_scale_of(small_family("z-image")) == 6.0         # 5, and 0 is off
    assert guidance_arguments(small_family("z-image"), 1) == {"guidance_scale": 5.0}
    assert guidance_scale_of(small_family("qwen-image")) == 4.0
    assert guidance_scale_of(small_family("qwen-image"), 3.0) == 3.0
    assert [two_branch_scale(cached_pipeline("sd")), two_branch_scale(small_family("z-image"))] == [7.5, 6.0]
    assert two_branch_scale(cached_pipeline("flux")) == 4.0          # its own is off
    assert two_branch_scale(cached_pipeline("flux"), 3.0) == 3.0


def test_a_step_without_guidance_is_refused_beside_a_mitigation():
    pipe = small_family("lumina2")
    with mitigated(pipe, "stp:transition=900"), pytest.raises(InputError, match="cfg_trunc_ratio"):
        pipe("a cat", num_inference_steps=2, height=32, width=32, cfg_trunc_ratio=0.5)
