"""Encoded images: their bytes as files, tables and archives keep them, and the picture that the bytes hold."""
import io
import re
import tarfile
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rotescope.common.errors import InputError
from rotescope.common.parquet import parquet_file
from rotescope.common.wording import printable

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # what they hold: Pillow has Ghostscript run PostScript
NEWER = {  # format: (a module that brings it, what the first bytes look like, how to get it)
    "AVIF": ("PIL", re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "pip install --upgrade pillow, to 11.3 or later,"),
    "JXL": ("pillow_jxl", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n"), "pip install pillow-jxl-plugin")}
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
MAX_ASPECT = 100         # a sliver blown up to the training resolution would be one, too


def locate(file, row):
    """Image file, or row of a table or archive -> its name for people, always printable."""
    name = printable(str(file))
    return name if row is None else f"row {row} of {name}"


def decode(encoded, name):
    """Encoded bytes -> RGB PIL image, upright, loaded; `name` is what an InputError calls it.

    Of an animation the first frame; 16-bit grey is scaled to 8 bit, CMYK and transparency go as Pillow's convert("RGB") has them.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"{image.width} × {image.height} pixels are no picture, but a line")
        return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        missing = next((kind for kind, (_, begins, _) in NEWER.items() if begins.match(encoded)), None)
        if missing and missing not in _formats():
            raise InputError(f"{name} is {missing}, which nothing here reads: {NEWER[missing][2]} reads it") from error
        why = f"it is none of {', '.join(_formats())}" if encoded else "it is empty"
        raise InputError(f"{name} cannot be read as an image ({why}): mend or remove it") from error
    except Exception as error:  # Pillow's decoders raise half a dozen kinds
        raise InputError(f"{name} cannot be read as an image ({error}): mend or remove it") from error


@lru_cache(maxsize=1)
def _formats():
    """FORMATS, and those of NEWER that are installed."""
    for module in (m for m, _, _ in NEWER.values() if find_spec(m)):
        import_module(module)   # registers its format
    Image.init()
    return (*FORMATS, *(kind for kind in NEWER if kind in Image.OPEN))


def upright_size(encoded, name):
    """Encoded bytes of a picture that `decode` takes -> its width and height, upright; its pixels are not read."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
        width, height = image.size
        return (height, width) if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (width, height)
    except Exception as error:
        raise InputError(f"{name} cannot be read as an image ({error}): mend or remove it") from error


def alpha_channel(encoded, name):
    """Encoded bytes of a picture that `decode` takes -> how opaque it is, a grey PIL image, upright; None where all of it is."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
        return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A") if image.has_transparency_data else None
    except Exception as error:
        raise InputError(f"{name} cannot be read as an image ({error}): mend or remove it") from error


def to_rgb(image):
    """Any PIL image -> RGB, as decode has it. ValueError on pixels that no eight bits can hold."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # convert() would clip at 255 and turn the picture white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def read_encoded(file, row):
    """The bytes of an image as they are kept: a whole file, a member of a tar, or a cell of the `image` column of a table."""
    try:
        if row is None:
            return Path(file).read_bytes()
        mtime = Path(file).stat().st_mtime_ns
        if Path(file).suffix == ".tar":
            return _read_member(file, mtime, row)
        table, first = _rows(file, mtime, row)
        cell = table["image"][row - first].as_py()
    except (OSError, tarfile.TarError, pa.ArrowException, KeyError, IndexError) as error:
        remedy = "prepare the data again" if row is not None else "bring it back or prepare the data again"
        raise InputError(f"{locate(file, row)} cannot be read ({error}): {remedy}") from error
    return (cell["bytes"] if isinstance(cell, dict) else cell) or b""


# ----- archives

def _read_member(file, mtime, row):
    _, offset, size = tar_members(file, mtime)[0][row]
    with open(file, "rb") as stream:
        stream.seek(offset)
        return stream.read(min(size, Path(file).stat().st_size))  # the size is what the archive claims


@lru_cache(maxsize=64)
def tar_members(file, mtime):
    """-> ((name, offset, size) of each regular file in an uncompressed tar, in order), and why the list ends early, or None."""
    found = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isreg() and member.sparse is None:
                    found.append((member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        return tuple(found), str(error)
    return tuple(found), None


# ----- tables

def _rows(file, mtime, row):
    """-> the piece of the table that holds `row`, and the number of its first row."""
    if Path(file).suffix == ".arrow":
        return arrow_table(file, mtime), 0
    start = 0
    for group, length in enumerate(_group_lengths(file, mtime)):
        if row < start + length:
            return _row_group(file, mtime, group), start
        start += length
    raise IndexError(f"it has {start} rows")


@lru_cache(maxsize=64)
def _group_lengths(file, mtime):
    about = parquet_file(file).metadata
    return [about.row_group(g).num_rows for g in range(about.num_row_groups)]


@lru_cache(maxsize=4)
def _row_group(file, mtime, group):
    return parquet_file(file).read_row_group(group, columns=["image"])


@lru_cache(maxsize=64)
def arrow_table(file, mtime):
    """An Arrow stream as Hugging Face datasets writes it, mapped, not read."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
