"""Mitigations while training: by hand, and by what must not change."""
from dataclasses import replace

import pytest
import torch
from tiny import tiny_pipeline
from training import config_of, largest_difference, weights

from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.train.families import Predictor
from rotescope.train.finetune import finetune
from rotescope.train.latents import Preprocessing, encode
from rotescope.train.loop import DenoisingLoss, GlobalBatches
from rotescope.train.mitigations import TO_EPSILON, TrainingMitigation
from rotescope.train.objective import TARGETS, add_noise, draw_levels, noise_schedule

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(images):
    """Pipeline, its Predictor, what it is trained on, its noise schedule."""
    pipe = tiny_pipeline("v_prediction")
    encoded = encode(load_source(images), pipe, Preprocessing(16), {"vae": "v", "text": "t"})
    return pipe, Predictor(pipe, ("unet",)), encoded, noise_schedule(pipe.scheduler)


def batch_of(setting, mitigation, size=8, **changes):
    _, _, encoded, schedule = setting
    return next(GlobalBatches(encoded, [1] * 6, size, draw_levels(schedule), mitigation=mitigation, **changes))


def test_blended_captions_and_noise_are_as_by_hand(setting):
    pipe, predictor, encoded, schedule = setting
    mitigation = TrainingMitigation(rand_noise_lam=0.1, mixup_noise_lam=2.0)
    batch, plain = batch_of(setting, mitigation), batch_of(setting, TrainingMitigation())
    assert torch.equal(batch.noise, plain.noise)  # what is drawn for the mitigation comes last
    assert sorted(batch.partners.tolist()) == sorted(batch.captions.tolist())
    table = encoded.texts["text"]
    text = batch.shares[0] * table[batch.captions] + (1 - batch.shares[0]) * table[batch.partners] + 0.1 * batch.text_noise
    alpha, sigma = schedule.rates(batch.levels)
    mean, std = encoded.moments(batch)
    x0 = mean + std * batch.posterior_noise
    with torch.no_grad():
        prediction = pipe.unet(add_noise(x0, batch.noise, alpha, sigma), batch.levels, text).sample
        ours = DenoisingLoss(encoded, schedule, CPU, mitigation=mitigation)(predictor, batch)
    target = alpha * batch.noise - sigma * x0
    torch.testing.assert_close(ours, (prediction - target).square().mean((1, 2, 3)))


def test_shares_have_their_distribution(setting):
    """Beta(m, 1) has the mean m / (m + 1); one share for a batch, as its authors draw it."""
    generator, mitigation = torch.Generator().manual_seed(0), TrainingMitigation(mixup_noise_lam=3.0)
    shares = torch.stack([mitigation.draw(torch.arange(2), (1, 1), generator)["shares"] for _ in range(4000)])
    assert torch.equal(shares[:, 0], shares[:, 1])
    assert shares.mean().item() == pytest.approx(0.75, abs=0.01)


def test_a_split_batch_keeps_its_disturbance(setting):
    batch = batch_of(setting, TrainingMitigation(rand_noise_lam=0.1, mixup_noise_lam=2.0))
    parts = batch.split(4)
    assert torch.equal(torch.cat([p.text_noise for p in parts]), batch.text_noise)
    assert torch.equal(torch.cat([p.partners for p in parts]), batch.partners)
    assert batch_of(setting, TrainingMitigation()).split(4)[0].partners is None


def test_samples_beyond_the_threshold_are_skipped(setting):
    """The gap by hand: alpha || v_cond - v_uncond ||; half of the samples are above its median."""
    pipe, predictor, encoded, schedule = setting
    batch = batch_of(setting, TrainingMitigation(), caption_dropout=0.3)
    alpha, sigma = schedule.rates(batch.levels)
    mean, std = encoded.moments(batch)
    noisy = add_noise(mean + std * batch.posterior_noise, batch.noise, alpha, sigma)
    table = encoded.texts["text"]
    with torch.no_grad():
        pair = [pipe.unet(noisy, batch.levels, table[rows]).sample for rows in (batch.captions, torch.zeros_like(batch.captions))]
        gaps = (alpha * (pair[0] - pair[1])).flatten(1).norm(dim=1)
        threshold = gaps.median().item() + 1e-6
        plain = DenoisingLoss(encoded, schedule, CPU)(predictor, batch)
        ours = DenoisingLoss(encoded, schedule, CPU, mitigation=TrainingMitigation(hard_threshold=threshold))(predictor, batch)
    assert 0 < (gaps >= threshold).sum() < len(gaps)
    torch.testing.assert_close(ours, plain * (gaps < threshold))
    assert gaps[batch.captions == 0].max() == 0


@pytest.mark.parametrize("kind", TARGETS)
def test_gaps_count_in_epsilon(kind):
    """Two guesses of epsilon at the same x_t, each told as the model would tell it."""
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8) if kind != "flow" else torch.tensor(0.4)
    x_t, eps = torch.randn(5), torch.randn(2, 5)
    x0 = (x_t - sigma * eps) / alpha
    told = TARGETS[kind](x0, eps, alpha, sigma)
    torch.testing.assert_close(TO_EPSILON[kind](alpha, sigma) * (told[0] - told[1]).abs(), (eps[0] - eps[1]).abs())


def test_a_threshold_that_nothing_reaches_changes_nothing(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "plain")
    plain = weights(finetune(config, progress=False))
    for name, changes, same in (("high", {"hard_threshold": 1e9}, True), ("noise", {"rand_noise_lam": 0.5}, False),
                                ("mixup", {"mixup_noise_lam": 1.0}, False)):
        other = weights(finetune(replace(config, output_dir=str(tmp_path / name), **changes), progress=False))
        assert (largest_difference(plain, other) == 0) == same


@pytest.mark.parametrize(("changes", "message"), [
    ({"mixup_noise_lam": 0.0}, "--mixup_noise_lam 0.0: it should be above 0"),
    ({"rand_noise_lam": 0.1, "lora": True, "train_text_encoder": True}, "leave out --train_text_encoder")])
def test_what_a_mitigation_cannot_do_is_bad_input(base, images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(config_of(base, images, tmp_path / "out", **changes), progress=False)
