"""What an adapter's file is: format, type, rank, strength, the family that it would fit. Nothing is loaded but its numbers α."""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from rotescope.common.wording import shown_safely
from rotescope.models.adapters.adapter_file import NUMBER_ENDS, AdapterFile, read_noted, updates_of
from rotescope.models.adapters.header import AdapterHeader, header_of
from rotescope.models.adapters.layer_names import format_of
from rotescope.models.adapters.layer_updates import LayerUpdate
from rotescope.models.model_families import FamilyGuess, guess_family
from rotescope.models.tensor_files import TensorFile, read_tensor_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PART_WORDS = {"denoiser": "the denoiser", "text_encoder": "the text encoder", "text_encoder_2": "the second text encoder",
              "text_encoder_3": "the third text encoder", "": "a part that is not named"}


@dataclass(frozen=True)
class AdapterDescription:
    """What an adapter's file is.

    Attributes
    ----------
    path : Path
    format : str
        Whose way of naming layers it follows: kohya, LyCORIS, diffusers, PEFT, or the models' original names.
    kinds : dict of str to int
        LoRA, DoRA, LoHa, LoKr, full, norm: of how many layers.
    family : FamilyGuess
        The family of models that it would fit.
    ranks : dict of int to int
        Rank -> how many layers have it.
    scales : tuple of float
        The different α/r, ascending.
    modules : dict of str to int
        Part of a pipeline -> how many of its layers get an update.
    embeddings : tuple of str
        Textual inversions that go with it.
    header : AdapterHeader
    """
    path: Path
    format: str
    kinds: dict[str, int]
    family: FamilyGuess
    ranks: dict[int, int]
    scales: tuple[float, ...]
    modules: dict[str, int]
    embeddings: tuple[str, ...]
    header: AdapterHeader

    def lines(self) -> list[str]:
        """What a person is told, in up to three lines."""
        kinds = " and ".join(self.kinds) if len(self.kinds) == 1 else ", ".join(f"{k} on {n:,}" for k, n in self.kinds.items())
        parts = ", ".join(f"{n:,} layer{'' if n == 1 else 's'} of {PART_WORDS.get(part, part)}"
                          for part, n in self.modules.items())
        with_it = f"; brings the embeddings {', '.join(self.embeddings)}" if self.embeddings else ""
        first = f"{self.path}: {kinds} for {self.family}, named as {self.format} does"
        header = "; ".join(line.strip() for line in self.header.lines())
        return [shown_safely(line) for line in (first, f"{self._numbers()}{parts}{with_it}", *([header] if header else []))]

    def _numbers(self):
        if not self.ranks:
            return ""
        rank = "rank " + (str(next(iter(self.ranks))) if len(self.ranks) == 1 else f"{min(self.ranks)} to {max(self.ranks)}")
        low, high = self.scales[0], self.scales[-1]
        return f"{rank}, strength {low:.3g}{'' if low == high else f' to {high:.3g}'} (alpha/rank); "


def describe_adapter(path: str | Path) -> AdapterDescription:
    """An adapter's file -> what it is. InputError, one line, for what is no adapter or is not whole."""
    table = read_tensor_file(path)
    found = updates_of(table.path, _without_numbers(table), read_noted(table.path))
    factored = [update for update in found.updates if update.rank is not None]
    return AdapterDescription(
        table.path, format_of(table.shapes), dict(Counter(map(kind_word, found.updates)).most_common()),
        guess_family(shapes_of(found)), dict(Counter(u.rank for u in factored if u.rank is not None)),
        tuple(sorted({round(u.scale, 6) for u in factored})),
        dict(sorted(Counter(part for part, _ in found.parts.values()).items())),
        tuple(dict.fromkeys(key.split(".")[1] for key in found.embeddings)), header_of(table.metadata))


def kind_word(update: LayerUpdate) -> str:
    """`LoHa`, or `LoHa with DoRA` for one that has norms of its own."""
    decomposed = update.magnitude is not None
    return ("DoRA" if update.kind == "LoRA" else f"{update.kind} with DoRA") if decomposed else update.kind


def shapes_of(found: AdapterFile) -> dict[str, tuple[int, ...]]:
    """-> the shape of each layer's ΔW, (out, in, …), by the layer's name in the file; no number is computed."""
    return {update.name: update.delta_shape() for update in found.updates}


def _without_numbers(table: TensorFile) -> dict[str, torch.Tensor]:
    """Tensors of the right shapes that hold nothing, but for α and the like."""
    with safe_open(table.path, "pt") as opened:
        return {key: opened.get_tensor(key) if key.endswith(NUMBER_ENDS) else
                torch.empty(shape, dtype=DTYPES.get(table.formats[key], torch.float32), device="meta")
                for key, shape in table.shapes.items()}
