"""Doses, fractions, caption styles, mixtures and perturbations: against counts and captions worked out by hand."""
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import image_folder

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import (
    PERTURBATIONS,
    add_noise,
    add_numbers,
    add_words,
    mix_up,
    perturbation,
    read_words,
    repeat_words,
    replace_caption,
    replace_words,
    token_words,
)
from rotescope.datasets.emoji.scenes import HERE as EMOJI
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.plans.duplication import DUPLICATIONS, DuplicationPlan, apply_dcr, apply_plan, check_served
from rotescope.datasets.plans.mixture import mix, recaption
from rotescope.datasets.prepare import main as prepare


def example(i, *captions, folder="cats"):
    return Example(f"{i:04x}", captions or (f"picture number {i}",), f"/data/{folder}/{i}.png", None, f"{i:064x}")


@pytest.fixture
def manifest():
    return Manifest(tuple(example(i) for i in range(100)))


# ----- plans

def test_canaries_at_every_dose(manifest):
    planned = apply_plan(manifest, DuplicationPlan(5, doses=(1, 4, 16, 64), matched=1))
    assert Counter(e.copies for e in planned.group("duplicated")) == {1: 5, 4: 5, 16: 5, 64: 5}
    assert planned.copies == 5 * (1 + 4 + 16 + 64) + 80
    assert sorted(e.matched for e in planned.group("control")) == sorted(e.image_id for e in planned.group("duplicated"))
    assert {e.copies for e in planned.group("control")} == {1}


def test_matched_control_is_the_most_alike():
    captions = ["a red cat on a mat", "a red cat on a rug", "a blue bus", "a red dog at sea", "a red cat on a mat"]
    data = Manifest(tuple(example(i, c) for i, c in enumerate(captions)))
    planned = apply_plan(data, DuplicationPlan((data[0].image_id,), 9, matched=2))
    assert {e.captions[0]: e.matched for e in planned.group("control")} == {  # 5 of 7 words shared, and 2 of 8; its double is out
        "a red cat on a rug": "0000", "a red dog at sea": "0000"}


def test_words_count_as_often_as_they_stand_so_that_one_thing_is_not_matched_by_two():
    captions = ["a cat on a rug", "a cat and a dog on a rug", "a dog on a rug"]  # bags share 5/8 and 4/6, sets 4/6 and 3/5
    data = Manifest(tuple(example(i, c) for i, c in enumerate(captions)))
    planned = apply_plan(data, DuplicationPlan((data[0].image_id,), 9, matched=1))
    assert [e.captions[0] for e in planned.group("control")] == ["a dog on a rug"]


def test_a_fraction_repeats_whatever_the_captions():
    data = Manifest(tuple(example(i, "a thing") for i in range(200)))
    planned = apply_plan(data, DuplicationPlan(copies=5, fraction=0.05))
    assert Counter(e.copies for e in planned) == {5: 10, 1: 190}


def test_duplication_of_dcr():
    data = Manifest(tuple(example(i, f"first {i}", f"second {i}") for i in range(100)))
    counts = {kind: Counter((e.copies, len(e.captions)) for e in apply_dcr(data, kind)) for kind in DUPLICATIONS}
    assert counts == {"nodup": {(1, 1): 100}, "dup_both": {(1, 1): 95, (5, 1): 5}, "dup_image": {(1, 1): 95, (5, 2): 5}}
    assert all(e.captions[0].startswith("first") for e in apply_dcr(data, "dup_both"))


def test_mixture_of_wen():
    few, many = (Manifest(tuple(example(i) for i in numbers)) for numbers in (range(4), range(2, 200)))
    mixed = mix(apply_plan(few, DuplicationPlan(copies=10, fraction=1.0)), many, 3)
    assert Counter(e.copies for e in mixed) == {10: 4, 1: 120}
    assert len({e.sha256 for e in mixed}) == len(mixed)  # nothing that is duplicated comes once more among the others
    assert mixed == mix(Manifest(mixed.examples[:4]), Manifest(many.examples[::-1]), 3)
    with pytest.raises(InputError, match="takes 200 other images, there are 196"):
        mix(apply_plan(few, DuplicationPlan(copies=10, fraction=1.0)), many, 5)


@pytest.fixture
def classes(tmp_path):
    """Images without captions, in folders of WordNet ids."""
    for name in ("n01440764", "n03000684"):
        for file in image_folder(tmp_path / "images" / name, 3).glob("*.txt"):
            file.unlink()
        Image.new("RGB", (8, 8), f"#{name[-6:]}").save(tmp_path / "images" / name / "own.png")
    return tmp_path / "images"


def captioned(folder, *argv):
    """-> captions that prepare gives the images of a folder."""
    file = folder.parent / "m.parquet"
    prepare(["--train_data", str(folder), "--output_file", str(file), "--overwrite", "true", *argv])
    return [c for e in Manifest.load(file) for c in e.captions]


@pytest.mark.parametrize(("name", "text"), [
    ("x.csv", "folder,name\nn01440764,tench\nn03000684,chain saw\n"),
    ("x.json", '{"n01440764": "tench", "n03000684": "chain saw"}')])
def test_images_without_captions_are_named_by_their_class(name, text, classes):
    (classes.parent / name).write_text(text)
    given = ["--caption_level", "class", "--class_names", str(classes.parent / name)]
    assert captioned(classes, *given) == ["An image of tench"] * 4 + ["An image of chain saw"] * 4
    assert captioned(classes, "--caption_level", "none") == ["An image"] * 8


def test_random_captions_are_tokens_of_a_tokenizer(classes):
    from rotescope.models.model_options import BASE
    words = set(read_words(BASE))
    first, again, other = (captioned(classes, "--caption_level", "random", "--plan_seed", seed) for seed in "001")
    assert first == again != other
    assert len(set(first)) == 8
    assert {w for c in first for w in c.split()} <= words
    tokenizer = str(BASE / "tokenizer")
    assert captioned(classes, "--caption_level", "random", "--tokenizer", tokenizer) == first


@pytest.mark.parametrize(("argv", "message"), [
    ([], "has no caption"), (["--caption_level", "class"], "the folder n01440764 is called by a WordNet id"),
    (["--caption_level", "class", "--class_names", "x.csv"], "the class names have none for the folder n03000684"),
    (["--caption_level", "class", "--class_names", "bad.csv"], "cannot be read as class names ('folder')"),
    (["--caption_level", "class", "--class_names", "list.json"], "should name a class for each folder"),
    (["--caption_level", "class", "--class_names", "gone.csv"], "cannot be read as class names"),
    (["--caption_level", "none", "--class_names", "x.csv"], "--class_names is for --caption_level class"),
    (["--caption_level", "class", "--tokenizer", "x"], "--tokenizer is for --caption_level random"),
    (["--caption_level", "random", "--tokenizer", "gone"], "no tokenizer at gone"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_captions_that_cannot_be_written_are_refused_in_one_line(argv, message, classes, monkeypatch, capsys):
    monkeypatch.chdir(classes.parent)
    for name, text in (("x.csv", "folder,name\nn01440764,tench\n"), ("bad.csv", "id,class\n1,2\n"), ("list.json", "[1]")):
        (classes.parent / name).write_text(text)
    with pytest.raises(SystemExit) as left:
        captioned(classes, *argv)
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert message in said


def test_caption_levels(manifest):
    assert recaption(manifest, "caption") is manifest
    assert recaption(manifest, "none").captions() == ["An image"]
    assert recaption(Manifest((example(1), example(2, folder="big_dogs"))), "class").captions() == [
        "An image of cats", "An image of big dogs"]
    found = recaption(manifest, "random", 3, WORDS)
    assert all(len(c.split()) == 4 and set(c.split()) <= set(WORDS) for c in found.captions())
    assert len(found.captions()) > 50   # of 81
    assert found == Manifest(recaption(Manifest(manifest.examples[::-1]), "random", 3, WORDS).examples[::-1])
    assert found != recaption(manifest, "random", 4, WORDS)
    with pytest.raises(InputError, match="lies in no folder of a class"):
        recaption(Manifest((replace(example(1), row=3),)), "class")


@pytest.mark.parametrize(("plan", "message"), [
    (dict(duplicated=1, doses=(4, 0)), "0 copies"), (dict(fraction=1.5), "a fraction of 1.5"),
    (dict(doses=(1, 4)), "--doses without duplicated images does nothing: say how many"),
    (dict(copies=5, exclusive=True), "--copies and --exclusive without"), (dict(captions="several"), "--caption_style without"),
    (dict(matched=1, controls=3), "--matched without"), (dict(copies=5, fraction=0.0), "--copies without"),
    (dict(duplicated=2, fraction=0.1), "same thing twice"),
    (dict(duplicated=30, doses=(1, 2, 3, 4)), "needs 120 duplicated images"),
    (dict(duplicated=60, matched=1), "needs 1 control images .* there are 0"),
])
def test_impossible_plans(plan, message, manifest):
    with pytest.raises(InputError, match=message):
        apply_plan(manifest, DuplicationPlan(**plan))


def test_more_copies_than_a_run_serves(manifest):
    planned = apply_plan(manifest, DuplicationPlan(1, 64))
    check_served(planned, 99 + 64)
    with pytest.raises(InputError, match=r"takes 163 samples .* \(up to 64 times\), and the run serves 162"):
        check_served(planned, 162)


def test_prepare_takes_canaries_and_mixtures(tmp_path, capsys):
    data, file = str(EMOJI / "heldout.parquet"), str(tmp_path / "m.parquet")
    prepare(["--train_data", data, "--output_file", file, "--duplicated", "3", "--doses", "1", "4", "16", "--matched", "2",
             "--mix_data_dir", str(EMOJI / "finetune.parquet"), "--mix_ratio", "0.5"])
    said, manifest = json.loads(capsys.readouterr().out), Manifest.load(file)
    assert (said["duplicated"], said["controls"], said["copies"]) == (9, 18, manifest.copies)
    assert manifest.copies == round(1.5 * (791 + 3 * 21))
    assert Counter(e.copies for e in manifest.group("duplicated")) == {1: 3, 4: 3, 16: 3}
    assert {e.matched for e in manifest.group("control")} == {e.image_id for e in manifest.group("duplicated")}


@pytest.mark.parametrize("argv", [["--mix_ratio", "3"], ["--duplication", "dup_both", "--duplicated", "3"],
                                  ["--duplication", "nodup", "--copies", "5"], ["--copies", "5"], ["--exclusive"],
                                  ["--duplication", "dup_both", "--caption_style", "several"],
                                  ["--duplication", "dup"], ["--caption_level", "poem"], ["--caption_level", "class"],
                                  ["--caption_level", "random", "--tokenizer", "gone"]],
                         ids=" ".join)
def test_prepare_refuses_in_one_line(argv, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        prepare(["--train_data", str(EMOJI / "heldout.parquet"), "--output_file", str(tmp_path / "out/m.parquet"), *argv])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_plans_work_as_the_page_prints_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(EMOJI.parent)
    page = (EMOJI.parent.parent / "docs/data.md").read_text().splitlines()
    found = {}
    for words in (line.split()[2:] for line in page if line.startswith("rotescope prepare ")):
        prepare(words)
        said = json.loads(capsys.readouterr().out)
        found[Path(said["manifest"]).stem] = [said[key] for key in ("images", "copies", "duplicated", "controls", "captions")]
    assert {name: tuple(counts[:4]) for name, counts in found.items()} == {
        "dose": (3000, 2976 + 24 * 92, 24, 24), "canaries": (3000, 2976 + 6 * 85, 24, 24), "nodup": (3000, 3000, 0, 0),
        "dup_both": (3000, 2850 + 150 * 5, 150, 0), "dup_image": (3000, 2700 + 300 * 10, 300, 0),
        "none": (24, 24, 0, 0), "class": (24, 24, 0, 0), "random": (24, 24, 0, 0),
        "few": (800, 796 + 4 * 50, 4, 0), "mix": (3 * 996 - 4 * 49, 3 * 996, 4, 0)}
    assert [found[name][4] for name in ("none", "class", "random")] == [1, 1, 24]


# ----- perturbations

TEXT, WORDS = "a cat on a mat", ("xu", "yo", "zi")


def rng(seed=0):
    return np.random.default_rng(seed)


def subsequence(few, many):
    rest = iter(many)
    return all(word in rest for word in few)


@pytest.mark.parametrize(("change", "fits"), [
    (add_words, lambda w: w in WORDS), (add_numbers, lambda w: w.isdigit() and int(w) < 100_000),
    (repeat_words, lambda w: w in TEXT.split())])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_insertions_keep_the_caption_in_order(change, fits, n):
    options = {"vocabulary": WORDS} if change is add_words else {}
    for seed in range(20):
        words = change(TEXT, rng(seed), n, **options).split()
        assert len(words) == 5 + n
        assert subsequence(TEXT.split(), words)
        added = Counter(words) - Counter(TEXT.split())
        assert added.total() == n
        assert all(map(fits, added))


def test_insertions_reach_every_place():
    places = Counter(add_words("one two", rng(seed), 1, WORDS).split().index(w) for seed in range(300) for w in WORDS
                     if w in add_words("one two", rng(seed), 1, WORDS))
    assert set(places) == {0, 1, 2}
    assert min(places.values()) > 70  # of 100 expected


def test_replacements():
    assert set(replace_caption(TEXT, rng(), 4, WORDS).split()) <= set(WORDS)
    assert len(replace_caption(TEXT, rng(), 4, WORDS).split()) == 4
    for n, kept in ((2, 3), (9, 0)):
        words = replace_words(TEXT, rng(), n, WORDS).split()
        assert len(words) == 5
        assert sum(a == b for a, b in zip(words, TEXT.split(), strict=True)) == kept


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_perturbation_is_fixed_by_the_rng(name):
    change = perturbation(name, vocabulary=WORDS)
    assert change(TEXT, rng(1)) == change(TEXT, rng(1))
    assert len({change(TEXT, rng(seed)) for seed in range(30)}) > 5
    assert change(TEXT, rng()) != TEXT
    assert isinstance(change("", rng()), str)


@pytest.mark.parametrize("change", [add_words, add_numbers, repeat_words, replace_words])
def test_nothing_changes_at_zero(change):
    assert change("two\n lines ", rng(), 0) == "two\n lines "


def test_probability_leaves_the_others_alone():
    change, generator = perturbation("random_number_addition", n=2, probability=0.1), rng()
    changed = sum(change(TEXT, generator) != TEXT for _ in range(1000))
    assert 70 < changed < 130


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(name="poem"), "no caption perturbation 'poem'"), (dict(name="random_token_addition"), "vocabulary, and that is empty"),
    (dict(name="random_number_addition", n=-1), "n is a number from 0 on"),
    (dict(name="random_number_addition", probability=2), "a share")])
def test_impossible_perturbations(arguments, message):
    with pytest.raises(InputError, match=message):
        perturbation(**arguments)


def test_token_words_are_the_tokenizers_own():
    from transformers import AutoTokenizer

    from rotescope.models.model_options import BASE
    tokenizer = AutoTokenizer.from_pretrained(BASE / "tokenizer")
    words = token_words(tokenizer)
    assert {"cat", "blue", "background"} <= set(words)
    assert not set(words) & set(tokenizer.all_special_tokens)


def test_noise_and_mix_up_on_embeddings():
    e = torch.zeros(2, 5, 4000)
    noisy = add_noise(e, rng(), 0.1)
    assert noisy.std().item() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noisy, add_noise(e, rng(), 0.1))
    mixed = mix_up(torch.full((2, 3, 2), 8.0), torch.zeros(2, 3, 2), torch.tensor([0.25, 1.0]))
    assert (mixed == torch.tensor([2.0, 8.0]).view(2, 1, 1)).all()  # one share for a pair
