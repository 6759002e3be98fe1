"""What real folders hold: broken and odd images, odd names and captions. Nothing is fatal, nothing is dropped unnamed."""
import csv
import io
import json
import os
import re
import tarfile
import zlib

import datasets as hf_datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import image_folder

from rotescope.common.errors import InputError
from rotescope.datasets.images import image_bytes as encoded
from rotescope.datasets.manifest import Manifest, decode
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.preflight import main as preflight
from rotescope.datasets.prepare import main as prepare
from rotescope.datasets.readers.formats import from_hub
from rotescope.datasets.readers.sources import load_source, read_source


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


def bytes_of(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ramp(side=16, top=255, dtype=np.uint8):
    return Image.fromarray((np.arange(side * side).reshape(side, side) * top // (side * side - 1)).astype(dtype))


def png_that_claims(width, height):
    """A PNG header for an image that nobody would want to unpack."""
    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


# ----- what cannot be used is named

BROKEN = {
    "empty.png": b"",
    "cut.jpg": bytes_of(ramp(64), "JPEG")[:-100],
    "bomb.png": png_that_claims(50_000, 50_000),
    "page.jpg": b"<!doctype html><title>404</title>",
    "line.png": bytes_of(Image.new("RGB", (1, 1000)), "PNG"),
    "float.tiff": bytes_of(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    "deep.tiff": bytes_of(Image.fromarray(np.full((8, 8), 2**30, np.int32)), "TIFF"),
}


@pytest.fixture
def spoilt(folder):
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("a thing")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "silent.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def test_broken_images_are_quarantined_and_the_rest_is_used(spoilt):
    source = read_source(spoilt)
    assert [e.file for e in source.manifest] == [str(spoilt / f"{i}.png") for i in range(6)]
    assert {q.name for q in source.quarantined} == {str(spoilt / name) for name in (*BROKEN, "nowhere.png", "silent.png")}
    assert all(q.name in q.reason for q in source.quarantined)


def test_strict_loading_counts_them(spoilt):
    with pytest.raises(InputError, match=r"\(and 8 more like it\)"):
        load_source(spoilt)


def test_prepare_names_them_at_the_end(spoilt, tmp_path, capsys):
    prepare(["--train_data", str(spoilt), "--output_file", str(tmp_path / "m.parquet")])
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 6
    assert json.loads(out)["quarantined"] == 9
    rows = csv.DictReader((tmp_path / "m.quarantined.csv").read_text().splitlines())
    assert {r["name"] for r in rows} == {q.name for q in read_source(spoilt).quarantined}
    assert "9 images are left out" in " ".join(err.split())
    assert "bomb.png" in err
    assert len(load_source(tmp_path / "m.parquet")) == 6


def by_metadata(folder):
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n./2.png,b\n3.png,c\n")
    (folder / "photo.heic").touch()
    for i in range(6):
        (folder / f"{i}.txt").unlink()
    return 3, "4 files are left out of {}, not named in metadata.csv: 1.png, 4.png, 5.png, photo.heic"


def by_side_files(folder):
    (folder / "9.txt").touch()
    return 6, "1 file is left out of {}, neither images nor captions of one: 9.txt"


def by_shards(folder):
    shard(folder, ["0.txt", "0.png"])
    (folder / "data.TAR").touch()
    return 1, "13 files are left out of {}, beside the .tar files that are read: 0.png, 0.txt, 1.png, 1.txt, 2.png and 8 more"


def with_nothing_else(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache/0.lock").touch()
    load_source(folder).save(folder / "m.parquet")
    (folder / "m.quarantined.csv").touch()
    return 6, None


@pytest.mark.parametrize("layout", [by_metadata, by_side_files, by_shards, with_nothing_else])
def test_other_files_of_a_folder_are_counted_and_named(layout, folder, tmp_path, capsys):
    images, sentence = layout(folder)
    told = (sentence.format(folder),) if sentence else ()
    source = read_source(folder)
    assert (len(source.manifest), source.quarantined, source.unused) == (images, (), told)
    assert len(load_source(folder)) == images
    prepare(["--train_data", str(folder), "--output_file", str(tmp_path / "m.parquet")])
    assert capsys.readouterr().err.splitlines() == [f"warning: {t}" for t in told]
    assert not (tmp_path / "m.quarantined.csv").exists()


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png has no caption.*\(and 1 more like it\)"):
        read_source(tmp_path)


def test_a_manifest_goes_on_without_images_that_changed(folder, tmp_path):
    load_source(folder).save(tmp_path / "m.parquet")
    (folder / "2.png").unlink()
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    source = read_source(tmp_path / "m.parquet")
    assert [q.name for q in source.quarantined] == [str(folder / "2.png"), str(folder / "4.png")]
    assert len(source.manifest) == 4


def test_postscript_starts_no_interpreter(folder, tmp_path, monkeypatch):
    """Pillow would run it by whatever is called gs on the path, be the file's name what it may."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (folder / "x.png").write_bytes(bytes_of(ramp().convert("RGB"), "EPS"))
    left_out, = read_source(folder, need_captions=False).quarantined
    assert not (tmp_path / "ran").exists()
    assert "x.png cannot be read as an image (it is none of PNG, JPEG, WEBP," in left_out.reason


def test_several_pictures_in_one_jpeg_show_the_first():
    shown = decode(bytes_of(ramp().convert("RGB"), "MPO", save_all=True, append_images=[ramp().convert("RGB")]), "x")
    assert shown.size == (16, 16)


def test_prepare_refuses_a_manifest_whose_planned_image_is_gone(folder, tmp_path, capsys):
    plan = apply_plan(load_source(folder), DuplicationPlan(2, 3, controls=2))
    plan.save(tmp_path / "m.parquet")
    os.unlink(plan.group("control")[1].file)
    with pytest.raises(SystemExit) as left:
        prepare(["--train_data", str(tmp_path / "m.parquet"), "--output_file", str(tmp_path / "again.parquet")])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: the plan names images that cannot be used (1 control), the first: ")


def test_a_manifest_without_some_captions_is_quarantined_like_any_source(folder, tmp_path, capsys):
    """Pre-flight asks for no captions, so its manifests may lack some."""
    (folder / "4.txt").unlink()
    preflight([str(folder), "--output_dir", str(tmp_path / "looked"), "--deduplicate", "true"])
    manifest = tmp_path / "looked/deduplicated.parquet"
    prepare(["--train_data", str(manifest), "--output_file", str(tmp_path / "m.parquet")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["quarantined"] == 1
    assert [q.reason for q in read_source(manifest).quarantined] == [
        f"{folder / '4.png'} has no caption: write one or leave the image out"]
    assert (len(load_source(tmp_path / "m.parquet")), len(load_source(manifest, need_captions=False))) == (5, 6)


# ----- odd images are shown rightly

def test_exif_turns_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90° clockwise to be seen
    sideways = Image.fromarray(np.repeat(np.array([[10] * 8 + [200] * 8], np.uint8), 8, 0))  # dark left, bright right
    shown = np.asarray(decode(bytes_of(sideways, "JPEG", exif=exif, quality=95), "x"))
    assert shown.shape == (16, 8, 3)
    assert shown[:6].mean() < 30
    assert shown[-6:].mean() > 180


def test_sixteen_bits_keep_their_greys():
    shown = np.asarray(decode(bytes_of(ramp(top=65535, dtype=np.uint16), "PNG"), "x"))
    np.testing.assert_array_equal(shown[..., 0], (np.asarray(ramp(top=65535, dtype=np.uint16)) / 257 + .5).astype(np.uint8))
    assert len(np.unique(shown)) > 200  # not clipped at 255


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animations_show_their_first_frame(kind, options):
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue", "lime")]
    shown = decode(bytes_of(frames[0], kind, save_all=True, append_images=frames[1:], **options), "x")
    assert shown.getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "P", "RGBA", "1", "YCbCr"])
def test_other_modes_come_as_pillow_and_hugging_face_have_them(mode, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    (tmp_path / "x").write_bytes(bytes_of(image, kind))
    theirs = hf_datasets.Image().decode_example({"path": str(tmp_path / "x"), "bytes": None}).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode((tmp_path / "x").read_bytes(), "x")), np.asarray(theirs))


# ----- odd names and captions

NAMES = [b"two words.png", b"%20;&<b>.png", "猫.png".encode(), b"caf\xe9.png", b"\xff\xfe.png", b"new\nline.png",
         b"quote\"s and 'quotes'.png"]


def test_odd_names_survive_the_manifest(tmp_path):
    folder = image_folder(tmp_path / "images", len(NAMES))
    for i, name in enumerate(NAMES):
        for suffix in (b".png", b".txt"):
            os.rename(os.fsencode(folder / str(i)) + suffix, os.fsencode(folder) + b"/" + name[:-4] + suffix)
    manifest = load_source(folder)
    manifest.save(tmp_path / "m.parquet")
    assert {os.path.basename(os.fsencode(e.file)) for e in manifest} == set(NAMES)
    assert load_source(tmp_path / "m.parquet") == manifest
    assert all(e.name.encode() for e in manifest)


def test_odd_folders_are_read_and_written(tmp_path):
    odd = tmp_path / os.fsdecode(b"tr\xff \xe9")
    image_folder(odd / "images")
    for i, source in enumerate(("images", "0.parquet")):
        prepare(["--train_data", str(odd / source), "--output_file", str(odd / f"{i}.parquet")])
    assert load_source(odd / "1.parquet") == load_source(odd / "images")
    rows = [{"text": "a", "image": {"bytes": (odd / f"images/{i}.png").read_bytes(), "path": None}} for i in range(2)]
    with open(odd / "data.parquet", "wb") as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)
    assert [e.open().size for e in load_source(odd / "data.parquet")] == [(16, 16)] * 2
    preflight(["--train_data", str(odd / "images"), "--output_dir", str(odd / "looked"), "--deduplicate", "--verify",
               "false"])
    told = json.loads((odd / "looked/preflight.json").read_text(encoding="utf-8"))
    assert told["config"]["train_data"] == str(odd / "images")


CAPTIONS = ["<b>bold</b> &amp; <script>alert(1)</script>",
            "two\n\nparagraphs, \"quoted\"", "word " * 2000 + "end", "line\u2028separator",
            "猫 🐈", "tab\tand \\ and |"]


@pytest.mark.parametrize("layout", ["csv", "jsonl", "tar"])
def test_odd_captions_survive(layout, folder, tmp_path):
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(CAPTIONS)]
    if layout == "csv":
        with open(folder / "metadata.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif layout == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        with tarfile.open(folder / "x.tar", "w") as tar:
            for i, text in enumerate(CAPTIONS):
                (folder / f"{i}.txt").write_text(text)
                tar.add(folder / f"{i}.txt", f"a folder/{i}.txt")
                tar.add(folder / f"{i}.png", f"a folder/{i}.PNG")
    manifest = load_source(folder)
    manifest.save(tmp_path / "m.parquet")
    assert [e.captions[0] for e in manifest] == [e.captions[0] for e in Manifest.load(tmp_path / "m.parquet")] == CAPTIONS


def test_half_characters_and_numbers_are_no_captions(folder):
    rows = [{"caption": "half \ud800 pair"}, {"caption": 3}, {"caption": None}, {"caption": ["one", "", "two"]}]
    lines = [json.dumps({"file_name": f"{i}.png", **row}) for i, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, "no json"]))
    source = read_source(folder)
    assert [e.captions for e in source.manifest] == [("half ? pair",), ("one", "two")]
    assert [q.reason.partition(": ")[0].rpartition("/")[2] for q in source.quarantined] == [
        "1.png has no caption", "2.png has no caption", "metadata.jsonl names no image in entry 5"]


def test_names_that_no_file_can_have_are_quarantined(folder):
    names = ["0.png", "1\0.png", "half \ud800.png", 7, ""]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": "a cat"}) + "\n" for n in names))
    source = read_source(folder)
    assert len(source.manifest) == 1
    assert [q.reason.partition(": ")[0].rpartition(" ")[2] for q in source.quarantined] == ["2", "3", "4", "5"]


@pytest.mark.parametrize(("cells", "used", "reason"), [
    ([{"path": "0.png"}, {"path": None}, {"path": "1\0.png"}], 1, "row 1 of .* neither an image nor a file's name"),
    ([{"path": 0}, {"path": 3}], 0, "row 0 of .* neither"),
    (["0.png", "", None], 1, "row 1 of .* neither"),
    ([{"picture": "0.png"}], 0, "row 0 of .* neither"),
], ids=str)
def test_a_table_of_paths_needs_no_bytes(cells, used, reason, folder):
    pq.write_table(pa.Table.from_pylist([{"image": cell, "caption": "a cat"} for cell in cells]), folder / "x.parquet")
    if not used:
        with pytest.raises(InputError, match=reason):
            read_source(folder / "x.parquet")
        return
    source = read_source(folder / "x.parquet")
    assert ([e.file for e in source.manifest], len(source.quarantined)) == ([str(folder / "0.png")], len(cells) - 1)
    assert re.search(reason, source.quarantined[0].reason)


# ----- archives and data sets

def shard(folder, names):
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in names:
            tar.add(folder / name, name)
    return folder / "x.tar"


def test_a_cut_archive_gives_what_it_has(folder):
    file = shard(folder, ["0.txt", "0.png", "1.txt", "1.png", "2.txt", "2.png"])
    with tarfile.open(file) as tar:
        second = tar.getmember("1.png").offset_data
    file.write_bytes(file.read_bytes()[:second + 100])
    source = read_source(file)
    assert [e.captions for e in source.manifest] == [((folder / "0.txt").read_text(),)]
    assert ["image file is truncated" in q.reason or "is no whole tar" in q.reason for q in source.quarantined] == [True, True]


def test_compressed_archive_and_captions_without_image_are_named(folder):
    file = shard(folder, ["0.txt", "0.png", "1.txt"])
    assert [q.reason for q in read_source(file).quarantined] == [f"'1' in {file} has a caption and no image: leave it out"]
    with tarfile.open(folder / "z.tar", "w:gz") as tar:
        tar.add(folder / "0.png", "0.png")
    with pytest.raises(InputError, match="is no whole tar .* uncompressed"):
        read_source(folder / "z.tar")


def test_links_in_an_archive_are_not_followed(folder):
    with tarfile.open(folder / "x.tar", "w") as tar:
        tar.add(folder / "0.png", "0.png")
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    assert len(read_source(folder / "x.tar", need_captions=False).manifest) == 1


def test_broken_shard_among_good_ones(folder):
    (folder / "shards").mkdir()
    shard(folder, ["0.txt", "0.png"]).rename(folder / "shards/0.tar")
    (folder / "shards/1.tar").write_bytes(b"nonsense" * 100)
    source = read_source(folder / "shards")
    assert (len(source.manifest), [q.name for q in source.quarantined]) == (1, [str(folder / "shards/1.tar")])


def test_archive_is_listed_once_and_read_by_place(folder, monkeypatch):
    file = shard(folder, sorted(f.name for f in folder.iterdir()))
    manifest = load_source(file)
    monkeypatch.setattr(tarfile, "open", None)  # the list is kept: no image costs another walk through the archive
    assert [e.open().size for e in manifest] == [(16, 16)] * 6
    encoded.tar_members.cache_clear()


def test_data_set_by_name_goes_through_hugging_face(folder, tmp_path, monkeypatch):
    """Offline, its loader takes a local folder for a name; the rows then lie in its cache, as those of a download do."""
    monkeypatch.setattr(hf_datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "named").mkdir()
    rows = [{"text": text, "image": {"bytes": (folder / f"{i}.png").read_bytes(), "path": None}} for i, text in enumerate("ab")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "named/train.parquet")
    found = list(from_hub(str(tmp_path / "named")))
    assert [captions for captions, _, _ in found] == [("a",), ("b",)]
    assert found[0][1].suffix == ".arrow"
    assert decode(encoded.read_encoded(str(found[1][1]), found[1][2]), "x").size == (16, 16)


def test_unknown_name_is_one_line():
    with pytest.raises(InputError, match="no data at nobody/nothing, and the hub does not give it"):
        read_source("nobody/nothing")
