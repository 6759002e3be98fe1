"""Latents and text embeddings, computed once: an epoch then costs no VAE, no text encoder and no image file.

A copy costs nothing either: latents are kept per image, embeddings per caption.
"""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rotescope.datasets.images import to_pixels


@dataclass(frozen=True)
class Encoded:
    """A manifest as the denoiser sees it."""
    moments: torch.Tensor             # (n, F, 2C, h, w): mean and standard deviation, scaled; F = 2 with flips, else 1
    embeddings: torch.Tensor          # (m + 1, L, D); row 0 is the empty caption, the unconditional branch
    captions: tuple[tuple[int, ...], ...]  # rows of `embeddings`, for each image


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into the VAE's input; part of a cache's key."""
    resolution: int
    center_crop: bool = True
    random_flip: bool = False

    def __call__(self, example):
        """-> (F, 3, resolution, resolution) in [-1, 1]: the image, and its mirror image if flips are on."""
        image, flips = example.open(), (False, True)[:1 + self.random_flip]
        return torch.stack([to_pixels(image, self.resolution, self.center_crop, flip, _place(example)) for flip in flips])


def _place(example):
    """Where an image is cropped if not in the middle: anywhere, but always there, or its latents could not be kept."""
    digest = bytes.fromhex(example.sha256)
    return digest[0] / 255, digest[1] / 255


def encode(manifest, pipe, preprocessing, hashes, cache_dir=None, on_batch=None, batch_size=8):
    """-> Encoded, in float32 on the CPU.

    `hashes` are those of the folders "vae" and "text" (encoder and tokenizer); with `cache_dir` the tensors are kept there under
    a key of content, model and preprocessing. `on_batch(done)` is called as images are encoded.
    """
    texts = ["", *manifest.captions()]
    moments = _kept(cache_dir, ["latents", hashes["vae"], repr(preprocessing), *(e.sha256 for e in manifest)],
                    lambda: _encode_images(manifest, pipe.vae, preprocessing, batch_size, on_batch))
    embeddings = _kept(cache_dir, ["embeddings", hashes["text"], *texts],
                       lambda: _encode_texts(texts, pipe.tokenizer, pipe.text_encoder, batch_size))
    row = {text: i for i, text in enumerate(texts)}
    return Encoded(moments, embeddings, tuple(tuple(row[c] for c in e.captions) for e in manifest))


@torch.no_grad()
def _encode_images(manifest, vae, preprocessing, batch_size, on_batch):
    moments = []
    for start in range(0, len(manifest), batch_size):
        pixels = torch.stack([preprocessing(e) for e in manifest[start:start + batch_size]])  # (B, F, 3, H, W)
        posterior = vae.encode(pixels.flatten(0, 1).to(vae.device)).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0
        both = torch.cat([posterior.mean - shift, posterior.std], 1) * vae.config.scaling_factor
        moments.append(both.unflatten(0, pixels.shape[:2]).cpu())
        if on_batch:
            on_batch(min(start + batch_size, len(manifest)))
    return torch.cat(moments)


@torch.no_grad()
def _encode_texts(texts, tokenizer, text_encoder, batch_size):
    """-> last hidden states (m, L, D), as StableDiffusionPipeline feeds them to the denoiser."""
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids  # (m, model_max_length)
    return torch.cat([text_encoder(part.to(text_encoder.device))[0].cpu() for part in ids.split(batch_size)])


def _kept(cache_dir, key, compute):
    """compute(), or what it gave under the same key before; a damaged file is made again."""
    if cache_dir is None:
        return compute()
    file = Path(cache_dir) / f"{key[0]}-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:32]}.safetensors"
    try:
        return load_file(file)["tensor"]
    except (OSError, SafetensorError, KeyError):
        tensor = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({"tensor": tensor.contiguous()}, draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return tensor


def too_long(captions, tokenizer):
    """The captions that the tokenizer would cut."""
    lengths = map(len, tokenizer(captions).input_ids)
    return [c for c, n in zip(captions, lengths, strict=True) if n > tokenizer.model_max_length]
