"""Latents and text embeddings, computed once: an epoch then costs no VAE, no text encoder and no image file.

A copy costs nothing either: latents are kept per image, embeddings per caption. On disk they lie in files of up to CHUNK of them,
found by content, so that another plan, a caption more or a killed run computes what is missing and nothing else, and read by
memory map, so that they need not fit into memory.
"""
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rotescope.datasets.images import to_pixels
from rotescope.train.families import family_of

CHUNK = 256


@dataclass(frozen=True)
class Rows:
    """Rows of a large table that lie in several tensors, in memory or mapped from files."""
    parts: tuple[torch.Tensor, ...]  # (k_i, ...)
    where: torch.Tensor              # (n, 2): which part, which row of it

    def __len__(self):
        return len(self.where)

    @property
    def shape(self):
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, rows):
        """rows: (B,) -> (B, ...)."""
        return torch.stack([self.parts[part][row] for part, row in self.where[rows].tolist()])


@dataclass(frozen=True)
class Encoded:
    """A manifest as the denoiser sees it."""
    images: dict[str, Rows]   # "moments" (n, F, 2C, h, w): mean and standard deviation, scaled; "geometry" (n, F, 6); F = 1 or 2
    texts: dict[str, Rows]    # conditions of the m captions and, in row 0, of the empty one; {} if a text encoder is trained
    captions: tuple[tuple[int, ...], ...]  # rows of `texts`, for each image
    words: tuple[str, ...]    # (m + 1,) the captions

    def condition(self, batch):
        """-> what the denoiser is told beside latents and timesteps, but for captions that are encoded anew each time."""
        geometry = self.images["geometry"][batch.images]
        return {name: rows[batch.captions] for name, rows in self.texts.items()} | {"geometry": _flipped(geometry, batch.flips)}

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

    @property
    def flips(self):
        return (False, True)[:1 + self.random_flip]

    def __call__(self, example):
        """-> (F, 3, resolution, resolution) in [-1, 1]: the image, and its mirror image if asked; (F, 6) their geometry."""
        image, place = example.open(), _place(example)
        pixels = [to_pixels(image, self.resolution, self.center_crop, flip, place) for flip in self.flips]
        return torch.stack(pixels), torch.tensor([self._geometry(image, flip, place) for flip in self.flips])

    def _geometry(self, image, flip, place):
        """Original height and width, top and left of the crop, target height and width (SDXL, Podell et al. 2023, section 2.2).

        The crop is the one of `to_pixels`; of a mirror image its left is counted in the mirror image.
        """
        margins = [side * self.resolution // min(image.size) - self.resolution for side in image.size]
        left, top = (round(m * s) for m, s in zip(margins, (0.5, 0.5) if self.center_crop else place, strict=True))
        left = margins[0] - left if flip else left
        return [float(v) for v in (image.height, image.width, top, left, self.resolution, self.resolution)]


def _place(example):
    """Where an image is cropped if not in the middle: anywhere, but always there, or its latents could not be kept."""
    digest = bytes.fromhex(example.sha256)
    return digest[0] / 255, digest[1] / 255


def encode(manifest, pipe, preprocessing, hashes, cache_dir=None, on_batch=None, batch_size=8, texts=True):
    """-> Encoded, in float32 on the CPU, without captions if not `texts`.

    `hashes` are those of the folders "vae" and "text" (encoders and tokenizers); with `cache_dir` the tensors are kept there
    under a key of content, model and preprocessing. `on_batch(done)` is called as images are encoded.
    """
    examples, words = {e.sha256: e for e in manifest}, {_hash(w): w for w in ("", *manifest.captions())}
    read = 0

    def images_of(keys):
        nonlocal read
        for batch in _batches(keys, batch_size):
            yield _encode_images([examples[k] for k in batch], pipe.vae, preprocessing)
            read += len(batch)
            if on_batch:
                on_batch(read)

    def texts_of(keys):
        return (encode_texts([words[k] for k in batch], pipe) for batch in _batches(keys, batch_size))

    images = _kept(_folder(cache_dir, "latents", hashes["vae"], repr(preprocessing)), [e.sha256 for e in manifest], images_of)
    if read and on_batch:
        on_batch(len(manifest))
    text_key = ("embeddings", type(pipe).__name__, hashes["text"])
    conditions = _kept(_folder(cache_dir, *text_key), list(words), texts_of) if texts else {}
    row = {word: i for i, word in enumerate(words.values())}
    return Encoded(images, conditions, tuple(tuple(row[c] for c in e.captions) for e in manifest), tuple(row))


def _batches(keys, size):
    return (keys[i:i + size] for i in range(0, len(keys), size))


@torch.no_grad()
def _encode_images(examples, vae, preprocessing):
    """-> moments (B, F, 2C, h, w), geometry (B, F, 6)."""
    pixels, geometry = (torch.stack(each) for each in zip(*map(preprocessing, examples), strict=True))
    posterior = vae.encode(pixels.flatten(0, 1).to(vae.device)).latent_dist
    shift = getattr(vae.config, "shift_factor", None) or 0
    both = torch.cat([posterior.mean - shift, posterior.std], 1) * vae.config.scaling_factor
    return {"moments": both.unflatten(0, pixels.shape[:2]).cpu(), "geometry": geometry}


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


# ----- tables of tensors by key, in a folder

def _hash(*texts):
    return hashlib.sha256(chr(0).join(texts).encode()).hexdigest()


def _folder(cache_dir, kind, *key):
    return Path(cache_dir) / f"{kind}-{_hash(*key)[:32]}" if cache_dir else None


def _kept(folder, keys, compute):
    """-> {name: Rows}, a row a key. `compute(keys)` yields dicts of tensors for those that the folder lacks."""
    tables, where = [], {}

    def add(tensors, names):
        where.update({name: (len(tables), row) for row, name in enumerate(names)})
        tables.append(tensors)

    for tensors, names in _stored(folder):
        add(tensors, names)
    missing = [k for k in dict.fromkeys(keys) if k not in where]
    for chunk in _batches(missing, CHUNK):
        batches = list(compute(chunk))
        tensors = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        add(_store(folder, tensors, chunk) if folder else tensors, chunk)
    rows = torch.tensor([where[k] for k in keys])
    return {name: Rows(tuple(t[name] for t in tables), rows) for name in tables[0]}


def _stored(folder):
    """(tensors, keys) of each file, mapped, not read. A damaged one counts as missing."""
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            with safe_open(file, "pt") as about:
                names = json.loads(about.metadata()["keys"])
            yield load_file(file), names
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue


def _store(folder, tensors, keys):
    """Write a file whole or not at all -> its tensors, mapped."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_hash(*keys)[:32]}.safetensors"
    draft = file.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, draft, metadata={"keys": json.dumps(keys)})
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return load_file(file)


def too_long(captions, tokenizer):
    """The captions that the tokenizer would cut."""
    lengths = map(len, tokenizer(captions).input_ids)
    return [c for c, n in zip(captions, lengths, strict=True) if n > tokenizer.model_max_length]
