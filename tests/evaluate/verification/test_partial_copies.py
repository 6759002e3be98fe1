"""Copies of a part, of an object, of all but a part, mirrored, recoloured; published statistics; base against fine-tune."""
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruments import noise, rows_of, samples_folder, saved, training_set
from PIL import Image, ImageEnhance, ImageOps

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import GROUNDS, OBJECTS, scenes, sprite
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import centred_pixels
from rotescope.evaluate.measurement import findings as scoring
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.exports import write_pairs
from rotescope.evaluate.report.html import render_report
from rotescope.evaluate.report.page_pictures import marked
from rotescope.evaluate.statistics.published_tables import dcr, membench
from rotescope.evaluate.verification.kinds import KINDS, TILES, WHOLE, objects
from rotescope.evaluate.verification.partial_copies import Regions, partial_copies


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def pasted(image, box, seed=0):
    """Noise, but for a box of the image, (left, top, width, height) in shares."""
    made, (x, y, w, h) = noise(9, seed), (round(64 * v) for v in box)
    made.paste(image.crop((x, y, x + w, y + h)), (x, y))
    return made


def both(*region):
    return Regions(region, region)


def opened(pictures):
    return [lambda p=p: p for p in pictures]


def sought(pictures, data, verbatim=None):
    """data: examples, or pictures."""
    openers = opened(data) if isinstance(data[0], Image.Image) else [e.open for e in data]
    return partial_copies(opened(pictures), openers, np.zeros(len(pictures), bool) if verbatim is None else verbatim)


def of_kind(found, kind):
    return {f.position: f for f in found if f.kind == kind}


def drawn(ground, *placed):
    """A scene of sprites at (name, side, left, top)."""
    image = Image.new("RGBA", (64, 64), (*GROUNDS[ground], 255))
    for name, side, left, top in placed:
        image.alpha_composite(sprite(name).resize((side, side), Image.LANCZOS), (left, top))
    return image.convert("RGB")


def busiest(data, n=5):
    """The training images whose quarters all hold something."""
    quarters = [(x, y, x + 32, y + 32) for x in (0, 32) for y in (0, 32)]
    spread = [min(centred_pixels([e.open().crop(box)], 16).std() for box in quarters) for e in data]
    return list(np.argsort(spread)[::-1][:n])


@pytest.mark.parametrize("tile", range(len(TILES)))
def test_a_pasted_tile_is_found_where_it_is(data, tile):
    rows = busiest(data)
    found, thresholds = sought([pasted(data[r].open(), TILES[tile], r) for r in rows], data)
    parts = of_kind(found, "part")
    assert [parts[i].row for i in range(len(rows))] == rows
    assert all(f.regions == (both(*TILES[tile]),) for f in parts.values())
    assert all(f.similarity >= thresholds["part"] for f in parts.values())


def test_half_a_picture_is_two_tiles_of_one_training_image(data):
    row = busiest(data)[0]
    found, _ = sought([pasted(data[row].open(), (0, 0, 0.5, 1))], data)
    part = next(f for f in found if f.kind == "part")
    assert part.row == row
    assert part.regions == (both(*TILES[0]), both(*TILES[2]))


@pytest.mark.parametrize(("kind", "change"), [
    ("mirrored", ImageOps.mirror), ("recoloured", ImageOps.invert),
    ("recoloured", lambda x: ImageOps.grayscale(x).convert("RGB")),
    ("recoloured", lambda x: ImageEnhance.Contrast(x).enhance(0.4))])
def test_changed_copies_are_found_as_what_they_are(data, kind, change):
    rows = busiest(data)
    found, _ = sought([change(data[r].open()) for r in rows], data)
    assert [of_kind(found, kind)[i].row for i in range(len(rows))] == rows
    assert all(f.regions == (both(*WHOLE),) for f in of_kind(found, kind).values())


def test_an_object_is_found_elsewhere_smaller_and_on_another_ground():
    """Two objects of 24 are in no training image, and so are not found."""
    training = [drawn("blue", (name, 40, 20, 18)) for name in list(OBJECTS)[:22]]
    found, _ = sought([drawn("green", (name, 28, 4, 30)) for name in OBJECTS], training)
    same = of_kind(found, "foreground")
    assert {i: f.row for i, f in same.items()} == {i: i for i in range(22)}
    for f in same.values():
        ((x, y, w, h), (x2, y2, w2, h2)) = f.regions[0].generated, f.regions[0].training
        assert 4 <= 64 * x <= 64 * (x + w) <= 32
        assert 30 <= 64 * y <= 64 * (y + h) <= 58
        assert [20 + 40 / 28 * (64 * x - 4), 18 + 40 / 28 * (64 * y - 30)] == pytest.approx([64 * x2, 64 * y2], abs=4)
        assert [w2, h2] == pytest.approx([40 / 28 * w, 40 / 28 * h], abs=4 / 64)


def test_of_two_objects_each_is_looked_at():
    pairs = zip(list(OBJECTS)[::2], list(OBJECTS)[1::2], strict=True)
    training = [drawn("white", (a, 26, 2, 2), (b, 30, 32, 32)) for a, b in pairs]
    found, _ = sought([drawn("purple", ("cat", 40, 12, 12)), drawn("black", ("panda", 28, 0, 10))], training)
    assert {i: f.row for i, f in of_kind(found, "foreground").items()} == {0: 0, 1: 0}


def test_what_has_no_plain_ground_has_no_foreground():
    assert objects(np.asarray(noise(1))) == objects(np.full((64, 64, 3), 90, np.uint8)) == []
    assert len(objects(np.asarray(drawn("red", ("cat", 40, 8, 8))))) == 1
    found, thresholds = sought([drawn("red", ("cat", 40, 8, 8))], [noise(1, i) for i in range(8)])
    assert "foreground" not in thresholds
    assert not of_kind(found, "foreground")
    # with one training image that has an object: what the others hold of one is nothing, and nothing resembles nothing
    one = [drawn("red", ("cat", 40, 8, 8)), *(noise(1, i) for i in range(8))]
    found, thresholds = sought([drawn("blue", ("bus", 30, 20, 20))], one)
    assert "foreground" not in thresholds
    assert not of_kind(found, "foreground")


@pytest.mark.parametrize("cell", [0, 4, 7])
def test_a_template_is_found_whatever_takes_the_place_of_an_object(cell):
    """Nine objects in each training image; one of them is another in the generated one."""
    rng, cells = np.random.default_rng(0), [(x, y) for y in (2, 22, 42) for x in (2, 22, 42)]
    names = [[str(name) for name in rng.permutation(list(OBJECTS))[:10]] for _ in range(20)]
    training = [drawn("yellow", *((name, 20, *at) for name, at in zip(nine, cells, strict=False))) for nine in names]
    made = []
    for ten in names:
        nine = ten[:9]
        nine[cell] = ten[9]
        made.append(drawn("yellow", *((name, 20, *at) for name, at in zip(nine, cells, strict=True))))
    found, _ = sought(made, training)
    templates = of_kind(found, "template")
    assert {i: f.row for i, f in templates.items()} == {i: i for i in range(20)}
    left, top = cells[cell]
    for f in templates.values():
        (region,) = f.regions
        assert region.generated == region.training
        x, y, w, h = (64 * v for v in region.generated)
        assert left - 8 <= x < x + w <= left + 28  # the blocks that the object touches
        assert top - 8 <= y < y + h <= top + 28
    assert all(0.6 < f.similarity < 0.95 for f in templates.values())  # a ninth is different


def test_a_tile_that_differs_is_no_copy_tile_by_tile(data):
    """Levels 10 higher where they can be; then with one tile of sixteen spoilt."""
    x = np.stack([np.asarray(e.open()) for e in data])
    brighter = np.minimum(x, 245) + np.uint8(10)
    spoilt = brighter.copy()
    spoilt[:, 16:32, 16:32] = (0, 255, 0)
    found = of_kind(sought([Image.fromarray(i) for i in np.concatenate([brighter, spoilt])], data)[0], "tiled")
    assert {i: f.row for i, f in found.items()} == {i: i for i in range(len(x))}
    small = (x.astype(float) - brighter).reshape(len(x), 32, 2, 32, 2, 3).mean((2, 4)) / 255
    tiles = [small[:, r:r + 8, c:c + 8].reshape(len(x), -1) for r in range(0, 32, 8) for c in range(0, 32, 8)]
    expected = 1 - np.max([np.sqrt((t ** 2).mean(1)) for t in tiles], 0)
    np.testing.assert_allclose([found[i].similarity for i in range(len(x))], expected, atol=5e-4)


def test_noise_flat_colours_and_verbatim_copies_are_no_parts(data):
    pictures = [noise(3), Image.new("RGB", (64, 64), "red"), data[0].open()]
    assert sought(pictures, data, np.array([False, False, True]))[0] == []


def test_the_quantile_holds_for_every_kind():
    """Of 150 scenes that nothing was trained on a tenth is expected; whatever the number of a kind's views."""
    heldout, training = ([s.image for s in scenes(n, seed)] for n, seed in ((150, 15), (250, 16)))
    found, thresholds = partial_copies(opened(heldout), opened(training), np.zeros(150, bool), quantile=0.9)
    assert set(thresholds) == set(KINDS)
    alarms = {kind: len(of_kind(found, kind)) for kind in KINDS}
    assert all(4 <= n <= 30 for n in alarms.values()), alarms  # 15 ± 3 standard deviations of threshold and sample


def test_the_report_tells_parts_apart_from_copies(data, tmp_path):
    row = busiest(data)[0]
    (tmp_path / "made").mkdir()
    data[0].open().save(tmp_path / "made/copy.png")
    pasted(data[row].open(), TILES[0]).save(tmp_path / "made/part.png")
    report = score_samples(tmp_path / "made", data)
    assert report["none"]["ungrouped"].copies == 1
    assert [(p.image, p.kind, p.nearest) for p in report.partial] == [("part.png", "part", data[row].image_id)]
    write_pairs(report, tmp_path / "pairs.parquet")
    (part,) = next(p["partial"] for p in pq.read_table(tmp_path / "pairs.parquet").to_pylist() if p["image"] == "part.png")
    assert part == {key: report.as_json()["partial"][0][key] for key in ("kind", "similarity", "nearest", "regions")}
    assert part["regions"] == [{"generated": list(TILES[0]), "training": list(TILES[0])}]
    text = render_report(report)
    assert "A part in its place <span>· 1 image, from" in text
    assert text.count("framed: the region that matches") == 2
    assert "Not found: an object" in text
    report = score_samples(tmp_path / "made", data, partial=False, exact="none")
    assert report.partial_thresholds is None
    assert 'id="parts"' not in render_report(report)


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
    assert vars(dcr(top1)) == pytest.approx({
        "mean": 0.5, "std": np.sqrt(0.05), "share_over_half": 0.5, "p75": 0.65, "p90": 0.74, "p95": 0.77})
    found = membench([0.9, 0.1, 0.2, 0.3, 0.6], [1, 1, 1, 1, 2])
    assert vars(found) == pytest.approx({"max": 0.75, "top3": (1.4 / 3 + 0.6) / 2, "share_over_half": 0.4, "n_prompts": 2})


def test_conventions_come_out_of_the_same_run_by_name(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 20)
    found = score_samples(folder, data, partial=False).conventions
    assert found.membench.methods["none"]["ungrouped"].max > 0.5
    assert found.dcr.methods["none"]["ungrouped"].share_over_half >= 0.5
    assert found.dcr.train_to_train.mean > 0
    assert not found.dcr.comparable  # pixels are no SSCD


def test_too_many_training_images_for_copies_of_a_part_are_told(data, tmp_path, monkeypatch):
    folder = samples_folder(tmp_path / "s", data[:2], lambda *_: False)
    assert not any("were not sought" in note for note in score_samples(folder, data).notes)
    monkeypatch.setattr(scoring, "AT_MOST", 39)
    report = score_samples(folder, data)
    assert "Copies of a part were not sought: that is done among at most 39 training images, and these are 40." in report.notes
    assert (report.partial, report.partial_thresholds) == ((), None)
    assert not any("were not sought" in note for note in score_samples(folder, data, partial=False).notes)


# ----- base against fine-tune

def test_what_the_base_copies_too_was_not_memorized_by_the_fine_tune(data, tmp_path):
    """Nine prompts copy; three of them do in the base model as well."""
    tuned = samples_folder(tmp_path / "tuned", data, lambda method, i, seed: i < 9, {"none": {}, "stp": {}})
    base = samples_folder(tmp_path / "base", data, lambda method, i, seed: i < 3)
    heldout = load_source(saved(tmp_path / "held", [s.image for s in scenes(200, 2)]), need_captions=False)
    report = score_samples(tuned, data, heldout, base=base, partial=False).base
    assert (report.method, report.n, report.copies, report.base_copies) == ("none", 40, 18, 6)
    assert sorted(p.prompt_index for p in report.prompts if p.became_memorized) == list(range(3, 9))
    assert report.became_memorized == 6
    assert all(p.difference == pytest.approx(p.similarity - p.base_similarity, abs=2e-6) for p in report.prompts)
    first = report.prompts[0]
    assert first.first_gap == first.base_first_gap == first.prompt_index


def test_a_base_on_other_prompts_is_refused(data, tmp_path):
    tuned = samples_folder(tmp_path / "tuned", data.examples[:4], lambda *_: False)
    base = samples_folder(tmp_path / "base", data.examples[:4], lambda *_: False)
    pq.write_table(pa.Table.from_pylist(rows_of(base)[:-1]), base / "records.parquet")
    with pytest.raises(InputError, match="no image of prompt 3, seed 1"):
        score_samples(tuned, data, base=base, partial=False)
