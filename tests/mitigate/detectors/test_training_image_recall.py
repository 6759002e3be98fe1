"""How well a noised training image comes back: against the scheduler's own noising, hand arithmetic, and by invariance."""
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from test_detectors import rows_of
from tiny import cached_pipeline, tiny_pipeline

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.prompts.prompt import Prompt, caption_prompts
from rotescope.mitigate.sampling.jobs import noise_seed


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline().to(torch.float64)


@pytest.fixture(scope="module")
def data(images):
    """-> prompts of six images and one of none, {image_id: Example}."""
    manifest = load_source(images)
    return [*caption_prompts(manifest), Prompt("a crab")], {e.image_id: e for e in manifest}


def test_it_is_the_ratio_of_two_denoising_losses(pipe, data):
    prompts, examples = data
    found = recall_scores(pipe, prompts[2:3], examples, Recall(n=2, timestep=600), seed=5)
    scheduler, losses = DDPMScheduler.from_config(pipe.scheduler.config), []
    with torch.no_grad():
        latents = image_latents(pipe, [examples[prompts[2].image_id].open()])
        texts = pipe.encode_prompt([prompts[2].text], "cpu", 1, True)  # with the caption, without
        for seed in (5, 6):
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(noise_seed(prompts[2].text, seed)),
                                dtype=latents.dtype)
            x = scheduler.add_noise(latents, noise, torch.tensor([600]))
            losses.append([torch.nn.functional.mse_loss(pipe.unet(x, 600, text).sample, noise).item() for text in texts])
    under, without = np.mean(losses, 0)
    assert found == [pytest.approx(math.log(without / under), rel=1e-5)]


def denoised(pipe, kind, text, x):
    """What the denoiser says of x (1, C, h, w) at timestep 600 under a text and under none -> two (1, C, h, w)."""
    both = (text, "")
    if kind == "sd3":
        told = [pipe.encode_prompt(t, t, t, do_classifier_free_guidance=False) for t in both]
        return [pipe.transformer(x, timestep=torch.tensor([600.0], dtype=x.dtype), encoder_hidden_states=e,
                                 pooled_projections=pooled).sample for e, _, pooled, _ in told]
    if kind == "pixart":
        told = [pipe.encode_prompt(t, False, max_sequence_length=120)[:2] for t in both]
        return [pipe.transformer(x, encoder_hidden_states=e, timestep=torch.tensor([600]), encoder_attention_mask=mask,
                                 added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample[:, :4] for e, mask in told]
    cond, uncond, pooled, none = pipe.encode_prompt(text)
    sizes = torch.tensor([[16, 16, 0, 0, 16, 16]], dtype=x.dtype)
    return [pipe.unet(x, 600, e, added_cond_kwargs={"text_embeds": p, "time_ids": sizes}).sample
            for e, p in ((cond, pooled), (uncond, none))]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdxl", pytest.param("sd3", marks=pytest.mark.slow), "pixart"])
def test_other_families_by_their_own_training_losses(kind, data):
    """Flow matching's loss is in velocity: a ratio is the same in ε."""
    (prompts, examples), pipe = data, cached_pipeline(kind)
    latents = image_latents(pipe, [examples[prompts[2].image_id].open()])
    pixels = pipe.image_processor.preprocess(examples[prompts[2].image_id].open().convert("RGB").resize((16, 16))).double()
    torch.testing.assert_close(latents, pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor,
                               atol=1e-6, rtol=1e-6)
    generator = torch.Generator().manual_seed(noise_seed(prompts[2].text, 5))
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    if kind == "sd3":
        x, target = 0.4 * latents + 0.6 * noise, noise - latents
    else:
        x, target = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(latents, noise, torch.tensor([600])), noise
    under, without = (torch.nn.functional.mse_loss(said, target).item() for said in denoised(pipe, kind, prompts[2].text, x))
    found = recall_scores(pipe, prompts[2:3], examples, Recall(n=1, timestep=600), seed=5)
    assert found == [pytest.approx(math.log(without / under), rel=1e-4, abs=1e-7)]


def test_score_by_hand():
    assert Recall(n=2).score([(0.5, 0.25), (1.5, 0.25)]) == pytest.approx(math.log(4))


def test_the_batch_changes_nothing_and_the_price_is_what_it_says(pipe, data):
    prompts, examples = data
    recall, ticks = Recall(n=2), []
    together, rows = rows_of(pipe.unet, lambda: recall_scores(pipe, prompts, examples, recall, on_image=lambda: ticks.append(0)))
    assert rows == recall.rows * 6
    assert len(ticks) == 12
    assert together[-1] is None  # belongs to no image
    assert all(map(math.isfinite, together[:-1]))
    again = recall_scores(pipe, prompts[::-1], examples, recall, batch_size=5)
    np.testing.assert_allclose(again[:0:-1], together[:-1], rtol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Recall(n=0), "n must be 1 or more"), (lambda: Recall(timestep=-1), "the timestep 0 or more"),
])
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_it_cannot_look_at_is_refused(pipe, data):
    prompts, examples = data
    with pytest.raises(InputError, match="belong to none"):
        recall_scores(pipe, prompts[-1:], examples, Recall())
    with pytest.raises(InputError, match="those below 1000"):
        recall_scores(pipe, prompts, examples, Recall(timestep=1000))
    with pytest.raises(InputError, match="the families whose loss is known: sd, "):
        recall_scores(object(), prompts, examples, Recall())
