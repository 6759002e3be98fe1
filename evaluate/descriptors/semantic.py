"""DINOv2 and CLIP as descriptors: they tell what a picture shows, so near is alike, not copied. The report says so."""
from pathlib import Path

import torch

from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256
from rotescope.evaluate.descriptors.descriptor import Descriptor
from rotescope.evaluate.quality.alignment import in_batches, open_clip_alignment
from rotescope.models.hub_weights import downloaded

WEIGHTS = "model.safetensors"


def dinov2(name="", trusted=()):
    """Class token of the last layer; name: a transformers folder or hub name, with its own preprocessing beside the weights."""
    from transformers import AutoModel
    return _from_folder("dinov2", name or "facebook/dinov2-base", AutoModel, lambda out: out.last_hidden_state[:, 0])


def clip(name="", trusted=()):
    """The image tower of a CLIP: a transformers folder or hub name, or one of open_clip's, as alignment has it."""
    from transformers import CLIPVisionModelWithProjection
    if name.startswith("open_clip:"):
        tower = open_clip_alignment(name)
        dim = tower.texts(["a"]).shape[1]
        label = name.split(":")[1].lower()
        return Descriptor(f"clip-{label}-own-fp32-{tower.sha256[:8]}", dim, tower.images, "semantic", tower.sha256)
    name = name or "openai/clip-vit-base-patch16"
    return _from_folder("clip", name, CLIPVisionModelWithProjection, lambda out: out.image_embeds)


def _from_folder(kind, name, model_class, pick):
    from transformers import AutoImageProcessor
    folder = Path(name) if Path(name).is_dir() else downloaded(name, WEIGHTS)
    try:
        model = model_class.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        digest = sha256(folder / WEIGHTS)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"{name} cannot be loaded as {kind} ({error}): name a folder with {WEIGHTS} and its configs") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def images(pictures):
        return pick(model(**processor(images=pictures, return_tensors="pt").to(device))).cpu()
    dim = model.config.projection_dim if kind == "clip" else model.config.hidden_size
    return Descriptor(f"{kind}-{Path(name).name.lower()}-own-fp32-{digest[:8]}", dim, in_batches(images), "semantic", digest)

