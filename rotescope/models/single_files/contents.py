"""What a file of weights holds, by its keys and shapes alone: a whole checkpoint, a part of one, an adapter, an embedding."""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.wording import shown_safely
from rotescope.models.adapters.layer_names import parse_key, unread_kind
from rotescope.models.model_families import FamilyGuess, guess_family
from rotescope.models.single_files.gguf_files import is_gguf, read_gguf
from rotescope.models.tensor_files import TensorFile, read_tensor_file

PARTS = (  # how a key begins -> the part of a checkpoint
    ("model.diffusion_model.", "denoiser"), ("diffusion_model.", "denoiser"), ("first_stage_model.", "VAE"), ("vae.", "VAE"),
    ("cond_stage_model.", "text encoder"), ("conditioner.embedders.0.", "text encoder"),
    ("conditioner.embedders.1.", "second text encoder"), ("text_encoders.clip_l.", "text encoder"),
    ("text_encoders.clip_g.", "second text encoder"), ("text_encoders.t5xxl.", "T5"), ("model_ema.", "EMA"),
)
BARE = (  # a part alone, in a file without such beginnings: what one of its keys holds
    ("denoiser", re.compile(r"^(input|double|single|joint|transformer|down)_blocks\.\d+\.|^layers\.\d+\.")),
    ("VAE", re.compile(r"^(encoder|decoder)\.(down|up|mid|conv_in|down_blocks|up_blocks)\b")),
    ("text encoder", re.compile(r"^(text_model\.|transformer\.resblocks|encoder\.(layers|block)\.\d+\.|shared\.)")),
)
MARKS = {"v_pred", "ztsnr"}  # keys that say how a model was trained
EMBEDDING_KEYS = ("clip_l", "clip_g", "emb_params", "string_to_param")
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class ModelDescription:
    """What a file of weights is.

    Attributes
    ----------
    path : Path
    kind : str
        checkpoint, denoiser, VAE, text encoder, adapter, embedding, folder, or unknown.
    family : FamilyGuess
    parts : dict of str to int
        Part -> how many numbers it holds.
    formats : tuple of str
        Number formats, such as F16, the most common one first.
    prediction_type : str, optional
        What the file says that its denoiser predicts.
    zero_terminal_snr : bool
        Whether it says that it was trained down to pure noise.
    channels : int, optional
        That a denoiser of Stable Diffusion takes in; 9 for inpainting.
    title : str
        As the file calls itself.
    """
    path: Path
    kind: str
    family: FamilyGuess
    parts: dict[str, int]
    formats: tuple[str, ...] = ()
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    channels: int | None = None
    title: str = ""

    def lines(self) -> list[str]:
        """What a person is told, in up to three lines."""
        sizes = ", ".join(f"{part} {_size_word(n)}" for part, n in self.parts.items())
        said = [f"predicts {self.prediction_type}" if self.prediction_type else "",
                "zero terminal SNR" if self.zero_terminal_snr else "", f"calls itself {self.title!r}" if self.title else ""]
        found = [f"{self.path}: {self.what}", f"{sizes}{' in ' if self.formats and sizes else ''}{' and '.join(self.formats)}",
                 ", ".join(filter(None, said))]
        return [shown_safely(line) for line in found if line]

    @property
    def what(self) -> str:
        """The kind and family in words."""
        inpainting = ", for inpainting" if self.channels == 9 else ""
        return {"checkpoint": f"a single-file checkpoint of {self.family}{inpainting}",
                "folder": f"a model folder of {self.family}{inpainting}",
                "denoiser": f"the denoiser of {self.family} alone, without text encoder and VAE{inpainting}",
                "VAE": "a VAE alone", "text encoder": "a text encoder alone", "adapter": f"an adapter for {self.family}",
                "embedding": "a textual inversion"}.get(self.kind, "weights of a kind that is not known here")


def _size_word(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n:,}"


def describe_model(path: str | Path) -> ModelDescription:
    """A file of weights, or a folder in diffusers' layout -> what it is, by headers alone.

    Raises InputError, one line, for a pickle, a damaged file, or a folder of another kind.
    """
    if Path(path).is_dir():
        from rotescope.models.single_files.folders import describe_folder
        return describe_folder(path)
    return description_of(read_gguf(path) if is_gguf(path) else read_tensor_file(path))


def description_of(table: TensorFile) -> ModelDescription:
    """The header of a file -> what the file is."""
    kind, shapes = kind_of_weights(table.shapes), {}
    parts: dict[str, int] = {}
    for key, shape in table.shapes.items():
        part = next((part for start, part in PARTS if key.startswith(start)), None) or (
            kind if kind in ("denoiser", "VAE", "text encoder") else None)
        if part and key not in MARKS:
            parts[part] = parts.get(part, 0) + prod(shape)
        if part == "denoiser":
            shapes[key.removesuffix(".weight")] = shape
    formats = sorted(set(table.formats.values()), key=list(table.formats.values()).count, reverse=True)
    said = table.metadata.get("modelspec.prediction_type", "")
    first = next((shape for key, shape in table.shapes.items() if re.search(r"(input_blocks\.0\.0|conv_in)\.weight$", key)
                  and "first_stage" not in key and len(shape) == 4), None)
    return ModelDescription(
        table.path, kind, _family_of_adapter(table) if kind == "adapter" else guess_family(shapes), parts, tuple(formats),
        "v_prediction" if "v_pred" in table.shapes else PREDICTIONS.get(said), "ztsnr" in table.shapes,
        first[1] if first and kind != "VAE" else None, table.metadata.get("modelspec.title", "")[:80])


def kind_of_weights(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Keys with their shapes -> what they are, as ModelDescription.kind."""
    starts = {part for key in shapes for start, part in PARTS if key.startswith(start)}
    ends = [key for key in shapes if parse_key(key) and not key.endswith((".alpha", ".scale", ".diff"))]
    if ends and len(ends) >= len(shapes) / 4 or (unread_kind(shapes) and not starts):
        return "adapter"
    if starts:
        return "checkpoint" if "denoiser" in starts and len(starts - {"EMA"}) > 1 else \
            next(iter(starts & {"denoiser"} or starts))
    if shapes and all(any(mark in key for mark in EMBEDDING_KEYS) for key in shapes) or (
            len(shapes) == 1 and len(next(iter(shapes.values()))) <= 2 and "." not in next(iter(shapes))):
        return "embedding"
    if any(key.endswith((".diff", ".diff_b")) for key in shapes):
        return "adapter"
    return next((kind for kind, pattern in BARE if any(pattern.search(key) for key in shapes)), "unknown")


def _family_of_adapter(table: TensorFile) -> FamilyGuess:
    """By the sizes of what its factors make; that brings torch, which nothing else here needs."""
    from rotescope.models.adapters.description import describe_adapter
    try:
        return describe_adapter(table.path).family
    except InputError:  # half of one, or of a kind that is not read
        return guess_family({})
