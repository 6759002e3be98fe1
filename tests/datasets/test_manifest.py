"""Sources, manifests, duplication plans, pixels: against the files themselves, other libraries and counts by hand."""
import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets as hf_datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import image_folder
from torchvision import transforms

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import HERE as EMOJI
from rotescope.datasets.images import image_bytes as encoded
from rotescope.datasets.images.to_pixels import to_pixels
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import REWORDINGS, DuplicationPlan, apply_plan
from rotescope.datasets.prepare import main as prepare
from rotescope.datasets.readers.sources import load_source


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


@pytest.fixture(scope="module")
def emoji():
    return load_source(EMOJI / "finetune.parquet")


def pixels(manifest):
    return [np.asarray(e.open()) for e in manifest]


def rows(folder):
    """-> (file name, caption) of an image folder with side files."""
    return [(f.name, f.with_suffix(".txt").read_text()) for f in sorted(folder.glob("*.png"))]


# ----- sources: the same six images in every layout

def as_side_files(folder):
    return folder


def as_metadata_csv(folder):
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(f'{name},"{text}"\n' for name, text in rows(folder)))
    return folder


def as_metadata_jsonl(folder):
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "caption": t}) + "\n" for n, t in rows(folder)))
    return folder


def hugging_face(folder):
    table = {"text": [t for _, t in rows(folder)], "image": [str(folder / n) for n, _ in rows(folder)]}
    return hf_datasets.Dataset.from_dict(table).cast_column("image", hf_datasets.Image())


def as_parquet(folder):
    table = [{"caption": t, "image": {"bytes": (folder / n).read_bytes(), "path": n}} for n, t in rows(folder)]
    pq.write_table(pa.Table.from_pylist(table), folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


def as_parquet_of_paths(folder):
    table = [{"caption": [t, "another"], "image": {"bytes": None, "path": n}} for n, t in rows(folder)]
    pq.write_table(pa.Table.from_pylist(table), folder / "data.parquet")
    return folder / "data.parquet"


def as_parquet_of_bytes(folder):
    images, texts = zip(*(((folder / n).read_bytes(), t) for n, t in rows(folder)), strict=True)
    pq.write_table(pa.table({"image": images, "text": texts}), folder / "data.parquet")
    return folder / "data.parquet"


def as_parquet_folder(folder):
    (folder / "data").mkdir()
    for part in (0, 1):
        hugging_face(folder).shard(2, part, contiguous=True).to_parquet(folder / f"data/train-{part}-of-2.parquet")
    return folder / "data"


def as_saved_dataset(folder):
    hugging_face(folder).map(lambda row: row).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def as_saved_splits(folder):
    data = hugging_face(folder)
    hf_datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(folder / "saved")
    return folder / "saved"


def as_tar(folder):
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for name, _ in rows(folder):
            tar.add(folder / name, name)
            tar.add((folder / name).with_suffix(".txt"), Path(name).with_suffix(".txt"))
    return folder / "shard-000.tar"


def as_tar_folder(folder):
    """img2dataset's layout: the caption in a text file and among others in a JSON file."""
    (folder / "shards").mkdir()
    for part in (0, 1):
        with tarfile.open(folder / f"shards/{part:05d}.tar", "w") as tar:
            for name, text in rows(folder)[3 * part:3 * part + 3]:
                (folder / "about.json").write_text(json.dumps({"caption": text, "url": "https://example.org"}))
                tar.add(folder / name, f"./{name}")
                tar.add(folder / "about.json", f"./{Path(name).with_suffix('.json')}")
    return folder / "shards"


LAYOUTS = [as_side_files, as_metadata_csv, as_metadata_jsonl, as_parquet, as_parquet_of_paths, as_parquet_of_bytes,
           as_parquet_folder, as_saved_dataset, as_saved_splits, as_tar, as_tar_folder]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_every_layout_gives_the_same_images_and_captions(layout, folder):
    manifest = load_source(layout(folder))
    assert [e.captions[0] for e in manifest] == [text for _, text in rows(folder)]
    for found, (name, _) in zip(pixels(manifest), rows(folder), strict=True):
        np.testing.assert_array_equal(found, np.asarray(Image.open(folder / name).convert("RGB")))


def test_embedded_data_agrees_with_hugging_face(emoji):
    data = hf_datasets.Dataset.from_parquet(str(EMOJI / "finetune.parquet"), keep_in_memory=True)
    assert [e.captions for e in emoji] == [(c,) for c in data["caption"]]
    for i in (0, 1234, 2999):
        np.testing.assert_array_equal(np.asarray(emoji[i].open()), np.asarray(data[i]["image"].convert("RGB")))


def test_ids_come_from_content_and_doubles_are_numbered(folder):
    for double in ("8.png", "9.png"):
        (folder / double).write_bytes((folder / "0.png").read_bytes())
        (folder / double).with_suffix(".txt").write_text("first line\n\nsecond line\n")
    first, *others, second, third = load_source(folder)
    assert first.image_id == hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()[:16]
    assert (second.image_id, third.image_id) == (first.image_id + "-2", first.image_id + "-3")
    assert second.captions == ("first line", "second line")
    assert len({e.image_id for e in others}) == 5


def test_captions_are_optional_where_images_alone_matter(folder):
    (folder / "3.txt").unlink()
    assert load_source(folder, need_captions=False)[3].captions == ()


# ----- bad input

def broken(folder):
    for name in ("2.png", "4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    return folder, r"2\.png cannot be read as an image .*\(and 1 more like it\)"


def captionless(folder):
    (folder / "5.txt").write_text("  \n")
    return folder, r"5\.png has no caption"


def missing_image(folder):
    as_metadata_csv(folder)
    (folder / "1.png").unlink()
    return folder, r"1\.png cannot be read"


def missing_column(folder):
    pq.write_table(pa.table({"picture": [1]}), folder / "data.parquet")
    return folder / "data.parquet", r"no column `image` \(it has picture\)"


def not_parquet(folder):
    (folder / "data.parquet").write_text("nonsense")
    return folder / "data.parquet", "cannot be read as Parquet"


def no_file_name(folder):
    (folder / "metadata.jsonl").write_text('{"caption": "a cat"}\n')
    return folder, "names no image in entry 1"


def nothing_there(folder):
    return folder / "nowhere", "no data at"


def no_images(folder):
    (folder / "empty").mkdir()
    return folder / "empty", "holds no images"


def gone_from_manifest(folder):
    load_source(folder).save(folder.parent / "m.parquet")
    (folder / "0.png").unlink()
    return folder.parent / "m.parquet", r"0\.png cannot be read .* prepare the data again"


def changed_since_manifest(folder):
    load_source(folder).save(folder.parent / "m.parquet")
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    return folder.parent / "m.parquet", r"0\.png has changed"


BAD = [broken, captionless, missing_image, missing_column, not_parquet, no_file_name, nothing_there, no_images,
       gone_from_manifest, changed_since_manifest]


@pytest.mark.parametrize("case", BAD, ids=lambda f: f.__name__)
def test_bad_data_is_named(case, folder):
    path, message = case(folder)
    with pytest.raises(InputError, match=message):
        load_source(path)


def test_decompression_bombs_are_refused(folder, monkeypatch):
    monkeypatch.setattr(encoded, "MAX_PIXELS", 255)
    with pytest.raises(InputError, match="16 × 16 pixels are more than 255"):
        load_source(folder)


# ----- manifests

def test_manifest_survives_the_disk(folder, tmp_path):
    plan = DuplicationPlan(duplicated=2, copies=7, captions="several", controls=2)
    manifest = apply_plan(load_source(folder), plan).with_served(range(6))
    manifest.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet") == manifest == load_source(tmp_path / "m.parquet")


def test_relative_names_in_a_manifest_count_from_its_folder(folder):
    Manifest(tuple(replace(e, file=e.file.rsplit("/", 1)[1]) for e in load_source(folder))).save(folder / "m.parquet")
    assert pixels(load_source(folder / "m.parquet"))[0].shape == (16, 16, 3)


def test_hash_tells_ids_captions_and_copies(folder):
    manifest = load_source(folder)
    others = [replace(manifest[0], copies=2), replace(manifest[0], captions=("x",)), replace(manifest[0], image_id="x")]
    assert len({manifest.hash, *(Manifest((e, *manifest.examples[1:])).hash for e in others)}) == 4
    assert Manifest((replace(manifest[0], file="elsewhere", served=3), *manifest.examples[1:])).hash == manifest.hash


EDITED = [("copies", 0), ("copies", -3), ("copies", None), ("copies", "many"), ("copies", -0.5), ("file", None), ("file", ""),
          ("file", "0\0.png"), ("sha256", None), ("sha256", "abc"), ("captions", None), ("captions", [None]),
          ("captions", "a cat"), ("captions", [" "]), ("image_id", None), ("row", -1), ("served", -1)]


@pytest.mark.parametrize(("field", "value"), EDITED, ids=str)
def test_an_edited_manifest_is_refused_by_row_and_field(field, value, folder, tmp_path, capsys):
    file = tmp_path / "m.parquet"
    load_source(folder).save(file)
    rows = pq.read_table(file).to_pylist()
    if isinstance(value, (str, float)):   # the other rows of a column are of its kind
        rows = [row | {field: type(value)(row[field][0] if field == "captions" else row[field])} for row in rows]
    rows[4][field] = value
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(SystemExit) as left:
        prepare(["--train_data", str(file), "--output_file", str(tmp_path / "again.parquet")])
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert f"of {file}, a manifest, has {field} " in said
    assert not (tmp_path / "again.parquet").exists()


def test_a_manifest_may_leave_out_what_has_a_default(folder, tmp_path):
    manifest = load_source(folder)
    manifest.save(tmp_path / "m.parquet")
    least = pq.read_table(tmp_path / "m.parquet", columns=["image_id", "captions", "file", "sha256"])
    pq.write_table(least, tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet") == manifest


# ----- plans

def test_plan_counts(emoji):
    planned = apply_plan(emoji, DuplicationPlan(duplicated=24, copies=92, controls=30))
    duplicated, controls = planned.group("duplicated"), planned.group("control")
    assert Counter(e.copies for e in planned) == {1: 2976, 92: 24}
    assert planned.copies == 2976 + 24 * 92
    assert {e.copies for e in duplicated} == {92}
    assert (len(duplicated), len(controls), len(planned)) == (24, 30, 3000)
    assert len({e.captions for e in (*duplicated, *controls)}) == 54


def test_plan_depends_on_seed_and_not_on_order(emoji):
    def chosen(manifest, seed):
        planned = apply_plan(manifest, DuplicationPlan(duplicated=24, copies=9, controls=24, seed=seed))
        return {e.image_id: e.group for e in planned if e.group}
    assert chosen(emoji, 0) == chosen(Manifest(emoji.examples[::-1]), 0)
    assert len(chosen(emoji, 0).keys() & chosen(emoji, 1).keys()) < 8


def test_exclusive_plan_leaves_nobody_else_the_captions(emoji):
    planned = apply_plan(emoji, DuplicationPlan(duplicated=24, copies=9, controls=24, exclusive=True))
    taken = {c for e in planned.group("duplicated") for c in e.captions}
    assert not [e for e in planned if e.group != "duplicated" and taken & set(e.captions)]
    assert len(planned) == 3000 - sum(bool(taken & set(e.captions)) for e in emoji) + 24


def test_doubles_are_neither_duplicated_nor_controls_of_each_other(folder):
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "9.txt").write_text("the same picture")
    assert len({e.sha256 for e in apply_plan(load_source(folder), DuplicationPlan(3, 2, controls=3)) if e.group}) == 6


def test_several_captions(folder):
    same, several = (apply_plan(load_source(folder), DuplicationPlan(2, 5, captions=c)) for c in ("same", "several"))
    for one, many in zip(same.group("duplicated"), several.group("duplicated"), strict=True):
        assert many.captions == tuple(r.format(one.captions[0]) for r in REWORDINGS)
        assert len(set(many.captions)) == len(REWORDINGS)
        assert many.captions[0] == one.captions[0]


def test_named_images_repeat(folder):
    manifest = load_source(folder)
    ids = (manifest[4].image_id, manifest[1].image_id)
    planned = apply_plan(manifest, DuplicationPlan(ids, 5, controls=2))
    assert [e.copies for e in planned] == [1, 5, 1, 1, 5, 1]


@pytest.mark.parametrize(("plan", "message"), [
    (dict(duplicated=7), "7 duplicated images with captions of their own, there are 6"),
    (dict(duplicated=4, controls=3), "3 control images with captions of their own, there are 2"),
    (dict(duplicated=("0123",)), "names 1 images that the data does not have, 0123"),
    (dict(duplicated=1, captions="poem"), "no caption style 'poem'"),
    (dict(duplicated=1, copies=0), "0 copies"),
    (dict(duplicated=-1), "cannot be negative"),
])
def test_impossible_plans(plan, message, folder):
    with pytest.raises(InputError, match=message):
        apply_plan(load_source(folder), DuplicationPlan(**plan))


def test_a_plan_is_made_once(folder):
    plan = DuplicationPlan(2, 5)
    with pytest.raises(InputError, match="has a duplication plan already"):
        apply_plan(apply_plan(load_source(folder), plan), plan)


# ----- pixels

@pytest.mark.parametrize("size", [(64, 64), (80, 60), (61, 97), (20, 33)])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_as_in_diffusers_scripts(size, flip):
    """Its train_text_to_image.py: Resize (Lanczos), CenterCrop, flip, ToTensor, Normalize(0.5, 0.5)."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    theirs = transforms.Compose([
        transforms.Resize(32, interpolation=transforms.InterpolationMode.LANCZOS), transforms.CenterCrop(32),
        transforms.RandomHorizontalFlip(float(flip)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(image)
    torch.testing.assert_close(to_pixels(image, 32, flip=flip), theirs, atol=1e-6, rtol=0)


def test_place_moves_the_crop():
    image = Image.fromarray(np.repeat(np.arange(0, 96, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2))
    left, right = (to_pixels(image, 32, center_crop=False, place=(x, 0.5)) for x in (0, 1))
    assert ((left + 1) * 127.5)[0, 0, 0].round() == 0
    assert ((right + 1) * 127.5)[0, 0, -1].round() == 95


# ----- prepare

def test_prepare_prints_a_summary_and_writes_the_manifest(folder, tmp_path, capsys):
    prepare(["--train_data", str(folder), "--output_file", str(tmp_path / "m.parquet"), "--duplicated", "2", "--copies", "4"])
    summary = json.loads(capsys.readouterr().out)
    manifest = Manifest.load(tmp_path / "m.parquet")
    assert summary["copies"] == manifest.copies == 4 + 2 * 4
    assert summary["hash"] == manifest.hash


@pytest.mark.parametrize("argv", [["--duplicated", "99"], ["--caption_style", "poem"], ["--nonsense", "1"], ["--duplicated", "x"],
                                  ["--output_file", "m.csv"], ["--duplicated", "1", "--duplicated_ids", "abc"]], ids=" ".join)
def test_prepare_refuses_in_one_line(argv, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        prepare(["--train_data", str(folder), "--output_file", str(tmp_path / "out" / "m.parquet"), *argv])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
