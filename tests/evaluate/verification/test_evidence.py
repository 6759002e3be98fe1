"""How sure a match is, and elements that training pictures share: by hand."""
import math

import numpy as np
import pytest

from rotescope.datasets.geometry.match import Match, MatchThreshold, chance_of_match
from rotescope.evaluate.verification.evidence import ABSENT, Evidence, drawn_evidence
from rotescope.evaluate.verification.shared_elements import elements_apart

USUAL = {"points": (1.0, 1.5), "pixels": (1.0, 0.25)}
WHOLE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORNER = (0.2, 0.0, 0.8, 0.0, 0.2, 0.8)


def match(row, verifier="points", score=10.0, transform=WHOLE, share=1.0):
    return Match(row, verifier, score, transform, share, share)


def test_the_scores_of_both_verifiers_add_up():
    (found,) = Evidence(USUAL).weighed([match(3, "points", 4.0), match(3, "pixels", 1.5)])
    assert found.score == pytest.approx((4 - 1) / 1.5 + (1.5 - 1) / 0.25)
    assert (found.row, found.verifier) == (3, "points")  # 2 and 2 are equal: the first
    (found,) = Evidence(USUAL).weighed([match(3, "pixels", 2.0)])
    assert found.score == pytest.approx(4 + ABSENT)
    (found,) = Evidence(USUAL).weighed([match(3, "pixels", -9.0), match(3, "points", 5.5)])
    assert found.score == pytest.approx(ABSENT + 3)
    assert found.verifier == "points"


def test_copies_come_first_and_then_the_surest():
    several = [match(1, score=20, share=0.2), match(2, score=12), match(4, score=15), match(5, score=2)]
    assert [m.row for m in Evidence(USUAL).surest(several)] == [4, 2, 1]


def test_the_threshold_is_the_quantile_of_an_exponential_tail():
    """Of exponential scores the evidence for one verifier has the threshold log(0.1 / α), whatever their scale."""
    rng = np.random.default_rng(0)
    null = [[match(0, "points", score)] for score in 3 + 2 * rng.exponential(size=20_000)]
    drawn = drawn_evidence({"points": USUAL["points"]}, null, (), 0.999)
    assert drawn.tails["points"] == pytest.approx((3 + 2 * math.log(10), 2), rel=0.03)
    assert drawn.threshold == pytest.approx(math.log(100), rel=0.06)
    assert drawn.chance == pytest.approx(0.001, abs=0.0007)
    assert drawn.n == 20_000


def test_one_look_alike_among_many_moves_nothing():
    null = [[match(0, "points", score)] for score in np.linspace(0, 3, 100)]
    pair = [[match(0, "points", 60.0)], *null[1:]]
    assert drawn_evidence(USUAL, pair, (), 0.999).threshold == pytest.approx(
        drawn_evidence(USUAL, null, (), 0.999).threshold, rel=0.1)


def test_a_spread_from_few_scores_is_drawn_to_the_usual_one():
    """Of 100 scores from 0.01 to 1 ten lie beyond the quantile 0.90, and 0.05 / log 2 is their spread: 10 against 30 of 0.25."""
    null = [[match(0, "pixels", (i + 1) / 100)] for i in range(100)]
    level, spread = drawn_evidence({"pixels": USUAL["pixels"]}, null, (), 0.999).tails["pixels"]
    assert level == pytest.approx(0.91)
    assert spread == pytest.approx((10 * 0.05 / math.log(2) + 30 * 0.25) / 40)


def test_with_few_pictures_the_usual_tail_is_taken():
    drawn = drawn_evidence(USUAL, [[]] * 12, (), 0.999)
    assert drawn.tails == USUAL
    assert drawn.threshold == pytest.approx(math.log(100))
    assert "too few" in drawn.rule
    assert (drawn.n, drawn.chance) == (12, 0.0)
    assert drawn_evidence(USUAL, [], (), 0.999).chance == 0.0


def test_a_null_without_any_match_does_not_let_everything_count():
    """Where no null picture matches anything, the quantile is as low as evidence gets."""
    drawn = drawn_evidence(USUAL, [[]] * 80, (), 0.999)
    assert drawn.threshold == pytest.approx(math.log(100))
    assert drawn.surest([match(0, "points", 2.0)]) == ()


def test_chance_is_a_share_of_training_and_heldout_pictures():
    null = [[match(0, "points", score)] for score in np.linspace(0, 3, 96)]
    held = [[match(0, "points", 30.0)], [], [], []]
    drawn = drawn_evidence(USUAL, null, held, 0.999)
    assert (drawn.n, drawn.chance) == (100, 0.01)
    both = [MatchThreshold(name, drawn.threshold, "", drawn.n, drawn.chance) for name in USUAL]
    assert chance_of_match(both) == 0.01  # the verifiers are judged together


def test_what_three_training_pictures_share_counts_for_none():
    logo = [match(row, score=20 + row, transform=CORNER, share=0.04) for row in range(3)]
    kept, shared = elements_apart([logo, logo[:2]], 4.6, {})
    assert kept[0] == ()
    assert [m.row for m in kept[1]] == [0, 1]
    (element,) = shared
    assert set(element.rows) == {0, 1, 2}
    assert element.images == (0,)


def test_a_copy_stays_a_copy_though_others_share_its_logo():
    whole = match(7, score=90.0)
    logo = [match(row, score=12, transform=CORNER, share=0.04) for row in range(3)]
    kept, _ = elements_apart([[whole, *logo]], 4.6, {})
    assert [m.row for m in kept[0]] == [7]


def test_twins_share_nothing_but_the_picture():
    twins = {row: {0, 1, 2} for row in range(3)}
    same = [match(row, score=50) for row in range(3)]
    kept, shared = elements_apart([same], 4.6, twins)
    assert [m.row for m in kept[0]] == [0, 1, 2]
    assert shared == ()
