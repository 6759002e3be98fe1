"""How well a noised training image comes back: against the scheduler's own noising, hand arithmetic, and by invariance."""
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from test_detectors import rows_of
from tiny import tiny_pipeline

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
    with pytest.raises(InputError, match="Recall serves sd"):
        recall_scores(object(), prompts, examples, Recall())
