"""Example and Manifest: which images a model is trained on, under which captions, how often, each known by its content."""
import hashlib
import io
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from rotescope.errors import InputError

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
SCHEMA = pa.schema([
    ("image_id", pa.string()), ("captions", pa.list_(pa.string())), ("file", pa.string()), ("row", pa.int64()),
    ("sha256", pa.string()), ("copies", pa.int64()), ("group", pa.string()), ("served", pa.int64()),
], metadata={"rotescope": "manifest 1"})


@dataclass(frozen=True)
class Example:
    """One training image. Copies are a number, not files."""
    image_id: str               # first 16 hex digits of sha256; a second image of the same bytes gets "-2", a third "-3"
    captions: tuple[str, ...]   # copy number j is shown under captions[j % len(captions)]
    file: str                   # image file, or the Parquet or Arrow file that holds it
    row: int | None             # row in that file; None for an image file
    sha256: str                 # of the encoded bytes
    copies: int = 1             # how often an epoch shows it
    group: str = ""             # "duplicated" | "control" | ""; set by the duplication plan
    served: int = 0             # how often training did show it; set by train/

    @property
    def name(self):
        return self.file if self.row is None else f"row {self.row} of {self.file}"

    def open(self):
        """-> PIL image, RGB, turned upright as its EXIF says, loaded. InputError if it is gone, broken or another one."""
        encoded = read_encoded(self.file, self.row)
        if hashlib.sha256(encoded).hexdigest() != self.sha256:
            raise InputError(f"{self.name} has changed since the manifest was made: prepare the data again")
        return decode(encoded, self.name)


def decode(encoded, name):
    """Encoded bytes -> RGB PIL image, upright, loaded; `name` is what an InputError calls it."""
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise half a dozen kinds
        raise InputError(f"{name} cannot be read as an image ({error}): mend or remove it") from error


def read_encoded(file, row):
    """The bytes of an image as they are kept: a whole file, or a cell of the `image` column of a table."""
    try:
        if row is None:
            return Path(file).read_bytes()
        table, first = _rows(file, Path(file).stat().st_mtime_ns, row)
        cell = table["image"][row - first].as_py()
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise InputError(f"row {row} of {file} cannot be read ({error}): prepare the data again" if row is not None else
                         f"{file} cannot be read ({error}): bring it back or prepare the data again") from error
    return cell["bytes"] if isinstance(cell, dict) else cell


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
    about = pq.ParquetFile(file).metadata
    return [about.row_group(g).num_rows for g in range(about.num_row_groups)]


@lru_cache(maxsize=4)
def _row_group(file, mtime, group):
    return pq.ParquetFile(file).read_row_group(group, columns=["image"])


@lru_cache(maxsize=64)
def arrow_table(file, mtime):
    """An Arrow stream as Hugging Face datasets writes it, mapped, not read."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


@dataclass(frozen=True)
class Manifest:
    """The examples of a data set, in order. Its hash tells ids, captions and copies, whatever the folder they lie in."""
    examples: tuple[Example, ...]

    def __len__(self):
        return len(self.examples)

    def __iter__(self):
        return iter(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    @property
    def copies(self):
        """Images that an epoch shows, copies counted."""
        return sum(e.copies for e in self)

    @property
    def hash(self):
        lines = (f"{e.image_id}\t{e.copies}\t{'|'.join(e.captions)}\n" for e in self)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def captions(self, group=None):
        """Every caption once, in order of first use; of one group if named."""
        return list(dict.fromkeys(c for e in self if group in (None, e.group) for c in e.captions))

    def group(self, name):
        return tuple(e for e in self if e.group == name)

    def with_served(self, served):
        """The same manifest with the count of times that each image was shown."""
        return Manifest(tuple(replace(e, served=int(n)) for e, n in zip(self, served, strict=True)))

    def save(self, file):
        pq.write_table(pa.Table.from_pylist([asdict(e) for e in self], schema=SCHEMA), file, compression="zstd")

    @classmethod
    def load(cls, file):
        """Raises InputError if it is no manifest. A relative file name in it counts from its own folder."""
        try:
            table = pq.read_table(file)
            rows = table.select([f.name for f in fields(Example) if f.name in table.column_names]).to_pylist()
            return cls(tuple(Example(**r | {"captions": tuple(r["captions"]), "file": str(Path(file).parent / r["file"])})
                             for r in rows))
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise InputError(f"{file} cannot be read as a manifest ({error}): make it with rotescope prepare") from error


def identify(found):
    """[(captions, file, row, sha256)] -> Manifest: ids from content, a suffix for each further image of the same bytes."""
    seen, examples = {}, []
    for captions, file, row, sha in found:
        seen[sha] = seen.get(sha, 0) + 1
        suffix = f"-{seen[sha]}" if seen[sha] > 1 else ""
        examples.append(Example(sha[:16] + suffix, tuple(captions), str(Path(file).absolute()), row, sha))
    return Manifest(tuple(examples))
