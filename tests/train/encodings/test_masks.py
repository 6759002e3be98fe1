"""Masked loss: nothing is learned outside of a mask, and a mask of ones changes nothing."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from families.more_families import more_family
from PIL import Image
from tiny_families import tiny_family
from training import config_of, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.encodings.masks import find_masks
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.families import Predictor, family_of
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.options.limits import check_values

HASHES, CPU = {"vae": "v", "text": "t"}, torch.device("cpu")
PACKED = ["flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flux2-klein", "qwen-image", "z-image", "chroma"))]


@pytest.fixture
def halves(images, tmp_path):
    """A folder of masks, white on the left."""
    return masks_of(images, tmp_path / "halves", lambda mask: mask[:, :8].fill(255))


def masks_of(images, folder, draw, name="{}.png"):
    """A mask of each picture, black but for what draw(its pixels) whitens -> the folder."""
    folder.mkdir()
    for i in range(6):
        mask = np.zeros((16, 16), np.uint8)
        draw(mask)
        Image.fromarray(mask).save(folder / name.format(i))
    return folder


def masked(pipe, images, where, **more):
    """-> DenoisingLoss, and a batch of four."""
    manifest, schedule = load_source(images), noise_schedule(pipe.scheduler)
    masks = find_masks(where and str(where), manifest, images)
    encoded = encode(manifest, pipe, Preprocessing(16), HASHES, masks=masks)
    batch = next(GlobalBatches(encoded, [1] * 6, 4, draw_levels(schedule)))
    return DenoisingLoss(encoded, schedule, CPU, **more), batch


def gradient(loss, batch, pipe):
    """-> losses, and the gradient that reaches the prediction (B, C, h, w)."""
    predictor, seen = Predictor(pipe, (family_of(pipe).denoiser,)), []

    def noted(*given):
        seen.append(predictor(*given).detach().requires_grad_())
        return seen[0]
    losses = loss(noted, batch)
    losses.sum().backward()
    return losses.detach(), seen[0].grad


@pytest.mark.parametrize("name", ["sd1", *PACKED])
def test_outside_of_the_mask_there_is_no_gradient(name, images, halves):
    """Packed latents among them: the mask is as large as what the loss is on."""
    pipe = tiny_family(name) if name in ("sd1", "flux") else more_family(name)
    losses, slope = gradient(*masked(pipe, images, halves), pipe)
    plain_losses, plain = gradient(*masked(pipe, images, None), pipe)
    middle = slope.shape[-1] // 2
    assert slope[..., middle:].abs().max() == 0
    assert torch.equal(slope[..., :middle], plain[..., :middle])
    assert losses.min() > 0
    assert (losses < plain_losses).all()
    part = masked(pipe, images, halves, unmasked_weight=0.25)
    torch.testing.assert_close(gradient(*part, pipe)[1][..., middle:], plain[..., middle:] / 4)


@pytest.mark.parametrize("name", ["sd1", *PACKED])
def test_a_mask_of_ones_is_no_mask_to_the_bit(name, images, tmp_path):
    pipe = tiny_family(name) if name in ("sd1", "flux") else more_family(name)
    ones = masks_of(images, tmp_path / "ones", lambda mask: mask.fill(255), "{}-masklabel.png")
    for one, other in zip(gradient(*masked(pipe, images, ones), pipe), gradient(*masked(pipe, images, None), pipe), strict=True):
        assert torch.equal(one, other)


def test_the_mask_is_cut_as_the_picture_is(tmp_path):
    """Mirrored, off the centre and in a bucket; a mask of another size is made as large as its picture."""
    (tmp_path / "data").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)
    opacity = np.zeros((16, 48), np.uint8)
    opacity[:, :16] = 255
    Image.fromarray(np.dstack([picture, opacity])).save(tmp_path / "data/0.png")
    (tmp_path / "data/0.txt").write_text("a cat")
    (tmp_path / "masks").mkdir()
    Image.fromarray(opacity).resize((96, 32), Image.NEAREST).save(tmp_path / "masks/0.png")
    manifest, pipe = load_source(tmp_path / "data"), tiny_family("sd1")

    def mask(where, shapes=(), **more):
        masks = find_masks(where, manifest, tmp_path / "data")
        encoded = encode(manifest, pipe, Preprocessing(16, **more), HASHES, shapes=shapes, masks=masks)
        return encoded.masks[torch.tensor([0])][0, :, 0]
    assert mask("alpha").max() == 0                                            # the middle third is not in it
    for where in ("alpha", str(tmp_path / "masks")):
        whole = mask(where, ((24, 8),), random_flip=True)                      # (F, h, w)
        assert whole.shape == (2, 4, 12)
        assert (whole[0, :, :2].min(), whole[0, :, 6:].max()) == (1, 0)        # a third of it, with a soft edge
        torch.testing.assert_close(whole[1], whole[0].flip(1))


def test_pictures_without_an_alpha_channel_count_whole(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "some")
    Image.open(folder / "0.png").convert("RGBA").save(folder / "0.png")
    manifest = load_source(folder)
    assert all(np.asarray(m.open()).min() == 255 for m in find_masks("alpha", manifest, folder))
    with pytest.raises(InputError, match="--masks alpha: none of the pictures has an alpha channel"):
        find_masks("alpha", load_source(images), images)


def test_a_mask_in_a_subfolder_is_of_the_picture_there(images, tmp_path):
    for place in ("data/a", "data/b", "masks/a", "masks/b"):
        (tmp_path / place).mkdir(parents=True)
    for place, grey in (("a", 255), ("b", 0)):
        shutil.copy(images / ("0.png" if place == "a" else "1.png"), tmp_path / "data" / place / "x.png")
        (tmp_path / "data" / place / "x.txt").write_text("a cat")
        Image.new("L", (16, 16), grey).save(tmp_path / "masks" / place / "x.png")
    found = find_masks(str(tmp_path / "masks"), load_source(tmp_path / "data"), tmp_path / "data")
    assert {m.example.file[-7:-6]: np.asarray(m.open()).max() for m in found} == {"a": 255, "b": 0}


def test_masks_that_are_not_there_are_refused(base, images, halves, tmp_path):
    manifest = load_source(images)
    with pytest.raises(InputError, match="there is no such folder: name it, or take alpha"):
        find_masks("nowhere", manifest, images)
    (halves / "3.png").unlink()
    with pytest.raises(InputError, match=r"1 pictures have no mask in .*, the first: .*3.png: add them, white where"):
        find_masks(str(halves), manifest, images)
    with pytest.raises(InputError, match="is a training picture, too: move the masks out of --train_data"):
        find_masks(str(images), manifest, images)
    with pytest.raises(InputError, match="--unmasked_weight is for masks"):
        check_values(config_of(base, images, tmp_path / "out", unmasked_weight=0.5))
    with pytest.raises(InputError, match="--unmasked_weight 2.0: it is a share"):
        check_values(config_of(base, images, tmp_path / "out", masks="alpha", unmasked_weight=2.0))


@pytest.mark.slow
def test_a_run_with_masks_ends_and_resumes_with_the_same(base, images, halves, tmp_path):
    config = config_of(base, images, tmp_path / "whole", masks=str(halves), max_train_steps=4, checkpointing_steps=2,
                       checkpoints_total_limit=2, random_flip=True, cache_dir=str(tmp_path / "cache"))
    whole = train_model(config, progress=False)
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(whole / "checkpoint-2"))
    assert largest_difference(weights(whole), weights(train_model(resumed, progress=False))) == 0
    plain = train_model(replace(config, output_dir=str(tmp_path / "plain"), masks=None), progress=False)
    assert largest_difference(weights(whole), weights(plain)) > 1e-5
    with pytest.raises(InputError, match="another run: its masks is"):
        train_model(replace(resumed, output_dir=str(tmp_path / "refused"), masks=None), progress=False)
