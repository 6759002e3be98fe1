"""Mitigations while training: by hand, and by what must not change."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline
from training import config_of, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import PERTURBATIONS, add_words, token_words
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.models.prediction import TARGETS, eps_slope, noisy_latents
from rotescope.train.encodings.encode import Preprocessing, encode, encode_texts
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.families import Predictor
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.objective.training_mitigations import LossBank, PerturbedCaptions, TrainingMitigation

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
        prediction = pipe.unet(noisy_latents(x0, batch.noise, alpha, sigma), batch.levels, text).sample
        ours = DenoisingLoss(encoded, schedule, CPU, mitigation=mitigation)(predictor, batch)
    target = alpha * batch.noise - sigma * x0
    torch.testing.assert_close(ours, (prediction - target).square().mean((1, 2, 3)))


def test_shares_have_their_distribution(setting):
    """Beta(m, 1) has the mean m / (m + 1); one share for a batch, as its authors draw it."""
    generator, mitigation = torch.Generator().manual_seed(0), TrainingMitigation(mixup_noise_lam=3.0)
    shares = torch.stack([mitigation.draw(torch.tensor([1, 2]), (1, 1), generator)["shares"] for _ in range(4000)])
    assert torch.equal(shares[:, 0], shares[:, 1])
    assert shares.mean().item() == pytest.approx(0.75, abs=0.01)


def test_a_split_batch_keeps_its_disturbance(setting):
    batch = batch_of(setting, TrainingMitigation(rand_noise_lam=0.1, mixup_noise_lam=2.0))
    parts = batch.split(4)
    assert torch.equal(torch.cat([p.text_noise for p in parts]), batch.text_noise)
    assert torch.equal(torch.cat([p.partners for p in parts]), batch.partners)
    assert batch_of(setting, TrainingMitigation()).split(4)[0].partners is None


def perturbed(pipe, probability=0.5):
    mitigation = TrainingMitigation(caption_perturbation="random_token_addition", caption_perturbation_probability=probability)
    return mitigation, PerturbedCaptions.of(mitigation, pipe.tokenizer, partial(encode_texts, pipe=pipe))


def test_perturbed_captions_are_encoded_as_shown(setting):
    """By hand: each sample's own seed changes its caption; the pipeline encodes all of them anew, unchanged ones too."""
    pipe, predictor, encoded, schedule = setting
    mitigation, captions = perturbed(pipe)
    batch, plain = (batch_of(setting, m, caption_dropout=0.3) for m in (mitigation, TrainingMitigation()))
    assert torch.equal(batch.noise, plain.noise)  # what is drawn for the mitigation comes last
    words = token_words(pipe.tokenizer)
    own = [encoded.words[row] for row in batch.captions]
    shown = [text and add_words(text, rng, 2, words) if (rng := np.random.default_rng(seed)).random() < 0.5 else text
             for text, seed in zip(own, batch.caption_seeds.tolist(), strict=True)]
    assert 0 < sum(a != b for a, b in zip(own, shown, strict=True)) < len(own)
    alpha, sigma = schedule.rates(batch.levels)
    mean, std = encoded.moments(batch)
    x0 = mean + std * batch.posterior_noise
    with torch.no_grad():
        text = pipe.encode_prompt(shown, CPU, 1, False)[0]
        prediction = pipe.unet(noisy_latents(x0, batch.noise, alpha, sigma), batch.levels, text).sample
        loss = DenoisingLoss(encoded, schedule, CPU, mitigation=mitigation, captions=captions)
        ours = loss(predictor, batch)
        parts = torch.cat([loss(predictor, part) for part in batch.split(4)])
    torch.testing.assert_close(ours, (prediction - (alpha * batch.noise - sigma * x0)).square().mean((1, 2, 3)))
    torch.testing.assert_close(parts, ours)


def test_samples_beyond_the_threshold_are_skipped(setting):
    """The gap by hand: alpha || v_cond - v_uncond ||; half of the samples are above its median."""
    pipe, predictor, encoded, schedule = setting
    batch = batch_of(setting, TrainingMitigation(), caption_dropout=0.3)
    alpha, sigma = schedule.rates(batch.levels)
    mean, std = encoded.moments(batch)
    noisy = noisy_latents(mean + std * batch.posterior_noise, batch.noise, alpha, sigma)
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


class OneProcess:
    """What a LossBank asks of an Accelerator."""
    device = CPU

    def gather(self, tensor):
        return tensor


class TwoProcesses(OneProcess):
    """The other process saw the same levels, and losses larger by 10."""
    def gather(self, tensor):
        return torch.cat([tensor, tensor + torch.tensor([0.0, 10.0]).view(1, 1, 2, 1)])


def test_samples_well_below_their_levels_mean_are_skipped_by_hand():
    """Decay 0.5. Level 3: 0 -> 2 (of 4) -> 2 (of 2); level 5: 0 -> 4 (of 8) -> 4 (of 4). Kept is a loss from mean / 1.25 on."""
    bank = LossBank(1000, 1.25, 0.5)
    assert bank.kept(torch.tensor([4.0, 8.0]), torch.tensor([3, 5])).tolist() == [1, 1]  # nothing is known yet
    assert bank.kept(torch.tensor([2.0, 4.0]), torch.tensor([3, 5])).tolist() == [1, 1]  # the step is not over
    bank.settle(OneProcess())
    assert bank.mean[[3, 5, 7]].tolist() == [2.0, 4.0, 0.0]
    assert bank.kept(torch.tensor([1.5, 1.7, 3.2, 3.1, 0.0]), torch.tensor([3, 3, 5, 5, 7])).tolist() == [0, 1, 1, 0, 1]


def test_two_processes_losses_are_taken_in_as_the_batch_had_them():
    """Parts go round the processes: 4, 14, 2, 12 at one level, so ((4 / 2 + 14) / 2 + 2) / 2 = 5 and then 17 / 2."""
    bank = LossBank(1000, 1.25, 0.5)
    for loss in (4.0, 2.0):
        bank.kept(torch.tensor([loss]), torch.tensor([3]))
    bank.settle(TwoProcesses())
    assert bank.mean[3] == 8.5
    assert not bank.seen


def test_a_skipped_sample_has_no_loss(setting):
    _, predictor, encoded, schedule = setting
    batch, bank = batch_of(setting, TrainingMitigation()), LossBank(len(schedule), 2.0, 0.0)
    with torch.no_grad():
        plain = DenoisingLoss(encoded, schedule, CPU)(predictor, batch)
        bank.mean[batch.levels] = 2 * plain.median()
        ours = DenoisingLoss(encoded, schedule, CPU, bank=bank)(predictor, batch)
    assert 0 < (ours == 0).sum() < len(ours)
    torch.testing.assert_close(ours, plain * (plain >= plain.median()))


@pytest.mark.parametrize("kind", TARGETS)
def test_gaps_count_in_epsilon(kind):
    """Two guesses of epsilon at the same x_t, each told as the model would tell it."""
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8) if kind != "flow" else torch.tensor(0.4)
    x_t, eps = torch.randn(5), torch.randn(2, 5)
    x0 = (x_t - sigma * eps) / alpha
    told = TARGETS[kind](x0, eps, alpha, sigma)
    torch.testing.assert_close(eps_slope(kind, alpha, sigma) * (told[0] - told[1]), eps[0] - eps[1])


def test_a_threshold_that_nothing_reaches_changes_nothing(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "plain")
    plain = weights(train_model(config, progress=False))
    for name, changes, same in (("high", {"hard_threshold": 1e9}, True), ("noise", {"rand_noise_lam": 0.5}, False),
                                ("mixup", {"mixup_noise_lam": 1.0}, False), ("bank", {"mem_ratio": 1e9}, True)):
        other = weights(train_model(replace(config, output_dir=str(tmp_path / name), **changes), progress=False))
        assert (largest_difference(plain, other) == 0) == same


@pytest.fixture(scope="module")
def plain(base, images, tmp_path_factory):
    """What two steps leave."""
    return train_model(config_of(base, images, tmp_path_factory.mktemp("plain") / "out", max_train_steps=2), progress=False)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbed_captions_reach_the_weights_and_leave_the_counts(base, images, plain, tmp_path, name):
    other = train_model(config_of(base, images, tmp_path / "out", max_train_steps=2, caption_perturbation=name,
                                  caption_perturbation_probability=1.0), progress=False)
    assert largest_difference(weights(plain), weights(other)) > 0
    assert Manifest.load(plain / "manifest.parquet") == Manifest.load(other / "manifest.parquet")


@pytest.mark.parametrize(("changes", "message"), [
    ({"mixup_noise_lam": 0.0}, "--mixup_noise_lam 0.0: it should be above 0"),
    ({"caption_perturbation": "poem"}, f"--caption_perturbation poem: take one of {', '.join(PERTURBATIONS)}"),
    ({"caption_perturbation_probability": 2.0}, "it is a share"), ({"mem_ratio": 0.0}, "--mem_ratio 0.0: it should be above 0"),
    ({"arr_ema_decay": -1.0}, "it is a share"),
    ({"rand_noise_lam": 0.1, "lora": True, "train_text_encoder": True}, "leave out --train_text_encoder")])
def test_what_a_mitigation_cannot_do_is_bad_input(base, images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train_model(config_of(base, images, tmp_path / "out", **changes), progress=False)
