"""Text encoders of a single file, in transformers' or open_clip's names, without a number missing.

diffusers tells the two of SDXL apart by their width alone, and leaves what it does not find as it lay in memory.
"""
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from rotescope.common.errors import InputError

CLASSES = {"CLIPTextModel": (CLIPTextModel, CLIPTextConfig), "T5EncoderModel": (T5EncoderModel, T5Config),
           "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig)}
STARTS = {  # component -> how its keys may begin, and whether open_clip's names follow
    "text_encoder": (("cond_stage_model.transformer.", False), ("conditioner.embedders.0.transformer.", False),
                     ("cond_stage_model.model.", True), ("text_encoders.clip_l.transformer.", False)),
    "text_encoder_2": (("conditioner.embedders.1.model.", True), ("text_encoders.clip_g.transformer.", False)),
}
T5_STARTS = (("text_encoders.t5xxl.transformer.", False),)
OPEN_CLIP = (  # open_clip's name -> transformers'
    (r"^transformer\.resblocks\.", "encoder.layers."), (r"\.ln_([12])\.", r".layer_norm\1."), (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."), (r"\.attn\.", ".self_attn."), (r"^ln_final\.", "final_layer_norm."),
    (r"^token_embedding\.", "embeddings.token_embedding."), (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^text_projection$", "text_projection.weight"), (r"\.weight\.weight$", ".weight"),
)
JOINED = re.compile(r"^(.*\.self_attn\.)in_proj_(weight|bias)$")  # query, key and value in one


def text_encoders_of(file: Path, config: Path, index: Mapping[str, object], dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """A checkpoint in one file and its configuration -> its text encoders, those that it holds.

    Raises InputError where one of their weights is missing or has another size.
    """
    found = {}
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
        for component in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            about = index.get(component)
            kind = str(about[1]) if isinstance(about, list) else ""
            starts = T5_STARTS if kind == "T5EncoderModel" else STARTS.get(component, ())
            start, is_open_clip = next(((s, o) for s, o in starts if any(key.startswith(s) for key in keys)), ("", False))
            if start and kind in CLASSES:
                weights = {key.removeprefix(start): opened.get_tensor(key) for key in keys if key.startswith(start)}
                weights = from_open_clip(weights) if is_open_clip else weights
                found[component] = _built(kind, config / component / "config.json", weights, f"{file}'s {component}").to(dtype)
    return found


def from_open_clip(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by open_clip's names -> by transformers': query, key and value apart, the projection transposed."""
    found = {}
    for key, w in weights.items():
        name = key
        for pattern, new in OPEN_CLIP:
            name = re.sub(pattern, new, name)
        if joined := JOINED.match(name):
            for letter, part in zip("qkv", w.chunk(3), strict=True):
                found[f"{joined[1]}{letter}_proj.{joined[2]}"] = part
        else:
            found[name] = w.T if name == "text_projection.weight" else w
    return found


def _built(kind: str, config: Path, weights: Mapping[str, torch.Tensor], what: str) -> torch.nn.Module:
    """A text encoder with these weights; those that it does not have (a last layer that SD 2 skips) are not used."""
    model, settings = CLASSES[kind]
    about = settings(**json.loads(config.read_text(encoding="utf-8")))
    given = {key.removeprefix("text_model."): w for key, w in weights.items()}
    if "Projection" in kind and "text_projection.weight" not in given:  # SD3's first has none in its files: it stays as it is
        given["text_projection.weight"] = torch.eye(about.projection_dim)
    with torch.device("meta"):
        wanted = model(about).state_dict()
    placed = {}
    for key, own in wanted.items():
        name = "shared.weight" if key == "encoder.embed_tokens.weight" else key.removeprefix("text_model.")
        w = given.get(name)
        if w is None or w.shape != own.shape:
            has = "is missing" if w is None else f"has the size {' × '.join(map(str, w.shape))}"
            raise InputError(f"{what}: {key} {has}, and its configuration wants {' × '.join(map(str, own.shape))}; copy the file "
                             "again, or name another --model_config")
        placed[key] = w
    encoder: torch.nn.Module = model(about)
    encoder.load_state_dict(placed)
    return encoder.eval()
