"""Ten signals of a picture: against the scheduler's own noising and the denoiser's own call, and by invariance."""
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from families.more_families import small_family
from test_detectors import rows_of
from tiny import cached_pipeline, image_folder

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.detectors.loss_profile import (
    check_profiled_family,
    loss_profiles,
    profile_timesteps,
    signal_names,
)
from rotescope.mitigate.sampling.jobs import noise_seed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tuple(load_source(image_folder(tmp_path_factory.mktemp("pictures"), n=3)))


@torch.no_grad()
def test_they_are_the_logarithms_of_mean_denoising_losses(pictures):
    pipe = cached_pipeline("sd")
    found, rows = rows_of(pipe.unet, lambda: loss_profiles(pipe, pictures[2:3], n=2, seed=5))
    assert rows == 20
    scheduler, latents = DDPMScheduler.from_config(pipe.scheduler.config), image_latents(pipe, [pictures[2].open()])
    texts = pipe.encode_prompt([pictures[2].captions[0]], "cpu", 1, True)[:2]       # with the caption, without
    by_hand = []
    for text in texts:
        for t in (100, 300, 500, 700, 900):
            losses = []
            for seed in (5, 6):
                generator = torch.Generator().manual_seed(noise_seed(f"timestep {t}", seed))
                noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
                x = scheduler.add_noise(latents, noise, torch.tensor([t]))
                losses.append(torch.nn.functional.mse_loss(pipe.unet(x, t, text).sample, noise).item())
            by_hand.append(np.log(np.mean(losses)))
    np.testing.assert_allclose(found, [by_hand], rtol=1e-5, atol=1e-6)
    assert profile_timesteps(pipe) == [100, 300, 500, 700, 900]
    assert signal_names([100, 900]) == ["log_error_caption_100", "log_error_caption_900", "log_error_no_caption_100",
                                        "log_error_no_caption_900"]


@torch.no_grad()
def test_under_flow_matching_they_are_of_the_velocity(pictures):
    pipe = cached_pipeline("sd3")
    found = loss_profiles(pipe, pictures[:1], n=1, seed=5)
    latents, caption = image_latents(pipe, [pictures[0].open()]), pictures[0].captions[0]
    generator = torch.Generator().manual_seed(noise_seed("timestep 700", 5))
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    for column, text in ((3, caption), (8, "")):
        states, _, pooled, _ = pipe.encode_prompt(text, text, text, do_classifier_free_guidance=False)
        said = pipe.transformer(0.3 * latents + 0.7 * noise, timestep=torch.tensor([700.0], dtype=latents.dtype),
                                encoder_hidden_states=states, pooled_projections=pooled).sample
        assert found[0, column] == pytest.approx(torch.nn.functional.mse_loss(said, noise - latents).log().item(), rel=1e-4)


@pytest.mark.parametrize("name", [
    "sd", "sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "flux", "pixart", "qwen-image", "z-image",
                                                                           "prx", "chroma"))])
def test_the_batch_changes_nothing_and_the_seed_does(name, pictures):
    """Captions of several lengths, too."""
    pipe, ticks = small_family(name) if name not in ("sd", "sd3") else cached_pipeline(name), []
    together = loss_profiles(pipe, pictures, n=1, on_picture=lambda: ticks.append(0))
    assert (together.shape, len(ticks)) == ((3, 10), 3)
    assert np.isfinite(together).all()
    tolerance = 1e-6 if name in ("sd", "sd3") else 1e-3
    apart = loss_profiles(pipe, pictures[::-1], n=1, batch_size=2)[::-1]
    np.testing.assert_allclose(apart, together, rtol=tolerance, atol=tolerance)
    assert np.abs(loss_profiles(pipe, pictures[:1], n=1, seed=1) - together[:1]).max() > 1e-3


def test_what_has_no_known_loss_is_refused():
    with pytest.raises(InputError, match="the families whose loss is known: sd, "):
        loss_profiles(object(), ())
    with pytest.raises(InputError, match="HiDreamImagePipeline is of none of the families"):
        check_profiled_family("HiDreamImagePipeline", "hidream")
    with pytest.raises(InputError, match="Flux2KleinPipeline does not compute both: its guidance is distilled"):
        check_profiled_family("Flux2KleinPipeline", "flux2-klein", True)
    check_profiled_family("StableDiffusionPipeline", "sd")
