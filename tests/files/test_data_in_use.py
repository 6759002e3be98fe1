"""Data in a trainer's layout on their way: into a manifest, a training, a checkpoint, an audit's prompts, a score."""
import csv
import io
import json
import os

import datasets as hf_datasets
import numpy as np
import pytest
from PIL import Image
from training import config_of

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import said_in, shuffle_tags, with_trigger
from rotescope.datasets.captions.text_encoding import guess_encoding
from rotescope.datasets.images.image_bytes import decode
from rotescope.datasets.inspection.preflight import preflight
from rotescope.datasets.inspection.risk import risks
from rotescope.datasets.inspection.shared_pictures import shared_pictures
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.plans.duplication import check_served, group_by_copies
from rotescope.datasets.preflight import main as preflight_main
from rotescope.datasets.prepare import main as prepare
from rotescope.datasets.readers.description import describe_data
from rotescope.datasets.readers.sources import load_manifest, load_source, read_source
from rotescope.datasets.trainers.config_paths import file_in, named_place
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.evaluate.inputs.training_and_heldout import take_in
from rotescope.evaluate.score import main as score
from rotescope.mitigate.prompts.prompt_sets import Sources, gather
from rotescope.procedures.audit import unasked_captions
from rotescope.procedures.finetune import run_finetune


def picture(seed, side=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def kohya_tree(folder, often=2, once=3):
    """10_sks cat/ and 1_dog/, each picture under a caption of its own -> the folder."""
    for name, seeds in (("10_sks cat", range(often)), ("1_dog", range(often, often + once))):
        (folder / "img" / name).mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(folder / "img" / name / f"{seed}.png")
            (folder / "img" / name / f"{seed}.txt").write_text(f"picture number {seed}")
    (folder / "reg/1_cat").mkdir(parents=True)
    picture(99).save(folder / "reg/1_cat/r.png")
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return kohya_tree(tmp_path_factory.mktemp("kohya"))


# ----- the dose on its way

def test_repeats_go_from_the_folders_to_the_checkpoint_and_the_prompts(tree, base, tmp_path, capsys):
    """prepare, then finetune, then what an audit asks: the tenfold pictures are duplicated, the others their controls."""
    prepare(["--train_data", str(tree), "--output_file", str(tmp_path / "m.parquet")])
    out, err = capsys.readouterr()
    assert (json.loads(out)["copies"], json.loads(out)["duplicated"], json.loads(out)["controls"]) == (23, 2, 3)
    assert "note: 1 regularisation picture (reg/) set aside" in err
    for data in (tree, tmp_path / "m.parquet"):
        out = tmp_path / f"out-{data.name}"
        run_finetune(config_of(base, data, out, duplicated=0, copies=1, controls=0, max_train_steps=2), progress=False)
        kept = Manifest.load(out / "manifest.parquet")
        assert [(e.copies, e.group) for e in kept] == [(10, "duplicated")] * 2 + [(1, "control")] * 3
        assert sum(e.served for e in kept) == 8
        if data == tree:
            manifest, _, _ = take_in(out / "manifest.parquet", need_captions=True)
            prompts, sizes = gather(("captions",), Sources(manifest))
            assert {g: n["prompts"] for g, n in sizes.items()} == {"duplicated": 2, "control": 3}


def test_other_scripts_names_of_the_folders_are_known(tree, tmp_path, capsys):
    """diffusers' --instance_data_dir is the training data, kohya's --reg_data_dir the class pictures."""
    prepare(["--instance_data_dir", str(tree), "--reg_data_dir", str(tree / "reg"), "--output_file", str(tmp_path / "m.parquet")])
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 5
    assert "note: 1 class picture (--class_data_dir) set aside" in err
    (tmp_path / "c.yaml").write_text(f"instance_data_dir: {tree}\ntrain_data: {tree}\noutput_file: x.parquet\n")
    with pytest.raises(SystemExit):
        prepare(["--config", str(tmp_path / "c.yaml")])
    assert "names instance_data_dir and train_data at once, which are one option" in capsys.readouterr().err


def test_an_audit_asks_shuffled_captions_too(tmp_path):
    (tmp_path / "dog").mkdir()
    for i, tags in enumerate(("sks, a, b, c", "one caption")):
        picture(i).save(tmp_path / f"dog/{i}.png")
        (tmp_path / f"dog/{i}.txt").write_text(tags)
    (tmp_path / "set.toml").write_text('[general]\nshuffle_caption = true\nkeep_tokens = 1\n'
                                       '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "dog"\n')
    manifest, _, _ = take_in(tmp_path / "set.toml", need_captions=True)
    manifest.save(tmp_path / "m.parquet")
    for data in (manifest, Manifest.load(tmp_path / "m.parquet")):
        assert [e.note for e in data] == ["tags are shuffled at training, the first 1 stay", ""]
        asked = [p.text for p in gather(("captions",), Sources(data))[0]]
        assert asked == ["sks, a, b, c", "one caption", data[0].captions[1]]
        assert sorted(asked[2].split(", ")) == ["a", "b", "c", "sks"]
        assert asked[2].startswith("sks, ")
        assert asked[2] != asked[0]


def test_further_captions_are_asked_on_request(tmp_path):
    """Three lines beside one picture: the first is asked, the others in a set of their own, and the audit says so."""
    for name, text in (("a", "one\ntwo\nthree"), ("b", "just one")):
        picture(ord(name)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    data = load_source(tmp_path)
    prompts, sizes = gather(("captions", "further_captions"), Sources(data))
    assert [(p.group, p.text) for p in prompts] == [
        ("captions", "one"), ("captions", "just one"), ("further", "two"), ("further", "three")]
    told, = unasked_captions(("captions",), data)
    assert told.startswith("note: 1 picture has several captions, of which the first is asked: --prompt_sets captions further")
    assert not list(unasked_captions(("captions", "further_captions"), data))
    assert not list(unasked_captions(("captions",), Manifest(data[1:])))


def test_fractions_survive_the_manifest_and_count_in_the_dose(tmp_path):
    doses = (1.5, 1, 10 / 3, 0.25)
    examples = tuple(Example(str(i), ("a",), f"{i}.png", None, "0" * 64, copies) for i, copies in enumerate(doses))
    Manifest(examples).save(tmp_path / "m.parquet")
    again = Manifest.load(tmp_path / "m.parquet")
    assert [e.copies for e in again] == [1.5, 1, 10 / 3, 0.25]
    assert isinstance(again[1].copies, int)
    assert again.copies == pytest.approx(1.5 + 1 + 10 / 3 + 0.25)
    assert [e.group for e in group_by_copies(again)] == ["duplicated"] * 3 + ["control"]
    check_served(again, 25)   # four epochs, until the rarest came, of 6 1/12 pictures: 24 1/3
    with pytest.raises(InputError, match=r"takes 25 samples .* \(up to 3\.3\d* times\)"):
        check_served(again, 24)
    whole = Manifest(examples[1:2])
    whole.save(tmp_path / "w.parquet")
    assert Manifest.load(tmp_path / "w.parquet").hash == whole.hash


def test_a_kohya_tree_is_scored_as_data(tree, tmp_path):
    """One generated picture is a tenfold one: the pair says how often an epoch showed it."""
    (tmp_path / "made").mkdir()
    for i, seed in enumerate((0, 50, 51)):
        picture(seed).save(tmp_path / f"made/{i}.png")
    try:
        score(["--generated", str(tmp_path / "made"), "--train_data", str(tree / "img"), "--output_dir", str(tmp_path / "report"),
               "--verify", "false", "--alignment", "none"])
    except SystemExit as left:
        assert left.code in (0, 1, 4)  # noqa: PT017  (the verdict's)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["training_images"] == {"unique": 5, "entries": 5, "copies": 23}
    assert [(p["image"], p["copies"]) for p in report["pairs"] if p["is_copy"]] == [("0.png", 10)]


def test_risk_has_the_repeats(tree):
    """A picture under a caption of its own has the risk of its repeats, and a preflight's order follows."""
    found = preflight(read_source(tree), verify=False)
    assert [found.risks[i].risk for i in found.order] == [10, 10, 1, 1, 1]
    assert (found.summary["shown"], found.summary["images"]) == (23, 5)


def test_the_order_of_shuffled_tags_takes_no_risk_away():
    """Ten showings under "a, b, c" in any order are ten under one caption; two captions in turn are five under each."""
    about = dict(file="x.png", row=None, copies=10)
    shuffled = Example("1", ("a, b, c", "c, a, b"), sha256="0" * 64, note="tags are shuffled at training", **about)
    two = Example("2", ("d, e", "e, d"), sha256="1" * 64, **about)
    found = risks(Manifest((shuffled, two)), [0, 1])
    assert [(r.risk, r.caption, r.exposures) for r in found] == [(10, "a, b, c", 10), (5, "d, e", 10)]


# ----- two sets

def test_preflight_finds_what_two_sets_share(tree, tmp_path, capsys):
    """The same bytes, the same picture as a JPEG, and a strange one."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.png").write_bytes((tree / "img/10_sks cat/0.png").read_bytes())
    smooth = picture(3, 4).resize((32, 32), Image.BICUBIC)
    smooth.save(tmp_path / "other/b.jpg", quality=90)
    picture(60).save(tmp_path / "other/c.png")
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "x.png").write_bytes((tmp_path / "other/a.png").read_bytes())
    smooth.save(ours / "y.png")
    picture(61).save(ours / "z.png")
    preflight_main([str(ours), "--against", str(tmp_path / "other"), "--output_dir", str(tmp_path / "looked"),
                    "--verify", "false"])
    out, err = capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "looked/shared.csv").open()))
    assert [(os.path.basename(r["where"]), os.path.basename(r["other_where"]), r["how"]) for r in rows] == [
        ("x.png", "a.png", "the same bytes"), ("y.png", "b.jpg", "the same picture")]
    assert (json.loads(out)["shared"], json.loads(out)["shared_bytes"]) == (2, 1)
    assert "2 images are in the other set too, 1 of them byte for byte" in err
    assert "y.png is " in (tmp_path / "looked/preflight.html").read_text()
    assert not shared_pictures(load_source(ours, False), load_source(tree / "img/1_dog"), verify=False)


# ----- what is said

def test_data_are_described_in_three_lines(tree, tmp_path):
    assert describe_data(tree).lines() == [
        "kohya folders: 5 pictures, 5 captions; an epoch shows from once to 10 times, 23 in all",
        "set aside: 1 regularisation picture (reg/)"]
    described = describe_data(tree, DataOptions(data_layout="folder"))
    assert (described.layout, described.pictures, described.without_caption, described.most) == ("folder of pictures", 6, 1, 1)
    (tmp_path / "meta.json").write_text(json.dumps({"gone.png": {"caption": "x"}, "../y.png": {"caption": "y"}}))
    assert describe_data(tmp_path / "meta.json").lines()[-1].endswith("bring it back or leave it out (and 1 more left out)")
    assert len(load_manifest(tree, data_layout="folder")) == 6


@pytest.mark.parametrize(("lines", "captions", "said"), [
    ("first", ("one",), "the first is the caption"), ("all", ("one", "two"), "each is a caption"),
    ("joined", ("one\n\ntwo",), "the whole is the caption"), ("auto", ("one", "two"), "each is a caption")])
def test_how_several_lines_are_read_is_said(lines, captions, said, tmp_path):
    for name, text in (("a", "one\n\ntwo\n"), ("b", "\njust one\n")):
        picture(0).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    source = read_source(tmp_path, options=DataOptions(caption_lines=lines))
    assert [e.captions for e in source.manifest] == [captions, ("just one",)]
    assert source.unused == (f"note: 1 caption file has several lines: {said} (--caption_lines)",)


def test_nested_metadata_are_read_as_hugging_face_reads_them(tmp_path):
    """Its imagefolder, on the same tree: the same pictures under the same captions, of the same split."""
    for split, seeds in (("train", (0, 1, 2)), ("test", (3,))):
        home = tmp_path / "set/data" / split / "deep"
        home.mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(home / f"{seed}.png")
        (home.parent / "metadata.jsonl").write_text("".join(
            json.dumps({"file_name": f"deep/{seed}.png", "text": f"number {seed}"}) + "\n" for seed in seeds))
    ours = load_source(tmp_path / "set")
    theirs = hf_datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "c"))
    assert [e.captions[0] for e in ours] == theirs["text"][:] == ["number 0", "number 1", "number 2"]
    for e, row in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(e.open()), np.asarray(row["image"].convert("RGB")))


# ----- paths that are data

def test_links_lead_out_of_no_folder_that_was_not_named(tmp_path):
    """A folder behind a link in a configuration's folder; a picture behind one in a table's; the hub's blobs are its own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "private").mkdir()
    picture(0).save(tmp_path / "private/p.png")
    (tmp_path / "home/link").symlink_to(tmp_path / "private")
    (tmp_path / "home/p.png").symlink_to(tmp_path / "private/p.png")
    config = tmp_path / "home/set.toml"
    for name in ("link", str(tmp_path / "private"), "../private", "x/../../private"):
        with pytest.raises(InputError, match="lies outside of its own folder: pass --allow_outside_paths"):
            named_place(name, config, DataOptions())
        if name != "x/../../private":
            assert named_place(name, config, DataOptions(allow_outside_paths=True)).is_dir()
    for name in ("p.png", "../private/p.png", str(tmp_path / "private/p.png"), "link/p.png"):
        with pytest.raises(InputError, match="leads out of"):
            file_in(tmp_path / "home", name)
    for name in (None, 3, "", "a\0b", ["x"]):
        with pytest.raises(InputError):
            named_place(name, config, DataOptions())
        with pytest.raises(InputError):
            file_in(tmp_path, name)
    snapshot = tmp_path / "hub/datasets--x/snapshots/1234/data"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/datasets--x/blobs").mkdir()
    picture(1).save(tmp_path / "hub/datasets--x/blobs/abc", format="PNG")
    (snapshot / "a.png").symlink_to(tmp_path / "hub/datasets--x/blobs/abc")
    assert file_in(snapshot, "a.png").is_file()
    assert file_in(snapshot, str(snapshot / "a.png")).is_file()


# ----- captions

@pytest.mark.parametrize(("about", "captions"), [
    ({"caption": "a", "tags": "b, c"}, ("a,b, c",)), ({"tags": ["b", "c"]}, ("b, c",)), ({"caption": ["a", "b"]}, ("a", "b")),
    ({"caption": None, "tags": ""}, ()), ("text", ("text",)), (["one", 2, " "], ("one",)), (None, ()), ({"other": 1}, ())])
def test_json_says_captions_and_tags(about, captions):
    assert said_in(about) == captions


def test_what_trainers_do_to_captions():
    assert [with_trigger(c, "sks") for c in ("a [trigger] dog", "[name]", "a sks dog", "a dog", "")] == [
        "a sks dog", "sks", "a sks dog", "sks a dog", "sks"]
    assert with_trigger("a [trigger] dog", "") == "a  dog"
    assert shuffle_tags("a, b") == "b, a"
    assert shuffle_tags("a, b", keep=1) == "a, b" == shuffle_tags("a, b", keep=5)
    assert shuffle_tags("a, b, c, d") == shuffle_tags("a, b, c, d") != "a, b, c, d"
    assert shuffle_tags("a|b", separator="|") == "b| a"


@pytest.mark.parametrize(("text", "kind"), [
    ("crème brûlée à la façon", "cp1252"), ("naïve", "cp1252"), ("Ölgemälde, Größe", "cp1252"), ("青い空の下の犬", "shift_jis"),
    ("カタカナ", "shift_jis"), ("一只猫坐在草地上", "gbk"), ("a photo of 一只狗", "gbk")])
def test_a_legacy_encoding_is_guessed(text, kind):
    assert guess_encoding(text.encode(kind)) == kind


# ----- formats

def test_jpeg_xl_is_read_or_named_with_what_reads_it():
    from importlib.util import find_spec
    for begins in (b"\xff\x0a" + bytes(20), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)):
        with pytest.raises(InputError, match="x.jxl cannot be read" if find_spec("pillow_jxl") else
                           "x.jxl is JXL, which nothing here reads: pip install pillow-jxl-plugin reads it"):
            decode(begins, "x.jxl")
    import pillow_jxl  # noqa: F401 (Pillow writes the format once it is imported)
    for kind in ("JXL", "AVIF"):
        stream = io.BytesIO()
        picture(0).save(stream, kind, quality=90)
        assert decode(stream.getvalue(), f"x.{kind.lower()}").size == (32, 32)
