"""Example and Manifest: which images a model is trained on, under which captions, how often, each known by its content."""
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.parquet import read_table, write_table
from rotescope.datasets.images.image_bytes import decode, locate, read_encoded, upright_size

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("captions", pa.list_(pa.string())), ("file", pa.string()), ("row", pa.int64()),
    ("sha256", pa.string()), ("copies", pa.int64()), ("group", pa.string()), ("served", pa.int64()),
    ("matched", pa.string()), ("note", pa.string()),
], metadata={"rotescope": "manifest 1"})
FRACTIONS = 1_000_000   # the largest denominator of a number of copies: what a trainer's configuration writes is well below


@dataclass(frozen=True)
class Example:
    """One training image. Copies are a number, not files."""
    image_id: str               # first 16 hex digits of sha256; a second image of the same bytes gets "-2", a third "-3"
    captions: tuple[str, ...]   # copy number j is shown under captions[j % len(captions)]
    file: str                   # image file, or the Parquet, Arrow or tar file that holds it
    row: int | None             # row in that table, or place among that archive's files; None for an image file
    sha256: str                 # of the encoded bytes
    copies: int | float = 1     # how often an epoch shows it; a fraction is exact over the epochs: 1.5 is 3 times in two
    group: str = ""             # "duplicated" | "control" | ""; set by the duplication plan, or by copies that differ
    served: int = 0             # how often training did show it; set by train/
    matched: str = ""           # a control's: image_id of the duplicated image that it was chosen to resemble
    note: str = ""              # what a trainer's configuration says of it beside, such as that its tags are shuffled

    @property
    def name(self) -> str:
        """Where it lies, in words; bytes of a file name that are no text as escapes."""
        return locate(self.file, self.row)

    def open(self) -> Image.Image:
        """-> PIL image, RGB, turned upright as its EXIF says, loaded. InputError if it is gone, broken or another one."""
        return decode(self.encoded(), self.name)

    def encoded(self) -> bytes:
        """-> its bytes, as they are kept. InputError if it is gone or another one."""
        encoded = read_encoded(self.file, self.row)
        if hashlib.sha256(encoded).hexdigest() != self.sha256:
            raise InputError(f"{self.name} has changed since the manifest was made: prepare the data again")
        return encoded

    def size(self) -> tuple[int, int]:
        """-> width and height in pixels, turned upright as `open` turns it; its pixels are not read."""
        return upright_size(self.encoded(), self.name)


FIELDS = {   # what a manifest holds, in words, and whether a value is that: anyone may have edited the table
    "image_id": ("text", lambda v: isinstance(v, str) and v),
    "captions": ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(c, str) and c.strip() for c in v)),
    "file": ("a file's name", lambda v: isinstance(v, str) and v and "\0" not in v),
    "row": ("a row's number or nothing", lambda v: v is None or type(v) is int and v >= 0),
    "sha256": ("64 hex digits", lambda v: isinstance(v, str) and len(v) == 64),
    "copies": ("a number above 0 (leave out the rows of images that are not to be shown)",
               lambda v: type(v) in (int, float) and 0 < v < float("inf")),
    "group": ("text", lambda v: isinstance(v, str)),
    "served": ("a whole number", lambda v: type(v) is int and v >= 0),
    "matched": ("text", lambda v: isinstance(v, str)),
    "note": ("text", lambda v: isinstance(v, str)),
}


def exact_copies(copies: int | float) -> Fraction:
    """A number of copies as the fraction that it was written as: 0.1 is 1/10, 3.3333333333333335 is 10/3."""
    return Fraction(copies).limit_denominator(FRACTIONS)


def plain_copies(copies: Fraction | int | float) -> int | float:
    """A number of copies as a manifest holds it: whole where it is."""
    return int(copies) if copies == int(copies) else float(copies)


def _example(row, name, folder):
    """A manifest's row, as read -> Example; InputError that names the row and what is wrong with it."""
    found = {"row": None, "copies": 1, "group": "", "served": 0, "matched": "", "note": "",
             **{key: v for key, v in row.items() if v is not None or key == "copies"}}
    for key, (wanted, fits) in FIELDS.items():
        if not fits(found.get(key)):
            raise InputError(f"{name}, a manifest, has {key} {found.get(key)!r} and should have {wanted}: prepare it again")
    return Example(**found | {"captions": tuple(found["captions"]), "file": _restored(found["file"], folder),
                              "copies": plain_copies(found["copies"])})


def _stored(name):
    """A file name as text for a table: one that is no UTF-8 as a file: URI."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(name))


def _restored(name, folder):
    return os.fsdecode(unquote_to_bytes(name[7:])) if name.startswith("file:///") else str(folder / name)


@dataclass(frozen=True)
class Manifest:
    """The examples of a data set, in order. Its hash tells ids, captions, copies and groups, whatever the folder they lie in."""
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    @property
    def copies(self) -> int | float:
        """Images that an epoch shows, copies counted."""
        return plain_copies(sum(c if isinstance(c, int) else exact_copies(c) for c in (e.copies for e in self)))

    @property
    def hash(self) -> str:
        """SHA-256 over ids, copies, captions and groups, in order."""
        lines = (f"{e.image_id}\t{e.copies}\t{'|'.join(map(line_safe, e.captions))}{_grouped(e)}\n" for e in self)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def captions(self, group: str | None = None) -> list[str]:
        """Every caption once, in order of first use; of one group if named."""
        return list(dict.fromkeys(c for e in self if group in (None, e.group) for c in e.captions))

    def group(self, name: str) -> tuple[Example, ...]:
        """The examples that a plan has put into a group: duplicated or control."""
        return tuple(e for e in self if e.group == name)

    def with_served(self, served: Sequence[int]) -> "Manifest":
        """The same manifest with the count of times that each image was shown."""
        return Manifest(tuple(replace(e, served=int(n)) for e, n in zip(self, served, strict=True)))

    def save(self, file: str | Path) -> None:
        """Write a Parquet table that names the images where they lie."""
        rows = [asdict(e) | {"file": _stored(e.file)} for e in self]
        number = SCHEMA.get_field_index("copies")
        schema = SCHEMA if all(isinstance(e.copies, int) for e in self) else SCHEMA.set(number, pa.field("copies", pa.float64()))
        write_table(pa.Table.from_pylist(rows, schema=schema), file)

    @classmethod
    def load(cls, file: str | Path) -> "Manifest":
        """Raises InputError if it is no manifest. A relative file name in it counts from its own folder."""
        try:
            table = read_table(file)
            rows = table.select([name for name in FIELDS if name in table.column_names]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file} cannot be read as a manifest ({error}): make it with rotescope prepare") from error
        return cls(tuple(_example(row, locate(file, number), Path(file).parent) for number, row in enumerate(rows)))


def line_safe(text):
    """A text without the characters that part texts in a line to be hashed: each of them as an escape, so that no two are one."""
    return text.replace("\\", r"\\").replace("|", r"\|").replace("\t", r"\t").replace("\n", r"\n")


def _grouped(example):
    """The end of its line; nothing where there is no group."""
    return "".join(f"\t{line_safe(name)}" for name in (example.group, example.matched)) if example.group else ""


def identify(found):
    """[(captions, file, row, sha256)] -> Manifest: ids from content, a suffix for each further image of the same bytes."""
    seen, examples = {}, []
    for captions, file, row, sha in found:
        seen[sha] = seen.get(sha, 0) + 1
        suffix = f"-{seen[sha]}" if seen[sha] > 1 else ""
        examples.append(Example(sha[:16] + suffix, tuple(captions), str(Path(file).absolute()), row, sha))
    return Manifest(tuple(examples))
