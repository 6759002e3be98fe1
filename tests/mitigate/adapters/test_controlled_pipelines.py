"""ControlNet and T2I-Adapter classes of the families, and Kolors: served as their family is, or refused before sampling."""
import diffusers
import pytest
import torch
from families.mixed_by_hand import mixed_by_hand
from families.more_families import SETTINGS
from families.tiny_controls import CONTROLLED, controlled
from tiny import SETTINGS as FIRST
from tiny import seeded

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import denoiser_of, family, family_of_class, guidance_arguments
from rotescope.mitigate.contract.mitigation import GuidanceRun, Mitigation

PROMPTS, STEPS, SCALE = ("a cat on a red background", "a bus"), 6, 4.0
DRAWN = ("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline",
         "QwenImageControlNetInpaintPipeline")
# these draw the picture's latents from the generator of all, in one go: an image depends on its batch without a mitigation, too
NAMES = [name for name in CONTROLLED if name != "FluxControlNetImg2ImgPipeline"]


def latents(pipe, given, prompts=PROMPTS, seeds=(1, 2)):
    """Final latents of the stock call, with the picture that guides it once a prompt."""
    each = {key: value.expand(len(prompts), -1, -1, -1) if isinstance(value, torch.Tensor) else value
            for key, value in given.items() if key != "negative_prompt"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pipe(prompt=list(prompts), num_inference_steps=STEPS, output_type="latent",
                    generator=[torch.Generator().manual_seed(s) for s in seeds],
                    **guidance_arguments(pipe, len(prompts), SCALE), **each).images


class AskingRun(GuidanceRun):
    def branches(self, timestep):
        return (torch.ones(2, dtype=torch.bool),) * 2

    def guide(self, step):
        again = step.denoise()
        torch.testing.assert_close(again, step.cond, atol=1e-4, rtol=1e-4)
        return again


class Asking(Mitigation):
    """Conditional sampling by one more call of the denoiser a step, which says what the first one said."""
    def begin(self, n, guidance_scale, device):
        return AskingRun()


def check_contract(pipe, given, of_its_batch=False):
    """Plain guidance is the stock pipeline, opposite guidance a plain loop, an image the same alone, and nothing is left."""
    kind, kept = type(pipe), set(vars(denoiser_of(pipe)))
    stock = latents(pipe, given)
    assert stock.isfinite().all()
    with mitigated(pipe, "none") as run:
        assert torch.equal(latents(pipe, given), stock)
    steps = len(run.timesteps)
    assert run.denoiser_rows == [2 * steps] * 2
    opposite = f"og-stp:transition={round((run.timesteps[1] + run.timesteps[2]) / 2)}"
    with mitigated(pipe, opposite) as run:
        found = latents(pipe, given)
        alone = latents(pipe, given, PROMPTS[1:], [2])
    assert run.active == [True] * 3
    with mixed_by_hand(pipe, family(pipe), [-2.0, -2.0] + [SCALE] * (steps - 2)):
        torch.testing.assert_close(found, latents(pipe, given), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, stock, atol=1e-3)
    assert of_its_batch or torch.allclose(alone, found[1:], atol=1e-4, rtol=1e-4)
    assert torch.equal(latents(pipe, given), stock)
    assert type(pipe) is kind
    assert set(vars(denoiser_of(pipe))) - kept <= {"_diffusers_hook"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_controlled_pipeline_is_served_as_its_family(name):
    expected, _, beside = CONTROLLED[name]
    pipe = controlled(name)
    assert family(pipe) == expected
    given = FIRST.get(expected, {}) | SETTINGS.get(expected, {}) | beside
    if "Img2Img" in name:
        given = {key: value for key, value in given.items() if key not in ("height", "width")}
    check_contract(pipe, given, name in DRAWN)
    key = "control_image" if "control_image" in beside else "image"
    assert not torch.allclose(latents(pipe, given | {key: 1 - given[key]}), latents(pipe, given), atol=1e-4)


@pytest.mark.slow
def test_kolors_is_served():
    pytest.importorskip("sentencepiece")
    from families.tiny_kolors import kolors
    check_contract(seeded(kolors), {"height": 16, "width": 16, "max_sequence_length": 24})


def test_a_class_without_the_argument_of_two_branches_is_refused_before_sampling():
    pipe = controlled("FluxControlNetImg2ImgPipeline")
    with pytest.raises(InputError, match="takes no true_cfg_scale, and so computes one branch"), mitigated(pipe, "og-stp"):
        pass
    for name in ("StableDiffusionControlNetXSPipeline", "StableDiffusionControlNetPAGPipeline", "FluxControlPipeline"):
        assert hasattr(diffusers, name)
        assert family_of_class(name) == "other"   # which takes no mitigation


def test_an_adapters_features_reach_every_call_of_a_step():
    """A UNet takes them off the list that it is given."""
    pipe = controlled("StableDiffusionAdapterPipeline")
    with mitigated(pipe, Asking()) as run:
        latents(pipe, CONTROLLED["StableDiffusionAdapterPipeline"][2])
    assert run.denoiser_rows == [3 * STEPS] * 2


@pytest.mark.parametrize("kind", ["StableDiffusionControlNetPipeline", "StableDiffusionAdapterPipeline"])
def test_a_mitigation_that_asks_the_denoiser_before_sampling_is_refused_beside_a_control(kind):
    pipe, asked = controlled(kind), []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(module))
    for name in ("sharpness-step", "prompt-optimisation"):
        with pytest.raises(InputError, match="nothing of the picture that guides"), mitigated(pipe, name):
            latents(pipe, CONTROLLED[kind][2])
    handle.remove()
    assert not asked
