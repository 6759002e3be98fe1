"""Latents and text embeddings, computed once: an epoch then costs no VAE, no text encoder and no image file.

A copy costs nothing either: latents are kept per image, embeddings per caption. On disk they lie under a key of content, model
and preprocessing, in files that several processes write together and all read by memory map (tables.py).
"""
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature

import torch
from diffusers.utils import logging

from rotescope.datasets.images.to_pixels import covering_size, to_pixels
from rotescope.models.vae_latents import scaled_moments
from rotescope.train.encodings.masks import latent_masks
from rotescope.train.encodings.tensor_table import ALONE, TableRows, batches_of, digest, folder_of, joined_rows, tensor_rows
from rotescope.train.objective.families import family_of

AT_ONCE = 8 * 512 ** 2                  # pixels that the VAE takes: in 128 channels of float32 1 GiB
DECODERS = min(8, os.cpu_count() or 1)  # threads that read, resize and crop while the VAE works


@dataclass(frozen=True)
class Encoded:
    """A manifest as the denoiser sees it."""
    images: dict[str, TableRows]   # "moments" (n, F, 2C, h, w): mean and standard deviation, scaled; "geometry" (n, F, 6);
                                   # F = 1 or 2
    texts: dict[str, TableRows]    # conditions of the m captions and, in row 0, of the empty one; {} if a text encoder is trained
    captions: tuple[tuple[int, ...], ...]  # rows of `texts`, for each image
    words: tuple[str, ...]    # (m + 1,) the captions
    shapes: tuple[tuple[int, int], ...] = ()   # the bucket of each image, where there are any; tensors of images differ by it
    masks: TableRows | None = None             # (n, F, 1, h, w) from 0 to 1, where the images have any

    def condition(self, batch):
        """-> what the denoiser is told beside latents and timesteps, but for captions that are encoded anew each time."""
        geometry = self.images["geometry"][batch.images]
        return {name: rows[batch.captions] for name, rows in self.texts.items()} | {"geometry": _flipped(geometry, batch.flips)}

    def mask(self, batch):
        """-> (B, 1, h, w), or None."""
        return self.masks and _flipped(self.masks[batch.images], batch.flips)

    def moments(self, batch):
        """-> mean and standard deviation of the latents, each (B, C, h, w)."""
        return _flipped(self.images["moments"][batch.images], batch.flips).chunk(2, 1)


def _flipped(rows, flips):
    return rows[torch.arange(len(rows)), flips]


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into the VAE's input; part of a cache's key."""
    resolution: int
    center_crop: bool = True
    random_flip: bool = False
    bucket: tuple[int, int] | None = field(default=None, repr=False)  # width and height, if no square

    @property
    def flips(self):
        return (False, True)[:1 + self.random_flip]

    @property
    def shape(self):
        """-> width and height."""
        return self.bucket or (self.resolution, self.resolution)

    @property
    def key(self):
        """What a cache of squares of earlier versions is called by, and the bucket, if there is one."""
        return (repr(self), *(("x".join(map(str, self.bucket)),) if self.bucket else ()))

    def __call__(self, example):
        """-> (F, 3, height, width) in [-1, 1]: the image, and its mirror image if asked; (F, 6) their geometry."""
        image, place = example.open(), _place(example)
        return self.cut(image, example), torch.tensor([self._geometry(image, flip, place) for flip in self.flips])

    def cut(self, image, example):
        """An image in the place of an example's -> (F, 3, height, width), cut as that is."""
        place = _place(example)
        return torch.stack([to_pixels(image, self.shape, self.center_crop, flip, place) for flip in self.flips])

    def _geometry(self, image, flip, place):
        """Original height and width, top and left of the crop, target height and width (SDXL, Podell et al. 2023, section 2.2).

        The crop is the one of `to_pixels`; of a mirror image its left is counted in the mirror image.
        """
        margins = [side - inner for side, inner in zip(covering_size(image.size, self.shape), self.shape, strict=True)]
        left, top = (round(m * s) for m, s in zip(margins, (0.5, 0.5) if self.center_crop else place, strict=True))
        left = margins[0] - left if flip else left
        return [float(v) for v in (image.height, image.width, top, left, *reversed(self.shape))]


def _place(example):
    """Where an image is cropped if not in the middle: anywhere, but always there, or its latents could not be kept."""
    digest = bytes.fromhex(example.sha256)
    return digest[0] / 255, digest[1] / 255


def encode(manifest, pipe, preprocessing, hashes, cache_dir=None, on_batch=None, batch_size=8, texts=True, share=ALONE,
           shapes=(), masks=()):
    """-> Encoded, in float32 on the CPU, without captions if not `texts`.

    shapes: the bucket of each image, and masks: its PictureMask, if there are any.

    `hashes` are those of the folders "vae" and "text" (encoders and tokenizers); with `cache_dir` the tensors are kept there
    under a key of content, model and preprocessing, and each process computes its `share` of those that are missing.
    `on_batch(done)` is called as images are encoded.
    """
    several = min(batch_size, max(1, AT_ONCE // (preprocessing.resolution ** 2 * len(preprocessing.flips))))
    several = 1 << several.bit_length() - 1  # a power of two divides the tables' chunks, so that all processes cut alike
    examples, words = {e.sha256: e for e in manifest}, {digest(w): w for w in ("", *manifest.captions())}
    read = 0

    def images_of(keys, cut):
        nonlocal read
        for pixels, geometry in _decoded([examples[k] for k in keys], cut, several):
            yield {"moments": _moments(pixels, pipe), "geometry": geometry}
            read += len(pixels)
            if on_batch:
                on_batch(min(read * share.of, len(manifest)))

    def texts_of(keys):
        return (encode_texts([words[k] for k in batch], pipe) for batch in batches_of(keys, batch_size))

    moments = family_of(pipe).moments  # families that share a VAE need not share the latents
    special = () if moments is scaled_moments else (moments.__name__,)
    pieces: dict[Preprocessing, list[int]] = {}
    for place, shape in enumerate(shapes or (None,) * len(manifest)):
        pieces.setdefault(replace(preprocessing, bucket=shape), []).append(place)
    tables, mask_tables = [], []
    for cut, places in pieces.items():
        folder = folder_of(cache_dir, "latents", hashes["vae"], *cut.key, *special)
        tables.append(tensor_rows(folder, [manifest[i].sha256 for i in places], partial(images_of, cut=cut), several, share))
        if masks:
            side = tables[-1]["moments"].shape[-2:]
            mask_tables.append(_mask_rows(cache_dir, [masks[i] for i in places], cut, side, several, share))
    images = {name: joined_rows([table[name] for table in tables], pieces.values()) for name in tables[0]}
    if read and on_batch:
        on_batch(len(manifest))
    zeros = str(pipe.config.get("force_zeros_for_empty_prompt", ""))  # changes what SDXL makes of the empty caption
    folder = folder_of(cache_dir, "embeddings", type(pipe).__name__ + zeros, hashes["text"])
    conditions = tensor_rows(folder, list(words), texts_of, batch_size, share) if texts else {}
    row = {word: i for i, word in enumerate(words.values())}
    return Encoded(images, conditions, tuple(tuple(row[c] for c in e.captions) for e in manifest), tuple(row), tuple(shapes),
                   joined_rows(mask_tables, pieces.values()) if masks else None)


def _mask_rows(cache_dir, masks, cut, side, batch_size, share):
    """-> TableRows (k, F, 1, h, w), kept beside the latents."""
    known = {mask.key: mask for mask in masks}
    folder = folder_of(cache_dir, "masks", *cut.key, str(tuple(side)))

    def masks_of(keys):
        return ({"mask": latent_masks([known[k] for k in batch], cut, side)} for batch in batches_of(keys, batch_size))
    return tensor_rows(folder, [mask.key for mask in masks], masks_of, batch_size, share)["mask"]


def _decoded(examples, preprocessing, size):
    """-> pixels (B, F, 3, side, side) and geometry (B, F, 6) of each batch; threads decode the next two while one is used."""
    ahead = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        for batch in batches_of(examples, size):
            ahead.append([pool.submit(preprocessing, e) for e in batch])
            if len(ahead) > 2:
                yield _stacked(ahead.popleft())
        while ahead:
            yield _stacked(ahead.popleft())


def _stacked(futures):
    return (torch.stack(each) for each in zip(*(f.result() for f in futures), strict=True))


@torch.no_grad()
def _moments(pixels, pipe):
    """-> (B, F, 2C, h, w)."""
    both = family_of(pipe).moments(pipe.vae, pixels.flatten(0, 1).to(pipe.vae.device))
    return both.unflatten(0, pixels.shape[:2]).cpu()


@torch.no_grad()
def encode_texts(texts, pipe):
    """-> a condition of these captions, on the CPU. Long ones were announced already, once."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        encoded = family_of(pipe).encode(pipe, texts, pipe.text_encoder.device)
    finally:
        logging.set_verbosity(level)
    return {name: rows.cpu() for name, rows in encoded.items()}


def too_long(captions, tokenizer, limit):
    """The captions that are cut at so many tokens."""
    lengths = map(len, tokenizer(captions).input_ids)
    return [c for c, n in zip(captions, lengths, strict=True) if n > limit]


def longest_reader(pipe):
    """-> tokenizer of the text encoder that reads most, and how many tokens it reads: as many as a call of the pipeline asks for
    where that says how many, but of CLIP always as many as it can."""
    long = {"StableDiffusion3Pipeline": "tokenizer_3", "FluxPipeline": "tokenizer_2"}.get(type(pipe).__name__, "tokenizer")
    asked = signature(type(pipe).__call__).parameters.get("max_sequence_length")
    if asked and getattr(pipe, long, None):
        return getattr(pipe, long), asked.default
    return pipe.tokenizer, pipe.tokenizer.model_max_length
