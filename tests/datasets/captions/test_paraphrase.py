"""Paraphrases by rule: what each rule says it does, and what holds of every text."""
import pytest

from rotescope.datasets.captions.paraphrase import RULES, paraphrases
from rotescope.datasets.emoji.scenes import all_captions

CAPTION, PAIR = "a cat on a blue background", "a cat and a bus on a blue background"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_does_what_it_says(rule):
    before, after = rule.__doc__.split(" -> ")
    assert rule(before) == after


def test_the_order_and_the_limit():
    assert paraphrases(CAPTION) == (
        "on a blue background, a cat", "cat on blue background", "the cat on the blue background", "a cat on a blue backdrop",
        "a picture of a cat on a blue background", "a cat on a blue background.")
    assert paraphrases(CAPTION, 2) == paraphrases(CAPTION)[:2]
    assert paraphrases(PAIR)[1] == "a bus and a cat on a blue background"


@pytest.mark.parametrize("text", [*all_captions()[::97], "Eine Katze", "<b>", "猫", "the\n end.", " a  cat ", "A", "x" * 10_000])
def test_they_differ_from_the_text_and_from_one_another(text):
    found = paraphrases(text)
    assert len(set(found)) == len(found) > 0
    assert " ".join(text.split()) not in found
    assert all(found)


def test_what_says_nothing_has_no_paraphrase():
    assert paraphrases("  ") == ()
