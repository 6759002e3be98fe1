"""Files in safetensors' format: their table of tensors without the tensors, and what is wrong with one in a line.

No library is loaded before tensors are wanted.
"""
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotescope.common.errors import InputError

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000  # bytes of a header, as in the format's own reader
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how a pickle of protocols 2 to 5 begins
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F8_E4M3": 1,
         "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
CONVERT = ("convert it where you trust its maker: torch.load(FILE, weights_only=True), then safetensors.torch.save_file of the "
           "tensors that it holds")


@dataclass(frozen=True)
class TensorFile:
    """What the header of a file says.

    Attributes
    ----------
    path : Path
    shapes : dict of str to tuple of int
        Of each tensor.
    formats : dict of str to str
        Of each tensor, in the format's own words, such as F16.
    metadata : dict of str to str
        What the writer noted beside the tensors.
    """
    path: Path
    shapes: dict[str, tuple[int, ...]]
    formats: dict[str, str]
    metadata: dict[str, str]


def check_tensor_file(path: str | Path) -> Path:
    """Raise InputError, one line, if a file is a pickle, is not there, or begins like no file of tensors."""
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{path} is a pickle by its name, which may run any program when it is opened, so it is not read: "
                         f"{CONVERT}")
    try:
        with open(path, "rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): name a .safetensors file") from error
    if (start.startswith(PICKLED) and start[8:9] != b"{") or zipfile.is_zipfile(path):
        raise InputError(f"{path} is a pickle under another name, which may run any program when it is opened, so it is not "
                         f"read: {CONVERT}")
    if start.startswith(b"GGUF"):
        raise InputError(f"{path} is a GGUF, whose weights are cut to few bits: name the .safetensors that it was made of")
    if len(start) < 9 or start[8:9] != b"{":
        raise InputError(f"{path} is no safetensors file: copy it again, or name another one")
    return path


def read_tensor_file(path: str | Path) -> TensorFile:
    """The header of a safetensors file, and no tensor of it.

    Raises
    ------
    InputError
        If it is a pickle, no such file, cut short, or if its header contradicts itself.
    """
    path = check_tensor_file(path)
    size = path.stat().st_size
    with open(path, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > HEADER_LIMIT:
            raise InputError(f"{path} is no safetensors file: its header would have {length:,} bytes; copy it again")
        text = opened.read(length)
    if len(text) < length:
        raise InputError(f"{path} is cut short within its header: copy it again")
    try:
        header = json.loads(text)
        noted = header.pop("__metadata__", None) or {}
        table = {key: (entry["dtype"], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
                 for key, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no safetensors file: its header cannot be read; copy it again") from error
    _check_places(path, table, size - 8 - length)
    return TensorFile(path, {key: entry[1] for key, entry in table.items()}, {key: entry[0] for key, entry in table.items()},
                      {str(k): v for k, v in noted.items() if isinstance(v, str)})


def _check_places(path: Path, table: dict[str, Any], size: int) -> None:
    """Every tensor has its bytes, behind the one before, and the last one ends the file."""
    end = 0
    for key, (dtype, shape, start, stop) in sorted(table.items(), key=lambda item: item[1][2:]):
        needed = math.prod(shape) * BYTES.get(dtype, 0)
        if min(shape, default=0) < 0 or start != end or stop < start or (dtype in BYTES and stop - start != needed):
            raise InputError(f"{path} contradicts itself: its header gives {key} {stop - start:,} bytes from {start:,} on, for "
                             f"{needed:,} after {end:,}; copy it again")
        end = stop
    if size < end:
        raise InputError(f"{path} is cut short: its header says {end:,} bytes of tensors, and {size:,} are there; copy it again")
    if size > end:
        raise InputError(f"{path} is no whole safetensors file: {size - end:,} bytes follow its last tensor; copy it again")


def load_tensors(path: str | Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file that read_tensor_file takes. InputError as there."""
    from safetensors.torch import load_file
    path = read_tensor_file(path).path
    try:
        return load_file(path)
    except Exception as error:  # a format of numbers that this torch lacks, or a file that changes meanwhile
        raise InputError(f"{path} cannot be read ({error}): copy it again") from error
