"""Latents and embeddings on disk: found by content, whole or absent, the same as computed anew."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import saved_pipeline, tiny_pipeline
from training import config_of, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.models.pipelines import load_pipeline
from rotescope.train.encodings import encode as latents
from rotescope.train.encodings import tensor_table as tables
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.encodings.tensor_table import TableRows
from rotescope.train.engine.training import train_model

HASHES = {"vae": "v", "text": "t"}
SMALL = Preprocessing(16)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def manifest(images):
    return load_source(images)


@pytest.fixture
def kept(pipe, manifest, tmp_path):
    """A call -> what was encoded, the keys of each file that is new, how many images were read."""
    def call(manifest=manifest, preprocessing=SMALL, hashes=HASHES):
        before, seen = set(tmp_path.rglob("*.safetensors")), []
        encoded = encode(manifest, pipe, preprocessing, hashes, tmp_path, seen.append)
        new = sorted(set(tmp_path.rglob("*.safetensors")) - before)
        return encoded, [len(json.loads(safe_open(f, "pt").metadata()["keys"])) for f in new], max(seen, default=0)
    return call


def assert_same(one, other):
    for ours, theirs in ((one.images, other.images), (one.texts, other.texts)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k][torch.arange(len(ours[k]))], theirs[k][torch.arange(len(theirs[k]))]) for k in ours)
    assert (one.captions, one.words) == (other.captions, other.words)


def test_a_second_run_reads_what_the_first_computed(kept, pipe, manifest):
    first, files, _ = kept()
    assert sorted(files) == [6, 7]  # images; captions and the empty one
    second, files, worked = kept()
    assert (files, worked) == ([], 0)
    assert_same(first, second)
    assert_same(first, encode(manifest, pipe, Preprocessing(16), HASHES))


def test_the_key_is_content_model_and_preprocessing(kept, manifest):
    kept()
    assert kept(hashes=HASHES | {"vae": "another"})[1:] == ([6], 6)
    assert kept(hashes=HASHES | {"text": "another"})[1:] == ([7], 0)
    assert kept(preprocessing=Preprocessing(8))[1:] == ([6], 6)
    flipped, files, _ = kept(preprocessing=Preprocessing(16, random_flip=True))
    assert (files, flipped.images["moments"].shape[1]) == ([6], 2)


def test_only_what_is_missing_is_computed(kept, manifest):
    """Fewer images, more copies, new captions: nothing is read twice."""
    part, _, read = kept(manifest=Manifest(manifest.examples[:4]))
    assert read == 4
    whole, files, read = kept()
    assert (sorted(files), read) == ([2, 2], 6)
    assert kept(manifest=Manifest(manifest.examples[::-1]))[1:] == ([], 0)
    reworded = apply_plan(manifest, DuplicationPlan(2, 9, captions="several", controls=1))
    assert kept(manifest=reworded)[1:] == ([8], 0)  # four new wordings of two captions
    for rows, theirs in ((part.images["moments"], whole.images["moments"]),):
        torch.testing.assert_close(rows[torch.arange(4)], theirs[torch.arange(4)])


def test_a_damaged_or_half_written_file_is_made_again(kept, tmp_path):
    first = kept()[0]
    for file in tmp_path.rglob("*.safetensors"):
        content = file.read_bytes()
        file.unlink()  # `first` is mapped from it
        file.write_bytes(content[:-1])
    again, _, read = kept()
    assert read == 6
    assert_same(first, again)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_tables_are_mapped_not_read(kept, tmp_path):
    encoded = kept()[0]
    maps = Path("/proc/self/maps").read_text()
    assert all(str(file) in maps for file in tmp_path.rglob("*.safetensors"))
    assert encoded.images["moments"].parts[0].isfinite().all()


def test_many_chunks_are_one_table(kept, manifest, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 2)
    pieces, files, _ = kept()
    assert sorted(files) == [1, 2, 2, 2, 2, 2, 2]
    monkeypatch.setattr(tables, "CHUNK", 256)
    assert_same(pieces, kept()[0])


def test_rows_are_gathered_from_parts():
    parts = (torch.arange(6.0).view(3, 2), torch.arange(6.0, 10.0).view(2, 2))
    rows = TableRows(parts, torch.tensor([[1, 1], [0, 0], [0, 2], [1, 0]]))
    assert rows[torch.tensor([0, 3, 1])].tolist() == [[8, 9], [6, 7], [0, 1]]
    assert (len(rows), rows.shape) == (4, (4, 2))


def test_geometry_is_what_sdxl_asks_for(tmp_path):
    """By hand: 40 x 20 px to 16 x 16 px: resized to 32 x 16, so 8 px are cut left and right; off the middle, mirrored."""
    Image.new("RGB", (40, 20)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a cat")
    example = load_source(tmp_path)[0]
    assert Preprocessing(16)(example)[1].tolist() == [[20, 40, 0, 8, 16, 16]]
    here, there = Preprocessing(16, center_crop=False, random_flip=True)(example)[1][:, 3].tolist()
    assert here + there == 16


def test_a_cache_changes_no_weight(images, tmp_path):
    base = saved_pipeline(tmp_path / "base")
    config = config_of(base, images, tmp_path / "plain", random_flip=True)
    plain = weights(train_model(config, progress=False))
    for name in ("first", "second"):
        config = replace(config, output_dir=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        assert largest_difference(plain, weights(train_model(config, progress=False))) == 0


def test_a_run_that_is_stopped_leaves_its_latents_to_the_next(base, images, tmp_path, monkeypatch):
    """Beside output_dir, unless --cache_dir is given; once a run has ended they are gone."""
    read, prepare = [], Preprocessing.__call__
    monkeypatch.setattr(Preprocessing, "__call__", lambda self, example: read.append(example) or prepare(self, example))
    config = config_of(base, images, tmp_path / "out", max_train_steps=2)
    with pytest.raises(KeyError):
        train_model(config, on_step={}.__getitem__, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [".out.cache"]
    next((tmp_path / ".out.cache").glob("latents-*")).joinpath("another.1.part").write_bytes(b"killed while it wrote this")
    train_model(config, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(read) == 6


def test_old_drafts_go_and_young_ones_stay(tmp_path):
    """The young may be those of another run at work."""
    young, old = (tmp_path / f"latents-0/{name}.part" for name in ("young", "old"))
    young.parent.mkdir()
    for draft in (young, old):
        draft.touch()
    os.utime(old, (0, 0))
    tables.drop_old_drafts(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)


def test_more_than_the_disk_holds_is_refused_once_a_row_shows_its_size(tmp_path):
    """A hundred rows, fifty of which take as much as the whole disk has."""
    size = shutil.disk_usage(tmp_path).total // 50
    with pytest.raises(InputError, match="latents or text embeddings take .* GB are free at .* name another --cache_dir"):
        tables._check_room(tmp_path / "cache/latents", 100 * size)
    assert not list(tmp_path.iterdir())


def test_a_cache_by_another_vae_is_left_alone(base, images, tmp_path):
    """The same model but for its VAE, trained on the other's cache, is what it is without a cache."""
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.vae.quant_conv.weight.mul_(1.5)
    pipe.save_pretrained(tmp_path / "other")
    config = config_of(base, images, tmp_path / "first", max_train_steps=1, cache_dir=str(tmp_path / "cache"))
    train_model(config, progress=False)
    other = replace(config, pretrained_model_name_or_path=str(tmp_path / "other"))
    cached, plain = (weights(train_model(replace(other, output_dir=str(tmp_path / name), cache_dir=kept), progress=False))
                     for name, kept in (("cached", config.cache_dir), ("plain", None)))
    assert largest_difference(cached, plain) == 0
    assert largest_difference(cached, weights(tmp_path / "first")) > 1e-4
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 2
    assert len(list((tmp_path / "cache").glob("embeddings-*"))) == 1


@pytest.mark.parametrize(("pixels", "batches"), [(8, [6]), (3, [2, 4, 6]), (0.5, [1, 2, 3, 4, 5, 6])])
def test_the_vae_takes_no_more_pixels_at_once_than_fit(pipe, manifest, monkeypatch, pixels, batches):
    monkeypatch.setattr(latents, "AT_ONCE", int(pixels * 16 ** 2))
    done = []
    encode(manifest, pipe, SMALL, HASHES, None, done.append)
    assert list(dict.fromkeys(done)) == batches


def test_what_the_empty_caption_becomes_is_part_of_the_key(bases, manifest, tmp_path):
    """Of two SDXL models with the same encoders, one takes zeros for it."""
    pipe = load_pipeline(bases("sdxl"))
    zeros = encode(manifest, pipe, SMALL, HASHES, tmp_path).texts["text"]
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    words = encode(manifest, pipe, SMALL, HASHES, tmp_path).texts["text"]
    empty, other = torch.tensor([0]), torch.tensor([1])
    assert zeros[empty].abs().max() == 0 < words[empty].abs().max()
    assert torch.equal(zeros[other], words[other])
