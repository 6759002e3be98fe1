"""Descriptors on disk, embedded once and known by content.

    index.json       whose descriptors: their name and number of dimensions
    vectors.f16      m × d float16, row after row; read as a memory map
    keys.bin         32 bytes a row: the SHA-256 of the encoded image
    images.parquet   what the rows of training images are: ids, captions, SHA-256, copies, row
    queries/         the same for pictures that are compared with them

Both files only ever grow, the vectors first. So whatever was cut short, the rows that both of them hold are whole.
"""
import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rotescope.errors import InputError
from rotescope.runs import write_json

CHUNK = 64  # images that are embedded, and then safe, at a time
KEY = 32    # bytes
IMAGES = pa.schema([("image_ids", pa.list_(pa.string())), ("captions", pa.list_(pa.string())), ("sha256", pa.string()),
                    ("copies", pa.int64()), ("row", pa.int64())], metadata={"rotescope": "index 1"})


class Rows:
    """Some rows of a memory map as a float32 matrix that is read where it is sliced."""

    def __init__(self, array, rows):
        self.array, self.rows = array, np.asarray(rows, np.int64)
        self.shape, self.in_order = (len(self.rows), array.shape[1]), np.array_equal(self.rows, np.arange(len(self.rows)))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, at):
        return np.asarray(self.array[at] if self.in_order else self.array[self.rows[at]], np.float32)


class Memory:
    """The same for one run, in memory."""

    def __init__(self):
        self.vector_of = {}

    def embed(self, shas, openers, descriptor, on_image=None):
        """-> (n, d) float32; each picture is opened once, however often it is asked for."""
        new = list({sha: opener for sha, opener in zip(shas, openers, strict=True) if sha not in self.vector_of}.items())
        for part in (new[i:i + CHUNK] for i in range(0, len(new), CHUNK)):
            self.vector_of |= zip([sha for sha, _ in part], descriptor([opener() for _, opener in part]), strict=True)
            for _ in part if on_image else ():
                on_image()
        for _ in range(len(shas) - len(new) if on_image else 0):
            on_image()
        return np.stack([self.vector_of[sha] for sha in shas]) if shas else np.zeros((0, descriptor.dim), np.float32)


class Store:
    """A folder of descriptors of one kind. InputError if it holds another kind, or another run is adding to it."""

    def __init__(self, folder, name, dim):
        self.folder, self.name, self.dim = Path(folder), name, dim
        self.folder.mkdir(parents=True, exist_ok=True)
        self.vectors_file, self.keys_file = self.folder / "vectors.f16", self.folder / "keys.bin"
        self._check()
        self._read()

    def _check(self):
        wanted = {"descriptor": self.name, "dim": self.dim}
        if not (self.folder / "index.json").exists():
            if any(p.name != "queries" for p in self.folder.iterdir()):
                raise InputError(f"{self.folder} is no index, and not empty: name another folder")
            write_json(self.folder / "index.json", wanted)
        found = read_about(self.folder)
        if found != wanted:
            raise InputError(f"the index {self.folder} holds descriptors by {found.get('descriptor')}, not {self.name}: "
                             "name another folder, or that descriptor")

    def _read(self):
        """-> how many rows are whole."""
        keys = self.keys_file.read_bytes() if self.keys_file.exists() else b""
        vectors = self.vectors_file.stat().st_size if self.vectors_file.exists() else 0
        whole = min(vectors // (2 * self.dim), len(keys) // KEY)
        self.row_of = {keys[i * KEY:(i + 1) * KEY]: i for i in range(whole)}
        return whole

    @contextmanager
    def _growing(self):
        """Alone, and without what an earlier run left half-written."""
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another run is adding to the index {self.folder}: wait for it, or name another") from error
            whole = self._read()
            for file, width in ((self.vectors_file, 2 * self.dim), (self.keys_file, KEY)):
                file.touch()
                os.truncate(file, whole * width)
            yield

    def __len__(self):
        return len(self.row_of)

    @property
    def vectors(self):
        """(m, d) float16, mapped, not read."""
        if not self.row_of:
            return np.zeros((0, self.dim), np.float16)
        return np.memmap(self.vectors_file, np.float16, "r", shape=(len(self), self.dim))

    def _add(self, keys, vectors):
        """keys: n × 32 bytes, none of them here yet; vectors (n, d)."""
        for file, data in ((self.vectors_file, np.asarray(vectors, np.float16).tobytes()), (self.keys_file, b"".join(keys))):
            with file.open("ab") as stream:
                stream.write(data)
        self.row_of |= {key: len(self.row_of) + i for i, key in enumerate(keys)}

    def embed(self, shas, openers, descriptor, on_image=None):
        """shas: hexadecimal SHA-256 of each picture; openers: what opens it, called only for what is new -> Rows, in order."""
        keys = [bytes.fromhex(sha) for sha in shas]
        with self._growing():
            new = list({key: i for i, key in enumerate(keys) if key not in self.row_of}.values())
            for _ in range(len(keys) - len(new) if on_image else 0):
                on_image()
            for part in (new[i:i + CHUNK] for i in range(0, len(new), CHUNK)):
                self._add([keys[i] for i in part], descriptor([openers[i]() for i in part]))
                for _ in part if on_image else ():
                    on_image()
        return Rows(self.vectors, [self.row_of[key] for key in keys])

    def describe(self, examples, copies, rows_of_ids):
        """Write images.parquet: what the rows of an index are; rows_of_ids: {image_id: position in `examples`}."""
        ids = [[] for _ in examples]
        for image_id, position in rows_of_ids.items():
            ids[position].append(image_id)
        self._write_images([
            {"image_ids": ids[i], "captions": list(e.captions), "sha256": e.sha256, "copies": int(copies[i]),
             "row": self.row_of[bytes.fromhex(e.sha256)]} for i, e in enumerate(examples)])

    def images(self):
        file = self.folder / "images.parquet"
        return pq.read_table(file).to_pylist() if file.exists() else []

    def _write_images(self, rows):
        draft = self.folder / ".images.parquet.part"
        pq.write_table(pa.Table.from_pylist(rows, IMAGES), draft, compression="zstd")
        draft.replace(self.folder / "images.parquet")


def read_about(folder):
    """index.json of an index -> {descriptor, dim}; InputError if there is none."""
    try:
        return json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no index ({error}): name a folder that rotescope index wrote") from error


def merge(shards, folder):
    """Indexes of parts of a data set -> one Store in `folder`: each picture once, its copies added up. A part that was merged
    before adds nothing. InputError unless they are all of one descriptor.
    """
    about = read_about(shards[0])
    merged = Store(folder, about["descriptor"], about["dim"])
    parts = [Store(shard, merged.name, merged.dim) for shard in shards]  # all checked before any is copied
    images = {row["sha256"]: row for row in merged.images()}
    with merged._growing():
        for part in parts:
            new = [(key, row) for key, row in part.row_of.items() if key not in merged.row_of]
            for some in (new[i:i + 65536] for i in range(0, len(new), 65536)):
                merged._add([key for key, _ in some], part.vectors[[row for _, row in some]])
            for row in part.images():
                known = images.setdefault(row["sha256"], row | {"image_ids": [], "copies": 0})
                new_ids = [i for i in row["image_ids"] if i not in known["image_ids"]]
                known["image_ids"] += new_ids
                known["copies"] += row["copies"] if new_ids else 0  # else it was merged before
    merged._write_images([row | {"row": merged.row_of[bytes.fromhex(sha)]} for sha, row in images.items()])
    return merged
