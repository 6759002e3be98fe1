"""Pre-flight: on a planted set every duplicate and nearly nothing else; risk against hand arithmetic; the page as a file."""
import csv
import io
import json
import re
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from rotescope.datasets.emoji.scenes import OBJECTS, scenes, sprite
from rotescope.datasets.images import near_duplicates as similar
from rotescope.datasets.images.clusters import find_pictures, look_at, pdq_hash, phash
from rotescope.datasets.inspection.preflight import deduplicated, preflight
from rotescope.datasets.inspection.risk import ranking, repeated, risks
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.preflight import main as preflight_main
from rotescope.datasets.readers.sources import load_source, read_source

SEED = 79_000   # of scenes that no threshold was set on


def recompressed(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


def cropped(image, rng):
    side = round(0.9 * image.width)
    left, top = rng.integers(0, image.width - side + 1, 2)
    return image.crop((left, top, left + side, top + side))


PLANTS = {
    "exact": lambda image, rng: image,
    "resized": lambda image, rng: image.resize([int(rng.choice((40, 48, 96, 128)))] * 2, Image.LANCZOS),
    "recompressed": lambda image, rng: recompressed(image, rng.integers(40, 90)),
    "cropped": cropped,
    "flipped": lambda image, rng: ImageOps.mirror(image),
}


def planted(n, m, seed=SEED):
    """n scenes, of which m are planted once more in each way -> images, the scene of each, and how each was made."""
    rng, images = np.random.default_rng(seed), [scene.image for scene in scenes(n, seed)]
    copies = [(i, how, make(images[i], rng)) for how, make in PLANTS.items() for i in range(m)]
    return images + [c[2] for c in copies], [*range(n), *(c[0] for c in copies)], ["own"] * n + [c[1] for c in copies]


def found_in(images):
    looks = {str(i): look_at(image) for i, image in enumerate(images)}
    return find_pictures(list(looks), looks).labels


def measured(labels, scene, how):
    """-> {how: recall of (original, planted)}, precision over all pairs that share a label."""
    recall = {kind: np.mean([labels[i] == labels[scene[i]] for i in range(len(how)) if how[i] == kind]) for kind in PLANTS}
    same = [(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    return recall, np.mean([scene[i] == scene[j] for i, j in same])


@pytest.mark.slow
def test_every_planted_duplicate_is_found_at_a_precision_of_99_percent():
    """Among 500 scenes, of which many show the same things under the same caption."""
    images, scene, how = planted(500, 50)
    recall, precision = measured(found_in(images), scene, how)
    assert recall == dict.fromkeys(PLANTS, 1.0)
    assert precision >= 0.99


@pytest.mark.slow
def test_the_same_on_six_times_as_many():
    """Pairs of scenes that are alike by chance grow with the square of their number."""
    images, scene, how = planted(3000, 300, seed=SEED + 1)
    recall, precision = measured(found_in(images), scene, how)
    assert recall == dict.fromkeys(PLANTS, 1.0)
    assert precision >= 0.99


def test_most_crops_that_were_recompressed_are_found():
    """No bar was set for two edits at once; but where a window fits, its colours must not be asked for too closely."""
    rng = np.random.default_rng(1)
    pairs = [(scene.image, recompressed(cropped(scene.image, rng), 60)) for scene in scenes(40, SEED + 3)]
    found = [len(similar.near_duplicates(np.stack([similar.thumbnail(image) for image in pair]))) for pair in pairs]
    assert sum(found) >= 36


@pytest.mark.slow
def test_scenes_of_one_caption_are_no_duplicates():
    by_caption = {}
    for scene in scenes(600, SEED + 2, pair_share=0):
        by_caption.setdefault(scene.caption, []).append(scene.image)
    images = [image for same in by_caption.values() if len(same) > 2 for image in same]
    labels = found_in(images)
    assert len(images) > 300
    assert len(set(labels)) >= 0.99 * len(images)


def test_order_does_not_matter():
    images, _, _ = planted(24, 5)
    order = np.random.default_rng(0).permutation(len(images))
    straight, shuffled = found_in(images), found_in([images[i] for i in order])
    np.testing.assert_array_equal(straight[order][:, None] == straight[order], shuffled[:, None] == shuffled)


def test_blocks_do_not_matter(monkeypatch):
    thumbnails = np.stack([similar.thumbnail(image) for image in planted(24, 5)[0]])
    pairs = similar.near_duplicates(thumbnails)
    monkeypatch.setattr(similar, "BLOCK", 7)
    np.testing.assert_array_equal(similar.near_duplicates(thumbnails), pairs)


def resized(image, side):
    return image.resize((side, side), Image.BICUBIC)


IN_OTHER_BYTES = {  # on scenes of 64 px, where compression leaves most
    "JPEG 95": lambda image: recompressed(image, 95), "JPEG 60": lambda image: recompressed(image, 60),
    "JPEG 50": lambda image: recompressed(image, 50), "to 32": lambda image: resized(image, 32),
    "to 256": lambda image: resized(image, 256), "to 48 and back": lambda image: resized(resized(image, 48), 64),
    "to 96, JPEG 60": lambda image: recompressed(resized(image, 96), 60),
    "palette": lambda image: image.quantize(256).convert("RGB")}
NOT_THE_SAME = {
    "dimmed": lambda image: image.point(lambda value: 0.9 * value), "cut": lambda image: image.crop((4, 4, 60, 60)),
    "mirrored": lambda image: image.transpose(Image.FLIP_LEFT_RIGHT)}


@cache
def sixty_scenes():
    return [scene.image for scene in scenes(60, SEED + 3)]


@pytest.mark.parametrize("how", [*IN_OTHER_BYTES, *NOT_THE_SAME])
def test_a_picture_in_other_bytes_is_known_and_an_edited_one_is_not_it(how):
    change = (IN_OTHER_BYTES | NOT_THE_SAME)[how]
    found = [similar.same_picture(similar.thumbnail(image), similar.thumbnail(change(image)), min(change(image).size))
             for image in sixty_scenes()]
    assert np.mean(found) >= 0.95 if how in IN_OTHER_BYTES else np.mean(found) <= 0.1  # of the cut ones 0 to 4, over six seeds


def test_the_same_sprite_a_pixel_aside_on_the_same_ground_is_another_picture():
    rng, names = np.random.default_rng(0), list(OBJECTS)
    for i in range(40):
        sprite_of, ground, (x, y) = sprite(names[i % len(names)]).resize((34, 34)), (56, 92, 208), rng.integers(0, 28, 2)
        one, other = (Image.new("RGB", (64, 64), ground) for _ in range(2))
        one.paste(sprite_of, (int(x), int(y)), sprite_of)
        other.paste(sprite_of, (int(x) + 1, int(y) + 1), sprite_of)
        assert similar.same_picture(similar.thumbnail(one), similar.thumbnail(recompressed(one, 60)))
        assert not similar.same_picture(similar.thumbnail(one), similar.thumbnail(other))


def test_flat_pictures_match_nothing_and_one_picture_is_alone():
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("#808080", "#818181", "white")]
    assert len(set(found_in(flat))) == 3
    assert list(found_in(flat[:1])) == [0]


def test_perceptual_hash_stays_close_under_edits_that_keep_the_place():
    rng = np.random.default_rng(0)
    bits = lambda image: np.unpackbits(np.frombuffer(bytes.fromhex(phash(image)), np.uint8))  # noqa: E731
    images = [scene.image for scene in scenes(30, SEED)]
    for how in ("resized", "recompressed"):
        assert max((bits(PLANTS[how](image, rng)) != bits(image)).sum() for image in images) <= 12
    assert np.median([(bits(a) != bits(b)).sum() for a, b in combinations(images, 2)]) > 20


def test_pdq_is_near_for_edits_and_far_for_other_pictures():
    """PDQ's authors count 31 of 256 bits as a match."""
    one, other = [scene.image for scene in scenes(2, 1)]
    hashes = [int(pdq_hash(image), 16) for image in (one, recompressed(one, 60), other)]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 31 < (hashes[0] ^ hashes[2]).bit_count()


# ----- risk

def example(i, *captions, copies=1):
    return Example(f"{i:04x}", captions, f"/data/{i}.png", None, f"{i:064x}", copies)


def test_risk_by_hand():
    data = Manifest((
        example(0, "a cat", copies=64),                                   # 0: own caption
        example(1, "A  dog"), *(example(i, "a dog") for i in range(2, 11)),   # 1 ... 10: ten pictures, one caption
        example(11, *(f"bus {k}" for k in range(5)), copies=64),          # 11: five captions in turn
        example(12, "a pig"), example(13, "a pig"),                       # two images of one picture
        example(14)))                                                     # without caption
    found = risks(data, [*range(13), 12, 14])
    assert found[0].risk == 64
    assert [r.risk for r in found[1:11]] == pytest.approx([0.1] * 10)
    assert found[11].risk == pytest.approx(12.8)
    assert (found[12].risk, found[12].exposures, found[13].risk) == (2, 2, 2)
    assert (found[14].risk, found[14].caption) == (1, "")
    assert [found[i].caption_pictures for i in (0, 1, 12)] == [1, 10, 1]
    assert found[11].own_words == ("0", "1", "2", "3", "4", "bus")
    assert found[1].own_words == ()
    assert ranking(found)[:4] == [0, 11, 12, 13]


def test_repeated_captions_by_hand():
    data = Manifest((example(0, "A dog"), example(1, "a  dog", "a pig", copies=4), example(2, "a pig"), example(3, "a cat")))
    assert repeated(data, [0, 0, 1, 2]) == [("A dog", 2, 1, 3.0), ("a pig", 2, 2, 3.0)]


# ----- the command

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve scenes, three of them with near-duplicates, one exact duplicate, odd captions, two broken files."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    own = list(scenes(12, SEED))
    for i, scene in enumerate(own):
        scene.image.save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(scene.caption)
    for i, how in enumerate(("resized", "cropped", "flipped")):
        PLANTS[how](own[i].image, rng).save(folder / f"{i:02d} {how}.png")
        (folder / f"{i:02d} {how}.txt").write_text("<script>alert(1)</script>")
    own[0].image.resize((160, 160), Image.LANCZOS).save(folder / "00 large.png")
    (folder / "99 exact.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "broken.png").write_bytes(b"<b>no image</b>")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "preflight"
    preflight_main([str(folder), "--output_dir", str(out), "--deduplicate", "true"])
    return out


def flown(path):
    """By colours alone, which find all that this folder repeats: `done` lays its pictures on one another too."""
    return preflight(read_source(path, need_captions=False), verify=False)


def test_the_table_says_what_is_there(folder, done):
    rows = pq.read_table(done / "images.parquet").to_pylist()
    names = {tuple(sorted(r["where"].rpartition("/")[2] for r in rows if r["cluster"] == c)) for c in {r["cluster"] for r in rows}
             if c is not None}
    assert names == {("00 large.png", "00 resized.png", "00.png"), ("01 cropped.png", "01.png"), ("02 flipped.png", "02.png"),
                     ("03.png", "99 exact.png")}
    assert [r["rank"] for r in rows] == list(range(1, 18))
    assert [r["risk"] for r in rows] == sorted((r["risk"] for r in rows), reverse=True)
    with open(done / "images.csv", newline="", encoding="utf-8") as stream:
        assert [r["image_id"] for r in csv.DictReader(stream)] == [r["image_id"] for r in rows]


def test_the_summary_counts(done, folder, capsys, tmp_path):
    preflight_main(["--train_data", str(folder), "--output_dir", str(tmp_path / "again"), "--verify", "false"])
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert {k: said[k] for k in ("images", "pictures", "clusters", "images_in_clusters", "exact_duplicates", "quarantined",
                                 "without_caption")} == {
        "images": 17, "pictures": 12, "clusters": 4, "images_in_clusters": 9, "exact_duplicates": 1, "quarantined": 2,
        "without_caption": 2}
    assert "2 images are left out" in err
    assert not (tmp_path / "again/deduplicated.parquet").exists()
    assert json.loads((done / "preflight.json").read_text())["hash"] == said["hash"]


def test_the_page_holds_everything_and_escapes_it(done):
    page = (done / "preflight.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<b>no image" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count('class="cluster"') == 4
    assert "empty.png cannot be read as an image (it is empty)" in page
    assert "99 exact.png<br>exact duplicate" in page


def test_of_a_plan_its_images_stay_and_their_copies_go(folder, done, tmp_path):
    planned = [replace(e, copies=4, group="duplicated") if e.name.endswith("/00 resized.png") else e
               for e in read_source(folder, need_captions=False).manifest]
    Manifest(tuple(planned)).save(tmp_path / "plan.parquet")
    kept = {e.name.rpartition("/")[2]: e.copies for e in deduplicated(flown(tmp_path / "plan.parquet"))}
    largest = load_source(done / "deduplicated.parquet", need_captions=False)
    assert kept == {e.name.rpartition("/")[2].replace("large", "resized"): 1 for e in largest}


def test_deduplicated_keeps_the_largest_of_each(done):
    kept = load_source(done / "deduplicated.parquet", need_captions=False)
    names = [e.name.rpartition("/")[2] for e in kept]
    assert names == ["00 large.png", "01.png", "02 flipped.png", *(f"{i:02d}.png" for i in range(3, 12))]
    assert flown(done / "deduplicated.parquet").clusters == []
    with open(done / "dropped.csv", newline="", encoding="utf-8") as stream:
        pairs = [(Path(r["where"]).name, Path(r["kept_where"]).name) for r in csv.DictReader(stream)]
    assert sorted(pairs) == [("00 resized.png", "00 large.png"), ("00.png", "00 large.png"), ("01 cropped.png", "01.png"),
                             ("02.png", "02 flipped.png"), ("99 exact.png", "03.png")]


def test_copies_of_a_manifest_count_as_exposures(folder, tmp_path):
    manifest = read_source(folder, need_captions=False).manifest
    many = Manifest(tuple(replace(e, copies=32 if e.name.endswith("/07.png") else 1) for e in manifest))
    many.save(tmp_path / "m.parquet")
    found = flown(tmp_path / "m.parquet")
    assert found.manifest[found.order[0]].name.endswith("/07.png")
    assert found.risks[found.order[0]].exposures == 32


def test_files_and_tables_are_looked_at_alike(folder, tmp_path):
    found = flown(folder)
    rows = [{"image": {"bytes": Path(e.file).read_bytes(), "path": None}, "caption": list(e.captions)} for e in found.manifest]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=4)
    assert flown(tmp_path / "x.parquet").clusters == found.clusters


@pytest.mark.parametrize("argv", [[], ["/nowhere"], ["--train_data"], ["DATA", "--nonsense", "1"]], ids=" ".join)
def test_bad_input_is_one_line(argv, folder, tmp_path, capsys):
    argv = [str(folder) if a == "DATA" else a for a in argv]
    with pytest.raises(SystemExit) as left:
        preflight_main([*argv, "--output_dir", str(tmp_path / "out")])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_output_is_not_overwritten(done, folder, capsys):
    with pytest.raises(SystemExit):
        preflight_main([str(folder), "--output_dir", str(done)])
    assert "pass --overwrite" in capsys.readouterr().err
