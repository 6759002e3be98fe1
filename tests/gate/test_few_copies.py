"""Few copies of one training picture among fresh ones: no gate on leaks may pass them, however rough they are."""
import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from rotescope.datasets.emoji.scenes import compose, scenes
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.inputs.pictures_in_memory import data_of
from rotescope.evaluate.measurement.evaluation import score

PROMPTS = 24


@pytest.fixture(scope="module")
def told():
    return list(scenes(500, 14))


def degraded(image, rng):
    """JPEG at quality 30, and noise."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    pixels = np.asarray(Image.open(stream).convert("RGB"), np.float64) + rng.normal(0, 18, (64, 64, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Made:
    """A generated image as `score` takes it."""
    image: Image.Image
    prompt: str
    image_id: str


@pytest.fixture(scope="module")
def training(told):
    """300 pictures with their captions, no two of the first PROMPTS alike in these."""
    first = list({s.caption: s for s in told[:100]}.values())[:PROMPTS]
    chosen = [*first, *told[100:400]]
    manifest, _, _ = data_of([s.image for s in chosen])
    return chosen, Manifest(tuple(replace(e, captions=(s.caption,)) for e, s in zip(manifest, chosen, strict=True)))


def leaks(training, heldout, seed, edit=None):
    """Four fresh images of each of PROMPTS captions; under an edit those of the first are its picture -> Report."""
    rng, (chosen, manifest) = np.random.default_rng(seed), training
    made = [Made(edit(s.image, rng) if edit and not i else compose(s.objects, s.ground, rng).image, s.caption, e.image_id)
            for i, (s, e) in enumerate(zip(chosen[:PROMPTS], manifest, strict=False)) for _ in range(4)]
    return score(made, manifest, heldout_data=heldout, verify=False, copy_threshold=0.99, fail_on="leaked_prompts>0")


@pytest.mark.parametrize("heldout", [100, 800])
def test_four_rough_copies_of_four_do_not_pass_however_many_heldout_pictures(training, heldout):
    """No image reaches the copy threshold, nor is any match sought: that all four are near their own picture is what tells."""
    report = leaks(training, [s.image for s in scenes(heldout, 15)], 0, degraded)
    first = training[0][0].caption
    assert report["none"]["ungrouped"].copies == 0
    assert first in [p.prompt for p in report.prompts if p.leaked or p.unresolved]
    assert report.verdict.outcome in ("failed", "undecided")
