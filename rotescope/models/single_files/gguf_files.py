"""Denoisers in GGUF files, whose numbers are cut to few bits: their tables of tensors, and the denoiser, by diffusers."""
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotescope.common.errors import InputError
from rotescope.models.tensor_files import TensorFile

if TYPE_CHECKING:
    import torch


def is_gguf(path: str | Path) -> bool:
    """Whether a file begins as a GGUF does; of one that is not there, whether it is called so."""
    try:
        with open(path, "rb") as opened:
            return opened.read(4) == b"GGUF"
    except OSError:
        return Path(path).suffix.lower() == ".gguf"


def read_gguf(path: str | Path) -> TensorFile:
    """The names, shapes and formats of a file's tensors, as safetensors would have them.

    Raises InputError, one line, where the file is damaged or the package gguf, which reads it, is not installed.
    """
    if not find_spec("gguf"):
        raise InputError(f"{path} is a GGUF, and the package that reads it is not installed: pip install 'rotescope[gguf]'")
    from gguf import GGUFReader
    try:
        tensors = GGUFReader(path).tensors
        shapes = {tensor.name: tuple(int(side) for side in reversed(tensor.shape)) for tensor in tensors}
        return TensorFile(Path(path), shapes, {tensor.name: tensor.tensor_type.name for tensor in tensors}, {})
    except Exception as error:  # a damaged file shows in as many ways as it has fields
        raise InputError(f"{path} is no whole GGUF file ({error}): copy it again") from error


def load_gguf_denoiser(file: Path, config: Path, kind: Any, dtype: "torch.dtype") -> "torch.nn.Module":
    """The denoiser of class `kind`, its configuration in the folder `config`; its layers unpack their numbers into `dtype`."""
    from diffusers import GGUFQuantizationConfig
    part: torch.nn.Module = kind.from_single_file(
        str(file), config=str(config.parent), subfolder=config.name, local_files_only=True, torch_dtype=dtype,
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype))
    return part
