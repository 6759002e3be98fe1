"""What a verified match changes: rates, own rates, leaks, rules, headline, JUnit; a part counts apart."""
import json
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
from instruments import finder, laid, samples_folder, training_set

from rotescope.common.errors import InputError
from rotescope.datasets.geometry.match import WHOLE, SharedElement
from rotescope.evaluate.measurement import control_lines, findings
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.measurement.planted import Planted
from rotescope.evaluate.report.exports import junit, metadata, model_card, write_pairs
from rotescope.evaluate.report.html import render_report
from rotescope.evaluate.verdict.rules import Rule

FLIP = (-1, 0, 1, 0, 1, 0)
HALF = (0.5, 0, 0.25, 0, 0.5, 0.25)  # pasted at half size into the middle
IMAGE = "none/images/P{:05d}-S{}.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Forty prompts, two images each, all of them noise but for prompt 0, whose images are copies to the pixel."""
    return samples_folder(tmp_path_factory.mktemp("made") / "s", data, lambda method, i, seed: i == 0)


@pytest.fixture
def scored(data, folder, monkeypatch):
    """-> a function: {image: matches}, options of finder, options of score_samples -> Report."""
    def score(found, rule=(), chance=0.0, n=10_000, shared=(), **more):
        monkeypatch.setattr(findings, "make_matcher", finder(found, chance, n, shared))
        return score_samples(folder, data, rule=rule, **more)
    return score


def pair(report, image):
    return next(p for p in report.pairs if p.image == image)


def test_a_copy_only_by_a_verified_match_counts_everywhere(scored, data, tmp_path):
    image = IMAGE.format(7, 1)
    rules = (f"any_copies_of:{data[7].image_id}", f"any_copies_of:{data[8].image_id}", "copies>2", "copies>3", "partial_copies>0")
    report = scored({image: [laid(7, FLIP, mirrored=True)]}, rules)
    found = report["none"]["ungrouped"]
    assert (found.copies, found.own_copies, found.partial_copies, found.prompts_copied) == (3, 3, 0, 2)
    assert found.copy_rate.value == found.own_copy_rate.value == 3 / 80
    assert found.copies_by == {"descriptor": 2, "exact": 2, "points": 1}
    assert found.leaked_prompts == found.leaked_prompts_any == 2  # of its own image, which is as sure as an identical one
    assert [r.outcome for r in report.verdict.rules] == ["failed", "passed", "failed", "passed", "passed"]
    assert report.verdict.headline == "The generated images reproduce training images."
    one = pair(report, image)
    assert (one.is_copy, one.is_partial, one.copied_by, one.nearest) == (True, False, ("points",), data[7].image_id)
    assert (one.match.training_image, one.match.description) == (data[7].image_id, "mirrored")
    told = next(p for p in report.prompts if p.prompt_index == 7)
    assert (told.copies, told.leaked, told.significant) == (1, True, False)
    cases = ET.fromstring(junit(report)).findall("testsuite[@name='none']/testcase")
    assert [i for i, case in enumerate(cases) if case.find("failure") is not None] == [0, 7]
    assert "copy</span>, though only" in render_report(report)
    write_pairs(report, tmp_path / "pairs.parquet")
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.to_pylist() == json.loads(report.to_json())["pairs"]
    assert table.schema.metadata[b"points_threshold"] == b"9.0"


def test_a_copy_of_a_part_counts_apart(scored, data):
    parts = {IMAGE.format(i, 0): [laid(i, HALF, 1.0, 0.25)] for i in range(1, 9)}
    report = scored(parts, ("copy_rate>0.3", "partial_copies>7", "partial_copies>8", "partial_copy_rate>0.5", "own_copy_rate>0.3",
                            f"any_copies_of:{data[3].image_id}", "leaked_prompts>1", "leaked_prompts_any>1"))
    found = report["none"]["ungrouped"]
    assert (found.copies, found.partial_copies, found.own_copies) == (2, 8, 2)
    assert found.partial_copy_rate.value == 8 / 80
    assert found.partial_copy_rate.low < 8 / 80 < found.partial_copy_rate.high
    assert found.partial_above_chance
    assert (found.leaked_prompts, found.leaked_prompts_any, found.prompts_copied) == (1, 9, 1)
    outcomes = {r.rule: r.outcome for r in report.verdict.rules}
    assert [rule for rule, outcome in outcomes.items() if outcome == "failed"] == ["partial_copies>7", "leaked_prompts_any>1"]
    assert outcomes["partial_copy_rate>0.5"] == "passed"
    assert "2 of 80 images copy a training image: 2.5% (0.1–13%); 8 more copy a part of one: 10%" in report.verdict.text
    one = pair(report, IMAGE.format(3, 0))
    assert (one.is_copy, one.is_partial, one.copied_by, one.nearest) == (False, True, (), data[3].image_id)
    assert [p.is_partial for p in report.pairs[:11]] == [False] * 2 + [True] * 8 + [False]  # copies, parts, the closest
    page = render_report(report)
    assert "<h2>Copies of a part</h2>" in page
    assert "8 of 80 images" in page
    assert "| 2 of 80 | 2.5% (0.1–13%) | 8 of 80 |" in model_card(report)
    assert "partial_copy_rate" in metadata(report)
    assert "8 of 80: 10%" in report._repr_html_()


def test_a_case_of_junit_fails_for_a_part_only_where_a_rule_is_on_parts(scored):
    parts = {IMAGE.format(4, 0): [laid(4, HALF, 1.0, 0.25)]}

    def case(*rules):
        return ET.fromstring(junit(scored(parts, rules))).findall("testsuite[@name='none']/testcase")[4]
    whole, part = case("copies>0"), case("partial_copies>0")
    assert "no rule is on copies of a part" in whole.find("skipped").get("message")
    assert "0 of 2 images copy a training image, 1 a part of one" in part.find("failure").get("message")


def test_the_headline_never_says_none_where_parts_were_copied(data, tmp_path, monkeypatch):
    folder = samples_folder(tmp_path / "s", data, lambda *_: False)
    parts = {IMAGE.format(i, 0): [laid(i, HALF, 1.0, 0.25)] for i in range(23)}
    monkeypatch.setattr(control_lines, "plant", lambda *_: Planted(24, 24))  # a Matcher that is told its matches finds none
    heads = []
    for found in ({}, dict(list(parts.items())[:1]), parts):
        monkeypatch.setattr(findings, "make_matcher", finder(found))
        heads.append(score_samples(folder, data, rule="copies>0").verdict.headline)
    assert heads == ["None of 80 images copies a training image.",
                     "None of 80 images copies a training image as a whole; 1 copies a part of one.",
                     "None of 80 images copies a training image as a whole; 23 copy a part of one."]
    verdict = score_samples(folder, data, rule="partial_copies>5").verdict
    assert (verdict.outcome, verdict.headline) == ("failed", "The generated images reproduce parts of training images.")


def test_where_chance_brings_as_many_nothing_is_red(scored):
    """Of 80 images chance verifies 8: three are fewer."""
    parts = {IMAGE.format(i, 0): [laid(20, HALF, 1.0, 0.25)] for i in (1, 2, 3)}
    report = scored(parts, "partial_copies>0", chance=0.1)
    found = report["none"]["ungrouped"]
    assert (found.partial_copies, found.partial_above_chance, found.above_chance) == (3, False, False)
    assert found.leaked_prompts_any == 1  # the one whose images are copies to the pixel
    page = render_report(report)
    assert "No more than chance explains, which brings about 8." in page
    assert "More than chance brings" not in page
    assert "By chance, a match is verified for 10% of pictures that copy nothing." in report.verdict.text


def test_a_match_of_another_image_leaks_only_with_significance(scored):
    """40 prompts of 2 images: 1 − (1 − c)² with c = 1 / (n + 1) is one of four p-values of a prompt, so four times that must
    come down to 2 · 0.01 / 40, since another prompt's images are copies to the pixel."""
    one = {IMAGE.format(5, 0): [laid(30)]}
    leaked = {n: scored(one, n=n)["none"]["ungrouped"].leaked_prompts for n in (15_500, 16_500)}
    smallest = {n: 4 * (1 - (1 - 1 / (n + 1)) ** 2) for n in leaked}
    assert {n: p <= 2 * 0.01 / 40 for n, p in smallest.items()} == {15_500: False, 16_500: True}
    assert leaked == {15_500: 1, 16_500: 2}
    part = {IMAGE.format(5, 0): [laid(30, HALF, 1.0, 0.25)]}
    few = scored(part, "leaked_prompts_any>1", n=10_000)
    assert few["none"]["ungrouped"].unresolved_prompts_any == 1
    assert few.verdict.outcome == "undecided"  # its adjusted p is .016: not surely chance, not surely none
    assert scored(part, "leaked_prompts_any>1", n=16_500).verdict.outcome == "failed"
    assert scored(part, "leaked_prompts_any>1", n=400).verdict.rules[0].outcome == "passed"  # as chance brings


def test_what_a_verified_match_copies_stands_beside_it(scored, data):
    """It tells better than the descriptor what is copied, and less well than the exact layer; a twin goes by either."""
    exact, other = IMAGE.format(0, 0), IMAGE.format(9, 0)
    report = scored({exact: [laid(5)], other: [laid(6, HALF, 1.0, 0.25, score=50.0), laid(9), laid(11)]},
                    [f"any_copies_of:{data[i].image_id}" for i in (0, 5, 6, 9, 11)])
    assert [r.outcome for r in report.verdict.rules] == ["failed", "failed", "passed", "failed", "failed"]
    assert pair(report, exact).nearest == data[0].image_id
    assert pair(report, exact).match.training_image == data[5].image_id
    assert (pair(report, other).nearest, pair(report, other).match.training_image) == (data[9].image_id,) * 2


def test_what_was_not_sought_is_no_zero(scored):
    report = scored({}, verify=False)
    found = report["none"]["ungrouped"]
    assert report.verification is None
    assert (found.partial_copies, found.partial_copy_rate, found.leaked_prompts_any) == (None, None, None)
    assert 'id="parts"' not in render_report(report)
    for rule in ("partial_copies>0", "partial_copy_rate>0.05", "leaked_prompts_any>0"):
        with pytest.raises(InputError, match="pass --verify true"):
            scored({}, rule, verify=False)


def test_shared_elements_are_named(scored, data):
    element = SharedElement((1, 2, 3, 4, 5, 6, 7), tuple(range(12)), WHOLE)
    report = scored({}, shared=[element])
    assert "An element that 7 training pictures share was found in 12 images: counted for none." in report.notes
    assert report.verification.shared[0].training_images == tuple(data[i].image_id for i in range(1, 8))
    assert "one of 7 of them, found in 12 images." in render_report(report)


def test_rules_on_parts_read_as_written():
    assert str(Rule.parse("og-stp:partial_copy_rate>0.05")) == "og-stp:partial_copy_rate>0.05"
    assert Rule.parse("partial_copy_rate>0.05").needs == Rule.parse("copy_rate>0.05").needs
    assert np.isfinite(Rule.parse("partial_copies>0").needs)
    with pytest.raises(InputError, match="no number of images"):
        Rule.parse("partial_copy_rate>0")
