"""The verdict as a picture: what it says, and that it is a picture that browsers draw."""
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from instruments import samples_folder, training_set

from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.badge import COLOURS, badge, badge_text


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Plain guidance copies two pictures of twenty, under two seeds each; an unjudged method copies all."""
    data = training_set(tmp_path_factory.mktemp("data") / "train", 20)
    folder = samples_folder(tmp_path_factory.mktemp("made") / "s", data, lambda method, i, seed: i < 2)
    return score_samples(folder, data, verify=False)


def test_it_says_the_outcome_and_how_many_images_are_copies(report):
    assert badge_text(report) == "failed, 4 of 40 images are copies"
    picture = ET.fromstring(badge(report))
    assert picture.get("aria-label") == "memorization audit: failed, 4 of 40 images are copies"
    assert COLOURS["failed"] in badge(report)
    assert int(picture.get("width")) > 200


def contrast_with_white(colour):
    """WCAG 2's contrast ratio."""
    shares = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@pytest.mark.parametrize("outcome", ["passed", "failed", "undecided"])
def test_each_outcome_can_be_read(report, outcome):
    told = replace(report, verdict=replace(report.verdict, outcome=outcome))
    assert outcome in ET.fromstring(badge(told)).get("aria-label")
    assert contrast_with_white(COLOURS[outcome]) >= 4.5
