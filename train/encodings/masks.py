"""Masks: where in a picture training looks. White counts; black counts as much as --unmasked_weight says.

    alpha                               the picture's own opacity; all of a picture without any counts
    masks/a.png, masks/a-masklabel.png  of a.jpg, as kohya's and OneTrainer's users keep them
"""
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256
from rotescope.datasets.images.image_bytes import IMAGES, alpha_channel, decode, locate
from rotescope.datasets.manifest import Example, Manifest

ALPHA = "alpha"
LABEL = "-masklabel"  # what OneTrainer puts behind the picture's name


@dataclass(frozen=True)
class PictureMask:
    """The mask of one picture."""
    example: Example
    file: str | None   # that holds it; None where it is the picture's own opacity

    @cached_property
    def key(self) -> str:
        """What tells it from others: the content of the picture and of its mask."""
        return self.example.sha256 + (f"-{sha256(self.file)}" if self.file else "")

    def open(self) -> Image.Image:
        """-> a grey PIL image, as large as the picture. InputError if it cannot be read."""
        if self.file:
            found = decode(Path(self.file).read_bytes(), locate(self.file, None)).convert("L")
        else:
            found = alpha_channel(self.example.encoded(), self.example.name) or Image.new("L", self.example.size(), 255)
        size = self.example.size()
        return found if found.size == size else found.resize(size, Image.BILINEAR)


def find_masks(where: str | None, manifest: Manifest, root: str | Path) -> tuple[PictureMask, ...]:
    """The masks of all pictures, in their order.

    Parameters
    ----------
    where : str or None
        What --masks says: alpha, or a folder; nothing for None.
    manifest : Manifest
        The pictures.
    root : str or Path
        What --train_data says: a mask in a subfolder belongs to the picture in the same subfolder there.

    Raises
    ------
    InputError
        If no picture has an alpha channel, one lacks its mask, or a mask is trained on as a picture.
    """
    if where is None:
        return ()
    if where == ALPHA:
        if not any(alpha_channel(e.encoded(), e.name) for e in manifest):
            raise InputError("--masks alpha: none of the pictures has an alpha channel: leave it out, or name a folder of masks")
        return tuple(PictureMask(e, None) for e in manifest)
    if not Path(where).is_dir():
        raise InputError(f"--masks {where}: there is no such folder: name it, or take alpha")
    known = _masks_in(Path(where))
    found = tuple(PictureMask(e, _mask_of(e, known, Path(root))) for e in manifest)
    without = [m.example for m in found if not m.file]
    if without:
        raise InputError(f"--masks: {len(without)} pictures have no mask in {where}, the first: {without[0].name}: add them, "
                         "white where all of a picture counts")
    trained = {Path(e.file).absolute() for e in manifest if e.row is None}
    both = next((m.file for m in found if Path(m.file or "").absolute() in trained), None)
    if both:
        raise InputError(f"--masks: {locate(both, None)} is a training picture, too: move the masks out of --train_data")
    return found


def _masks_in(folder):
    """-> {name without ending: {subfolder: file}}."""
    found = defaultdict(dict)
    for file in sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES and f.is_file()):
        found[file.stem.removesuffix(LABEL)][file.parent.relative_to(folder)] = str(file)
    return found


def _mask_of(example, known, root):
    """The one in the subfolder that the picture has in the data, else the one in no subfolder."""
    file = Path(example.file)
    if example.row is not None:
        raise InputError(f"--masks: {example.name} has no file name that a mask could have: take alpha")
    inner = file.parent.relative_to(root.absolute()) if file.is_relative_to(root.absolute()) else Path()
    return known[file.stem].get(inner) or known[file.stem].get(Path())


def latent_masks(masks: Sequence[PictureMask], preprocessing, side: Sequence[int]) -> torch.Tensor:
    """Masks, cut as their pictures are, in the latents' size.

    Parameters
    ----------
    masks : sequence of PictureMask
        B of them.
    preprocessing : Preprocessing
        What cuts their pictures.
    side : (int, int)
        Height and width of the latents that the loss is on; of packed ones, in patches.

    Returns
    -------
    torch.Tensor
        (B, F, 1, h, w), from 0 to 1: the mean of each latent's pixels, as kohya's scripts have it. White is 1 everywhere.
    """
    cut = torch.stack([preprocessing.cut(m.open().convert("RGB"), m.example)[:, :1] for m in masks])
    return F.adaptive_avg_pool2d((cut.flatten(0, 1) + 1) / 2, tuple(side)).unflatten(0, cut.shape[:2])
