"""Image-to-image and inpainting classes of the families, made of their small pipelines: served by their names."""
import diffusers
import numpy as np
import pytest
import torch
from families.mixed_by_hand import mixed_by_hand
from families.more_families import SETTINGS, SIDES, more_family
from PIL import Image

from rotescope import mitigated
from rotescope.mitigate.contract.families import family, guidance_arguments

PROMPTS, STEPS, SCALE, STRENGTH = ("a cat on a red background", "a bus"), 5, 4.0, 0.8   # so four steps are taken
VARIANTS = {"ZImageImg2ImgPipeline": "z-image", "ZImageInpaintPipeline": "z-image", "QwenImageImg2ImgPipeline": "qwen-image",
            "QwenImageInpaintPipeline": "qwen-image", "ChromaImg2ImgPipeline": "chroma",
            "Flux2KleinInpaintPipeline": "flux2-klein"}   # ChromaInpaintPipeline of diffusers 0.42 fails by itself


def latents(pipe, name):
    """Final latents of two prompts on one picture, half of which an inpainting class keeps."""
    side = SIDES.get(name, 16)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))
    mask = Image.fromarray(np.repeat(np.array([[0] * (side // 2) + [255] * (side // 2)], np.uint8), side, 0))
    own = {key: value for key, value in SETTINGS.get(name, {}).items() if key != "negative_prompt"}
    more = {"mask_image": mask} if "Inpaint" in type(pipe).__name__ else {}
    return pipe(prompt=list(PROMPTS), image=picture, height=side, width=side, strength=STRENGTH, num_inference_steps=STEPS,
                output_type="latent", generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
                **guidance_arguments(pipe, 2, SCALE), **own, **more).images


@pytest.mark.slow
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_variant_is_served_as_its_family(kind):
    name = VARIANTS[kind]
    pipe = getattr(diffusers, kind).from_pipe(more_family(name))
    pipe.set_progress_bar_config(disable=True)
    assert family(pipe) == name
    stock = latents(pipe, name)
    with mitigated(pipe, "none") as run:
        assert torch.equal(latents(pipe, name), stock)
    steps = len(run.timesteps)
    assert run.denoiser_rows == [2 * steps] * 2
    turn = round((run.timesteps[1] + run.timesteps[2]) / 2)
    with mitigated(pipe, f"og-stp:transition={turn}") as run:
        found = latents(pipe, name)
    assert run.active == [True] * 2
    with mixed_by_hand(pipe, name, [-2.0, -2.0] + [SCALE] * (steps - 2)):
        torch.testing.assert_close(found, latents(pipe, name), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, stock, atol=1e-3)
