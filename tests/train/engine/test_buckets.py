"""Aspect buckets: pictures keep their shapes, batches are of one, an epoch shows each picture as often as planned."""
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from families.more_families import SIDES, more_family
from PIL import Image
from tiny_families import tiny_family
from torchvision.transforms.functional import to_tensor
from training import arguments_of, config_of, in_processes, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.datasets.images.buckets import bucket_grain, bucket_shapes, nearest_bucket
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source, read_source
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.models.adapters.header import read_header
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine.job import buckets_of, check_job
from rotescope.train.engine.passes import FILLS, ShuffledPasses
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.families import Predictor, family_of
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.options.limits import check_values

HASHES = {"vae": "v", "text": "t"}
SIZES = ((16, 16), (48, 16), (40, 16), (16, 48), (60, 20), (16, 17))   # width and height of the pictures
BUCKETS = ((16, 16), (24, 8), (24, 8), (8, 24), (24, 8), (16, 16))     # where they belong at 16 pixels


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Six captioned pictures of several shapes."""
    folder = tmp_path_factory.mktemp("wide")
    for i, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {('cat', 'bus', 'frog', 'pig', 'crown', 'gift')[i]} on a red background")
    return folder


# ----- shapes

def test_buckets_are_kohyas():
    """`--resolution 1024 --min_bucket_reso 512 --max_bucket_reso 2048` of kohya's scripts, and those of a small model."""
    shapes = bucket_shapes(1024, bucket_grain(1024))
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (768, 1344), (2048, 512)} <= set(shapes)
    assert all(side % 64 == 0 and 512 <= side <= 2048 for shape in shapes for side in shape)
    assert all(1024 ** 2 - 64 * max(w, h) < w * h <= 1024 ** 2 for w, h in shapes)
    assert nearest_bucket((3000, 2000), shapes) == (1216, 832)
    assert bucket_shapes(16, 8) == [(8, 24), (8, 32), (16, 16), (24, 8), (32, 8)]
    assert bucket_shapes(1024, 64, 960, 1152) == [(960, 1088), (1024, 1024), (1088, 960)]


# ----- order

def test_a_batch_is_of_one_shape_and_an_epoch_shows_each_picture_as_often_as_planned():
    copies, shapes, size = [1, 5, 1, 3, 2], [(2, 1), (2, 1), (1, 1), (2, 1), (1, 1)], 4
    passes = ShuffledPasses(copies, torch.Generator().manual_seed(0), shapes, size)
    assert (passes.steps_of(1), passes.steps_of(3), passes.samples_in(4), passes.samples_in(10)) == (4, 12, 12, 30)
    orders = []
    for _ in range(3):      # an epoch of 9 showings of one shape and 3 of the other: three batches and one
        batches = [passes.take(size) for _ in range(4)]
        assert all(len({shapes[i] for i in batch[0]}) == 1 for batch in batches)
        shown = torch.cat(batches, 1)
        assert Counter(shown[0, shown[1] != FILLS].tolist()) == dict(enumerate(copies))
        assert sorted((batch[1] == FILLS).sum().item() for batch in batches) == [0, 0, 1, 3]
        orders.append(shown.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_fractions_of_copies_are_exact_over_the_epochs_of_buckets():
    passes = ShuffledPasses([1.5, 0.25, 1, 0.5], torch.Generator().manual_seed(0), [(1, 1), (1, 2), (1, 1), (1, 2)], 2)
    steps = passes.steps_of(4)
    shown = torch.cat([passes.take(2) for _ in range(steps)], 1)
    assert Counter(shown[0, shown[1] != FILLS].tolist()) == {0: 6, 1: 1, 2: 4, 3: 2}
    assert (passes.samples_in(steps), passes.epoch, passes.queue.shape[1]) == (13, 4, 0)


# ----- encodings

def encoded_in_buckets(pipe, folder, side=16, **more):
    manifest = load_source(folder)
    shapes = buckets_of(manifest, bucket_shapes(side, 8 if side == 16 else 16))
    return manifest, encode(manifest, pipe, Preprocessing(side, **more), HASHES, shapes=shapes)


def test_latents_are_those_of_the_pictures_cut_by_hand(wide):
    pipe = tiny_family("sd1")
    manifest, encoded = encoded_in_buckets(pipe, wide, random_flip=True)
    assert encoded.shapes == BUCKETS
    for i, box in ((1, (0, 0, 24, 8)), (2, (0, 0, 20, 8)), (3, (0, 0, 8, 24))):
        image = manifest[i].open()
        image = image.resize((SIZES[i][0] // 2, SIZES[i][1] // 2), Image.LANCZOS) if i != 2 else \
            image.resize((24, 9), Image.LANCZOS).crop((0, 0, 24, 8))   # 40 × 16 covers 24 × 8 as 24 × 9; round(0.5) is 0
        with torch.no_grad():
            posterior = pipe.vae.encode(to_tensor(image)[None] * 2 - 1).latent_dist
        ours = encoded.images["moments"][torch.tensor([i])][0, 0]
        torch.testing.assert_close(ours[:4], posterior.mean[0] * pipe.vae.config.scaling_factor, msg=str(box))
    # original height and width, top and left, target height and width
    assert encoded.images["geometry"][torch.tensor([2])][0, 0].tolist() == [16, 40, 0, 0, 8, 24]


def test_caches_hold_the_bucket_in_their_key(wide, tmp_path):
    pipe, manifest = tiny_family("sd1"), load_source(wide)
    read = []

    def keep(shapes):
        before = len(read)
        encode(manifest, pipe, Preprocessing(16), HASHES, tmp_path, read.append, shapes=shapes)
        return len(read) > before
    assert [keep(BUCKETS), keep(BUCKETS), keep(()), keep(()), keep(BUCKETS)] == [True, False, True, False, False]
    assert len(list(tmp_path.glob("latents-*"))) == 4   # three buckets, and the squares


def test_a_short_batch_is_the_mean_of_the_samples_that_count(wide):
    """However many processes and parts it is split into."""
    pipe = tiny_family("sd1")
    _, encoded = encoded_in_buckets(pipe, wide)
    schedule, predictor = noise_schedule(pipe.scheduler), Predictor(pipe, ("unet",))
    loss = DenoisingLoss(encoded, schedule, torch.device("cpu"))
    batches = GlobalBatches(encoded, [1] * 6, 8, draw_levels(schedule))
    with torch.no_grad():
        for batch in (next(batches) for _ in range(3)):
            real = len(batch.shown)
            assert real in (1, 2, 3)
            alone = loss(predictor, replace(batch, counts=None))[:real].mean()
            for parts in (1, 2, 4):
                trimmed = batch.trimmed(parts)
                assert len(trimmed.images) == -(-real // parts) * parts
                means = [loss(predictor, part).mean() for part in trimmed.split(parts)]
                torch.testing.assert_close(sum(means) / parts, alone)


@pytest.mark.parametrize("name", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "sd3", "flux", "flux2-klein", "z-image", "qwen-image", "sana", "chroma"))])
def test_every_family_is_told_the_shape(name, wide):
    """As the stock pipeline tells its denoiser when it draws a picture of that size."""
    pipe = tiny_family(name) if name in ("sdxl", "sd3", "flux") else more_family(name)
    side = 2 * SIDES[name] if name in SIDES else 16
    _, encoded = encoded_in_buckets(pipe, wide, side)
    denoiser, schedule = pipe.components[family_of(pipe).denoiser], noise_schedule(pipe.scheduler)
    batches = GlobalBatches(encoded, [1] * 6, 1, draw_levels(schedule))
    batch = next(b for b in batches if encoded.shapes[int(b.images[0])] not in ((side, side),))
    width, height = encoded.shapes[int(batch.images[0])]
    loss = DenoisingLoss(encoded, schedule, torch.device("cpu"))
    ours = arguments_of(denoiser, lambda: loss(Predictor(pipe, (family_of(pipe).denoiser,)), batch).mean())
    binned = {"use_resolution_binning": False} if name == "sana" else {}
    theirs = arguments_of(denoiser, lambda: pipe(prompt="a cat", num_inference_steps=1, height=height, width=width,
                                                 guidance_scale=0.0 if name == "z-image" else 1.0, **binned))
    for key in ("hidden_states", "sample", "img_ids", "img_shapes", "x"):
        assert (key in ours) == (key in theirs)
        one, other = ours.get(key), theirs.get(key)
        if key == "img_ids" and one is not None:
            torch.testing.assert_close(one, other, check_dtype=False)
        elif key in ours:
            one, other = (t[0] if isinstance(t, list) else t for t in (one, other))
            assert getattr(one, "shape", one) == getattr(other, "shape", other), key
    if name == "sdxl":
        assert ours["added_cond_kwargs"]["time_ids"][0, 4:].tolist() == [height, width]


# ----- from end to end

def test_a_run_in_buckets_shows_each_picture_as_often_as_planned(base, wide, tmp_path, capsys):
    config = config_of(base, wide, tmp_path / "out", aspect_buckets=True, duplicated=1, copies=3, controls=1, max_train_steps=99,
                       num_train_epochs=2, random_flip=True, class_data=str(wide), partial_plan=False)
    with pytest.raises(InputError, match="training pictures, too"):
        check_job(config)
    out = train_model(replace(config, class_data=None))
    manifest, record = Manifest.load(out / "manifest.parquet"), json.loads((out / "rotescope.json").read_text())
    assert [e.served for e in manifest] == [2 * e.copies for e in manifest]
    assert record["buckets"] == {"16x16": 2, "24x8": 3, "8x24": 1}
    assert "samples: 2.0 epochs, an image is shown about 2.0 to 6.0 times" in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "message"), [
    ({"min_bucket_reso": 8}, "--min_bucket_reso is for buckets: add --aspect_buckets true"),
    ({"aspect_buckets": True, "bucket_reso_steps": 0}, "it should be 1 or more")])
def test_options_that_say_nothing_are_refused(changes, message, base, wide, tmp_path):
    with pytest.raises(InputError, match=message):
        check_values(config_of(base, wide, tmp_path / "out", **changes))


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("sd1", {"bucket_reso_steps": 64}, "there is none of about 16 × 16 pixels whose sides are multiples of 64"),
    ("sd3", {"resolution": 32}, "this model takes sides of up to 32 pixels: pass --max_bucket_reso 32")])
def test_buckets_that_there_are_not_are_refused(name, changes, message, bases, wide, tmp_path):
    with pytest.raises(InputError, match=message):
        check_job(config_of(bases(name), wide, tmp_path / "out", **{"resolution": 16, "aspect_buckets": True} | changes))


def test_a_configuration_of_kohyas_in_buckets_is_told_the_options_that_do_so(wide, tmp_path):
    config = tmp_path / "data.toml"
    config.write_text(f"""[general]
enable_bucket = true
min_bucket_reso = 256
[[datasets]]
bucket_reso_steps = 32
[[datasets.subsets]]
image_dir = "{wide}"
""")
    said = read_source(config, options=DataOptions(allow_outside_paths=True)).unused
    assert any("finetune --aspect_buckets true --min_bucket_reso 256 --bucket_reso_steps 32 trains so" in s for s in said)
    config.write_text(config.read_text().replace("true", "false"))
    assert not any("bucket" in s for s in read_source(config, options=DataOptions(allow_outside_paths=True)).unused)


@pytest.mark.slow
def test_a_lora_in_kohyas_format_says_its_buckets(base, wide, tmp_path):
    out = train_model(config_of(base, wide, tmp_path / "out", aspect_buckets=True, lora=True, lora_format="kohya",
                                max_train_steps=1), progress=False)
    assert read_header(out / "pytorch_lora_weights.safetensors").buckets.keys() == set(BUCKETS)


@pytest.mark.slow
def test_resumed_it_ends_as_if_it_had_not_stopped(base, wide, tmp_path):
    config = config_of(base, wide, tmp_path / "whole", aspect_buckets=True, max_train_steps=7, checkpointing_steps=3,
                       checkpoints_total_limit=2, mem_ratio=1.0)
    whole = train_model(config, progress=False)
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(whole / "checkpoint-3"))
    assert largest_difference(weights(whole), weights(train_model(resumed, progress=False))) == 0
    with pytest.raises(InputError, match="another run: its --aspect_buckets is True, this one's None"):
        train_model(replace(resumed, output_dir=str(tmp_path / "refused"), aspect_buckets=False), progress=False)


@pytest.mark.slow
def test_two_processes_train_as_one_in_buckets(base, wide, tmp_path):
    config = config_of(base, wide, tmp_path / "one", aspect_buckets=True, gradient_accumulation_steps=2, train_batch_size=2,
                       mem_ratio=1.0)
    one = train_model(config, progress=False)
    in_processes(replace(config, output_dir=str(tmp_path / "two"), train_batch_size=1), 2, tmp_path)
    assert largest_difference(weights(one), weights(tmp_path / "two")) < 1e-5
    counts = [[e.served for e in Manifest.load(folder / "manifest.parquet")] for folder in (one, tmp_path / "two")]
    assert counts[0] == counts[1]
