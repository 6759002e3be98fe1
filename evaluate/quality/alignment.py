"""Text-image agreement, by a contrastive model: the embedded one (in-domain), or any of open_clip's from a file or the hub."""
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256
from rotescope.datasets.images.square import square
from rotescope.models.hub_weights import downloaded

WEIGHTS, OPEN_CLIP_WEIGHTS = "model.safetensors", "open_clip_model.safetensors"
LAION = {  # architecture -> where its authors' weights are, under the MIT licence
    "ViT-B-16": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-L-14": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "ViT-g-14": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"}


@dataclass(frozen=True)
class Alignment:
    """A pair of towers. Both answer with float32 of any length; the image side also serves as features for fidelity."""
    label: str                                   # names model and domain; goes into the report
    sha256: str                                  # of the image tower's weights
    images: Callable[[list], np.ndarray]         # n RGB images -> (n, d)
    texts: Callable[[list[str]], np.ndarray]     # n captions -> (n, d)


def get_alignment(name):
    """A folder `alignment/` of a model, or open_clip:ARCHITECTURE[:FILE or hub name] -> Alignment; "" or none -> None."""
    if str(name or "none") == "none":
        return None
    return open_clip_alignment(str(name)) if str(name).startswith("open_clip:") else embedded_alignment(Path(name))


def find_alignment(model):
    """The metric that ships with a model folder, or with the base that it was fine-tuned from -> its folder, or ""."""
    for folder in _lineage(model):
        if (folder / "alignment" / "config.json").exists():
            return str(folder / "alignment")
    return ""


def _lineage(model):
    seen = set()
    while model and (folder := Path(model)) not in seen:
        seen.add(folder)
        yield folder
        about = folder / "rotescope.json"
        model = json.loads(about.read_text(encoding="utf-8")).get("base") if about.is_file() else None


def caption_match(images, captions, candidates, own):
    """images (n, d), captions (n, d), candidates (c, d); own: for each image the candidates that are right
    -> cosine with the own caption (n,), and whether the best candidate is a right one (n,)."""
    images, captions, candidates = map(_unit, (images, captions, candidates))
    best = (images @ candidates.T).argmax(1)
    return (images * captions).sum(1), np.array([b in right for b, right in zip(best, own, strict=True)])


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def embedded_alignment(folder):
    """An image tower beside a pipeline's text encoder: what train/base_model/pretrain.py makes before it makes the denoiser."""
    from transformers import CLIPTextModel, CLIPTokenizer
    _check_files(folder)
    try:
        tower, side, projection = _image_tower(folder)
        with _quiet():
            text_encoder, tokenizer = folder.parent / "text_encoder", CLIPTokenizer.from_pretrained(folder.parent / "tokenizer")
            encoder = CLIPTextModel.from_pretrained(text_encoder, dtype=torch.float32, use_safetensors=True).eval()
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"the alignment metric {folder} cannot be loaded ({error}): copy it again") from error

    def texts(captions):
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(ids).pooler_output @ projection  # hidden state at the end token (n, width) -> (n, d)

    def images(pictures):
        x = np.stack([np.asarray(square(p, side, Image.BICUBIC), np.float32) for p in pictures])  # (n, side, side, 3)
        return tower(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1)
    return Alignment("embedded contrastive model (in-domain)", sha256(folder / WEIGHTS), in_batches(images), in_batches(texts))


def _image_tower(folder):
    """-> open_clip's modified ResNet, the side of its images in pixels, and the text projection (width, d)."""
    from open_clip.modified_resnet import ModifiedResNet
    config, state = json.loads((folder / "config.json").read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    vision = config["vision"]
    heads = vision["width"] * 32 // vision["head_width"]
    tower = ModifiedResNet(vision["layers"], config["embed_dim"], heads, vision["image_size"], vision["width"])
    tower.load_state_dict({k.removeprefix("visual."): v.float() for k, v in state.items() if k.startswith("visual.")})
    return tower.eval(), vision["image_size"], state["text_projection"].float()


def _check_files(folder):
    for name in ("config.json", WEIGHTS, "../text_encoder/config.json", "../tokenizer"):
        if not (folder / name).exists():
            raise InputError(f"{folder / name} is missing, so {folder} is no alignment metric: name a model's alignment/ folder, "
                             "or open_clip:ARCHITECTURE:FILE.safetensors")


def open_clip_alignment(name):
    """open_clip:ViT-B-16:/path/file.safetensors, open_clip:ViT-B-16:owner/name on the hub, or open_clip:ViT-B-16 for LAION's.

    Pickled weights are refused: loading one can run code.
    """
    import open_clip
    _, _, rest = name.partition(":")
    architecture, _, source = rest.partition(":")
    if architecture not in open_clip.list_models():
        raise InputError(f"open_clip knows no architecture {architecture!r}: see open_clip.list_models()")
    source = source or LAION.get(architecture, "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.endswith(".safetensors"):
        file, label = str(downloaded(source, OPEN_CLIP_WEIGHTS) / OPEN_CLIP_WEIGHTS), f"open_clip {architecture}, {source}"
    elif source.endswith(".safetensors") and Path(source).is_file():
        file, label = source, f"open_clip {architecture}"
    else:
        raise InputError(f"{name}: write open_clip:ARCHITECTURE:FILE.safetensors, with a local file in that format (no pickles), "
                         f"or a hub name; neither is needed for {', '.join(LAION)}")
    try:
        model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=file)
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{file} does not hold weights of {architecture} ({error}): name the right pair") from error
    model, tokenizer = model.eval(), open_clip.get_tokenizer(architecture)
    return Alignment(label, sha256(file),
                     in_batches(lambda pictures: model.encode_image(torch.stack([transform(p) for p in pictures]))),
                     in_batches(lambda captions: model.encode_text(tokenizer(captions))))


@contextmanager
def _quiet():
    """Without transformers' own bar for loading."""
    from transformers.utils import logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def in_batches(function, size=128):
    @torch.no_grad()
    def run(items):
        return torch.cat([function(list(items[i:i + size])).float() for i in range(0, len(items), size)]).numpy()
    return run
