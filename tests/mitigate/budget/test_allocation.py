"""Where the images of an audit go: prompt sets, and plans whose rounds are known by hand."""
import pytest

from rotescope.common.errors import InputError
from rotescope.datasets.captions.paraphrase import paraphrases
from rotescope.datasets.manifest import Example, Manifest
from rotescope.mitigate.budget.allocation import as_record, order_by_score, ranked, seeds_of, uniform, widths
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.prompts.prompt_sets import Sources, gather

# ----- prompt sets

def manifest(*captions, groups=()):
    return Manifest(tuple(Example(f"id{i}", (text,) if text else (), f"{i}.png", None, f"{i:064x}", group=group)
                          for i, (text, group) in enumerate(zip(captions, groups or [""] * len(captions), strict=True))))


TRAIN = manifest("a cat", "a bus", "a frog", "a pig", groups=["duplicated", "control", "", "duplicated"])
HELDOUT = manifest("a crab", "a cat", "a crab", "a gift", "")


def test_each_set_is_a_group_and_says_how_many_prompts_it_has(tmp_path):
    (tmp_path / "own.csv").write_text("prompt,group,image_id\na dog,,\na cow,farm,id1\na hen,farm,\n")
    prompts, sizes = gather(("empty", "heldout", "captions", "empty"), Sources(TRAIN, HELDOUT, tmp_path / "own.csv"))
    assert prompts == [
        Prompt("", "empty"), Prompt("a crab", "heldout"), Prompt("a gift", "heldout"), Prompt("a cat", "duplicated", "id0"),
        Prompt("a bus", "control", "id1"), Prompt("a pig", "duplicated", "id3"), Prompt("a dog", "file"),
        Prompt("a cow", "file farm", "id1"), Prompt("a hen", "file farm")]
    assert {group: size["prompts"] for group, size in sizes.items()} == {
        "empty": 1, "heldout": 2, "duplicated": 2, "control": 1, "file": 1, "file farm": 2}
    assert all(size["sampled"] == size["prompts"] for size in sizes.values())


def test_paraphrases_belong_to_the_image_of_their_caption_and_stay_apart_by_group():
    texts = "a cat on a red hill", "on a red hill, a cat"   # the second is a paraphrase of the first, and known
    prompts, _ = gather(("paraphrases",), Sources(manifest(*texts, groups=["duplicated", "control"]), paraphrases=2))
    assert prompts == [Prompt(text, f"paraphrase {group}", f"id{i}") for i, group in enumerate(("duplicated", "control"))
                       for text in paraphrases(texts[i], 2) if text not in texts]
    assert {p.image_id for p in prompts} == {"id0", "id1"}


def test_a_limit_is_of_each_set(tmp_path):
    prompts, sizes = gather(("captions", "heldout"), Sources(TRAIN, HELDOUT), limit=1)
    assert [p.text for p in prompts] == ["a cat", "a bus", "a crab"]
    assert sizes == {"duplicated": {"prompts": 2, "sampled": 1}, "control": {"prompts": 1, "sampled": 1},
                     "heldout": {"prompts": 2, "sampled": 1}}


def test_captions_without_a_plan_have_a_group_only_beside_another_set():
    plain = manifest("a cat", "a bus")
    assert gather(("captions",), Sources(plain)) == (
        [Prompt("a cat", "", "id0"), Prompt("a bus", "", "id1")], {"ungrouped": {"prompts": 2, "sampled": 2}})
    assert [p.group for p in gather(("captions", "empty"), Sources(plain))[0]] == ["captions", "captions", "empty"]


@pytest.mark.parametrize(("names", "heldout", "message"), [
    (("captoins",), None, "no prompt set 'captoins': take of captions, further_captions"), ((), None, "nothing to ask"),
    (("heldout",), None, "needs captions"), (("heldout",), manifest("", ""), "needs captions"),
    (("heldout",), manifest("a cat"), "the prompt set heldout holds no prompt"),
])
def test_a_set_that_cannot_be_made_is_refused(names, heldout, message):
    with pytest.raises(InputError, match=message):
        gather(names, Sources(TRAIN, heldout))


# ----- plans

@pytest.mark.parametrize(("n", "rounds", "budget", "expected"), [
    (100, 4, 30, [16, 8, 4, 2]), (100, 4, 31, [17, 8, 4, 2]),
    (100, 4, 32, [17, 8, 4, 2]),       # 18 would make 18 + 9 + 4 + 2 = 33
    (10, 3, 22, [10, 8, 4]),           # w = 17: the first round is all there are; w = 18 would make 10 + 9 + 4
    (10, 3, 1000, [10, 10, 10]), (5, 1, 3, [3]), (5, 2, 1, [1, 0]), (5, 2, 2, [1, 0]), (5, 2, 0, [0, 0]),
])
def test_rounds_halve_and_fill_the_budget(n, rounds, budget, expected):
    assert widths(n, rounds, budget) == expected
    assert sum(expected) <= budget


def test_ties_keep_their_order():
    assert order_by_score([1.0, 3.0, 1.0, 3.0]) == [1, 3, 0, 2]
    assert order_by_score([None, 0.0, None, -1.0]) == [1, 3, 0, 2]
    assert order_by_score({5: 0.0, 2: 1.0, 9: 0.0}, [9, 5, 2]) == [2, 9, 5]


def test_a_known_ranking_and_known_leaks():
    """Scores rank 0, 1, …, 9; prompts 1 and 3 give the same image each time. With 15 images: 8 + 4 + 2 + 1."""
    alike, asked = {1, 3}, []

    def agreement(i):
        asked.append(i)
        return float(i in alike)
    rounds = list(ranked([-i for i in range(10)], (7, 8, 9, 10), 15, agreement))
    assert rounds == [[(i, 7) for i in range(8)], [(i, 8) for i in range(4)], [(1, 9), (3, 9)], [(1, 10)]]
    assert asked == [0, 1, 2, 3, 1, 3]  # those of the last round, none before the third
    assert seeds_of(job for jobs in rounds for job in jobs) == {
        0: [7, 8], 1: [7, 8, 9, 10], 2: [7, 8], 3: [7, 8, 9], 4: [7], 5: [7], 6: [7], 7: [7]}


def test_what_a_report_says_of_a_plan():
    record = as_record("ranked", 5, 3, [[(2, 0), (0, 0)], [(2, 1)]], [0.5, 0.1, 0.9], detector="edges", score_images=2.0)
    assert record.pop("ranking") == [
        {"prompt_index": 2, "rank": 1, "score": 0.9, "images": 2}, {"prompt_index": 0, "rank": 2, "score": 0.5, "images": 1},
        {"prompt_index": 1, "rank": 3, "score": 0.1, "images": 0}]
    assert record == {"name": "ranked", "budget": 5, "detector": "edges", "score_images": 2.0, "images": 3, "prompts": 3,
                      "sampled": 2, "rounds": [2, 1]}
    assert as_record("uniform", 1, 2, [[(1, 0)]])["ranking"] == [
        {"prompt_index": 0, "images": 0}, {"prompt_index": 1, "images": 1}]


def test_rounds_come_before_the_agreement_of_their_images_is_asked_for():
    seen = {}

    def agreement(i):
        assert len(seen[i]) >= 2
        return len(seen) - i
    for jobs in ranked([0.0] * 6, (0, 1, 2), 12, agreement):
        for i, seed in jobs:
            seen.setdefault(i, []).append(seed)
    assert sum(map(len, seen.values())) <= 12


def test_uniform_is_every_prompt_once_before_any_twice_and_random():
    jobs = uniform(50, (3, 4), 70)
    assert sorted(jobs[:50]) == [(i, 3) for i in range(50)]
    assert len(set(jobs)) == 70
    assert {seed for _, seed in jobs[50:]} == {4}
    assert jobs[:50] != sorted(jobs[:50])
    assert jobs == uniform(50, (3, 4), 70) != uniform(50, (3, 4), 70, seed=1)
    assert uniform(50, (3, 4), 10) == jobs[:10]
