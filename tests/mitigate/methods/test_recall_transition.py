"""Opposite guidance for what is becoming a training image: against the rules that it lies between, and by hand."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import cached_pipeline, image_folder
from tiny_runs import images

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.methods.recall_transition import KnownImages, RecallTransition, describe_latents, known_images
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.methods.transition import PLAIN, TransitionGuidance

PROMPTS = ["a cat", "a bus", "a frog"]
NEVER, ALWAYS = 0.9999, 1e-9
LAYOUT = TransitionGuidance(before=-3.0, colour=1.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    load_source(image_folder(folder / "images", n=12)).save(folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def sampled(mitigation, prompts=PROMPTS, rows=None):
    pipe = cached_pipeline("sd")
    with mitigated(pipe, mitigation) as run:
        return images(pipe, prompts, rows, num_inference_steps=10), run


@pytest.mark.parametrize(("settings", "same_as"), [
    ({"threshold": ALWAYS}, replace(LAYOUT, transition=600)),
    ({"threshold": ALWAYS, "transition": 300, "warm_up": 1000}, replace(LAYOUT, transition=300)),
    ({"threshold": NEVER}, replace(LAYOUT, transition=880)),
    ({"threshold": NEVER, "warm_up": 1000}, PLAIN),
    ({"threshold": NEVER, "warm_up": 700, "before": 0.0, "colour": None}, TransitionGuidance(transition=700)),
], ids=["all", "all from the first step on", "none", "none ever", "delayed"])
def test_who_is_recognised_is_held_back_and_no_other(manifest, settings, same_as):
    ours, run = sampled(RecallTransition(manifest, **settings))
    theirs, other = sampled(same_as)
    torch.testing.assert_close(ours, theirs, atol=1e-6 if settings.get("before") == 0 else 0, rtol=0)  # it computes more rows
    assert run.transition_timesteps == other.transition_timesteps


def test_each_image_goes_its_own_way(manifest, monkeypatch):
    closest = {}

    def kept(self, latents, look=KnownImages.similarity):
        found = look(self, latents)
        closest.update({n: max(value, closest.get(n, -1)) for n, value in zip(rows, found.tolist(), strict=True)})
        return found
    rows = range(3)
    with monkeypatch.context() as patched:
        patched.setattr(KnownImages, "similarity", kept)
        plain, before = sampled(RecallTransition(manifest, threshold=NEVER, warm_up=1000))
    first, second, third = sorted(closest, key=closest.get)
    rule = RecallTransition(manifest, threshold=(closest[first] + closest[second]) / 2, warm_up=1000)
    together, run = sampled(rule)
    assert torch.equal(together[first], plain[first])
    assert run.transition_timesteps[first] == before.transition_timesteps[first] > 900
    assert 600 >= run.transition_timesteps[second] == run.transition_timesteps[third] > 400
    assert {*run.denoiser_rows} == {20}
    for i in rows:
        torch.testing.assert_close(sampled(rule, [PROMPTS[i]], [i])[0][0], together[i], atol=1e-5, rtol=0)


def test_what_is_known_by_hand(manifest):
    pipe = cached_pipeline("sd")
    known = known_images(manifest, pipe)
    assert known_images(manifest, pipe) is known
    latents = image_latents(pipe, [e.open() for e in Manifest.load(manifest)])
    torch.testing.assert_close(known.similarity(latents), torch.ones(12))
    flat = (latents - latents.mean((2, 3), keepdim=True)).flatten(1).numpy()
    cosines = flat @ flat.T / np.outer(*[np.linalg.norm(flat, axis=1)] * 2)
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose(known.to_other, cosines.max(1), atol=1e-5)


def test_the_same_image_twice_counts_once_and_large_latents_are_pooled(manifest, tmp_path):
    folder = image_folder(tmp_path / "images", n=9)
    for name in ("0", "1"):
        for ending in ("png", "txt"):
            (folder / f"twin{name}.{ending}").write_bytes((folder / f"{name}.{ending}").read_bytes())
    load_source(folder).save(tmp_path / "manifest.parquet")
    assert len(known_images(tmp_path / "manifest.parquet", cached_pipeline("sd")).vectors) == 9
    x = torch.rand(2, 4, 64, 64)
    pooled = x.view(2, 4, 32, 2, 32, 2).mean((3, 5))
    torch.testing.assert_close(describe_latents(x), describe_latents(pooled))


@pytest.mark.parametrize(("setting", "complaint"), [
    ("", "or their manifest"), ("training={},quantile=1", "between 0 and 1"), ("training={},threshold=1", "between 0 and 1"),
    ("training={},transition=900", "not below the transition"), ("training=nowhere.parquet", "nowhere.parquet")])
def test_wrong_settings_are_refused_before_a_model_is_loaded(manifest, setting, complaint):
    with pytest.raises(InputError, match=complaint):
        get_mitigation("og-recall:" + setting.format(manifest))


def test_a_warm_up_that_a_schedule_puts_after_the_transition_is_refused(manifest):
    with pytest.raises(InputError, match="warm_up=100: take a warm-up that is not below the transition"):
        sampled(RecallTransition(manifest, transition="noise:0.9", warm_up=100))


def test_too_few_training_images_are_refused(tmp_path):
    load_source(image_folder(tmp_path / "images", n=5)).save(tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="5 training images are too few"):
        sampled(RecallTransition(str(tmp_path / "manifest.parquet")))
