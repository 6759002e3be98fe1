"""Copies of a part, mirrored and recoloured; published statistics; base against fine-tune."""
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruments import noise, rows_of, samples_folder, saved, training_set
from PIL import Image, ImageEnhance, ImageOps

from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.evaluate.conventions import dcr, membench
from rotescope.evaluate.descriptor import centred_pixels
from rotescope.evaluate.partial import KINDS, TILES, partial_copies
from rotescope.evaluate.report import marked
from rotescope.evaluate.scoring import score_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def pasted(image, box, seed=0):
    """Noise, but for a box of the image, (left, top, width, height) in shares."""
    made, (x, y, w, h) = noise(9, seed), (round(64 * v) for v in box)
    made.paste(image.crop((x, y, x + w, y + h)), (x, y))
    return made


def sought(pictures, data, verbatim=None):
    openers = [lambda p=p: p for p in pictures]
    return partial_copies(openers, [e.open for e in data], np.zeros(len(pictures), bool) if verbatim is None else verbatim)


def busiest(data, n=5):
    """The training images whose quarters all hold something."""
    quarters = [(x, y, x + 32, y + 32) for x in (0, 32) for y in (0, 32)]
    spread = [min(centred_pixels([e.open().crop(box)], 16).std() for box in quarters) for e in data]
    return list(np.argsort(spread)[::-1][:n])


@pytest.mark.parametrize("tile", range(len(TILES)))
def test_a_pasted_tile_is_found_where_it_is(data, tile):
    rows = busiest(data)
    found, thresholds = sought([pasted(data[r].open(), TILES[tile], r) for r in rows], data)
    parts = {f["position"]: f for f in found if f["kind"] == "part"}
    assert [parts[i]["row"] for i in range(len(rows))] == rows
    assert all(f["regions"] == [list(TILES[tile])] for f in parts.values())
    assert all(f["similarity"] >= thresholds["part"] for f in parts.values())


def test_half_a_picture_is_two_tiles_of_one_training_image(data):
    row = busiest(data)[0]
    found, _ = sought([pasted(data[row].open(), (0, 0, 0.5, 1))], data)
    part = next(f for f in found if f["kind"] == "part")
    assert part["row"] == row
    assert {tuple(r) for r in part["regions"]} == {TILES[0], TILES[2]}


@pytest.mark.parametrize(("kind", "change"), [
    ("mirrored", ImageOps.mirror), ("recoloured", ImageOps.invert),
    ("recoloured", lambda x: ImageOps.grayscale(x).convert("RGB")),
    ("recoloured", lambda x: ImageEnhance.Contrast(x).enhance(0.4))])
def test_changed_copies_are_found_as_what_they_are(data, kind, change):
    rows = busiest(data)
    found, _ = sought([change(data[r].open()) for r in rows], data)
    assert [next(f["row"] for f in found if f["position"] == i and f["kind"] == kind) for i in range(len(rows))] == rows


def test_noise_flat_colours_and_verbatim_copies_are_no_parts(data):
    pictures = [noise(3), Image.new("RGB", (64, 64), "red"), data[0].open()]
    assert sought(pictures, data, np.array([False, False, True]))[0] == []


def test_training_images_against_one_another_raise_few_alarms(data):
    """Half of the data sought in the other half: the quantile holds, whatever the number of views."""
    half = [e for i, e in enumerate(data) if i % 2]
    found, thresholds = sought([e.open() for i, e in enumerate(data) if not i % 2], half)
    assert set(thresholds) == set(KINDS)
    assert len({f["position"] for f in found}) <= 4


def test_the_report_tells_parts_apart_from_copies(data, tmp_path):
    row = busiest(data)[0]
    (tmp_path / "made").mkdir()
    data[0].open().save(tmp_path / "made/copy.png")
    pasted(data[row].open(), TILES[0]).save(tmp_path / "made/part.png")
    report = score_samples(tmp_path / "made", data)
    assert report["methods"]["none"]["ungrouped"]["copies"] == 1
    assert [(p["image"], p["kind"], p["nearest"]) for p in report["partial"]] == [("part.png", "part", data[row].image_id)]
    assert score_samples(tmp_path / "made", data, partial=False)["partial_thresholds"] is None


def test_a_region_is_drawn_around_what_it_names():
    plain = Image.new("RGB", (64, 32), "black")
    drawn = np.asarray(marked(plain, [(0.5, 0, 0.5, 0.5)])).sum(2) > 0
    factor = drawn.shape[0] // 32
    ys, xs = np.nonzero(drawn)
    assert (xs.min() // factor, xs.max() // factor, ys.min() // factor, ys.max() // factor) == (32, 47, 0, 15)
    assert marked(None, []) is None


# ----- published statistics

def test_published_statistics_by_hand():
    top1 = np.array([0.2, 0.4, 0.6, 0.8])
    assert dcr(top1) == pytest.approx({
        "mean": 0.5, "std": np.sqrt(0.05), "share_over_0.5": 0.5, "p75": 0.65, "p90": 0.74, "p95": 0.77})
    found = membench([0.9, 0.1, 0.2, 0.3, 0.6], [1, 1, 1, 1, 2])
    assert found == pytest.approx({"max": 0.75, "top3": (1.4 / 3 + 0.6) / 2, "share_over_0.5": 0.4, "n_prompts": 2})


def test_conventions_come_out_of_the_same_run_by_name(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 20)
    found = score_samples(folder, data, partial=False)["conventions"]
    assert found["membench"]["methods"]["none"]["ungrouped"]["max"] > 0.5
    assert found["dcr"]["methods"]["none"]["ungrouped"]["share_over_0.5"] >= 0.5
    assert found["dcr"]["train_to_train"]["mean"] > 0
    assert not found["dcr"]["comparable"]  # pixels are no SSCD


# ----- base against fine-tune

def test_what_the_base_copies_too_was_not_memorized_by_the_fine_tune(data, tmp_path):
    """Nine prompts copy; three of them do in the base model as well."""
    tuned = samples_folder(tmp_path / "tuned", data, lambda method, i, seed: i < 9, {"none": {}, "stp": {}})
    base = samples_folder(tmp_path / "base", data, lambda method, i, seed: i < 3)
    heldout = load_source(saved(tmp_path / "held", [s.image for s in scenes(200, 2)]), need_captions=False)
    report = score_samples(tuned, data, heldout, base=base, partial=False)["base"]
    assert (report["method"], report["n"], report["copies"], report["base_copies"]) == ("none", 40, 18, 6)
    assert sorted(p["prompt_index"] for p in report["prompts"] if p["became_memorized"]) == list(range(3, 9))
    assert report["became_memorized"] == 6
    assert all(p["difference"] == pytest.approx(p["similarity"] - p["base_similarity"], abs=2e-6) for p in report["prompts"])
    assert report["prompts"][0]["first_gap"] == report["prompts"][0]["base_first_gap"] == report["prompts"][0]["prompt_index"]
    json.dumps(report)


def test_a_base_on_other_prompts_is_refused(data, tmp_path):
    tuned = samples_folder(tmp_path / "tuned", data.examples[:4], lambda *_: False)
    base = samples_folder(tmp_path / "base", data.examples[:4], lambda *_: False)
    pq.write_table(pa.Table.from_pylist(rows_of(base)[:-1]), base / "records.parquet")
    with pytest.raises(InputError, match="no image of prompt 3, seed 1"):
        score_samples(tuned, data, base=base, partial=False)
