"""Descriptors on disk, embedded once and known by content.

    index.json       whose descriptors: their name and number of dimensions
    vectors.f16      m × d float16, row after row; read as a memory map
    keys.bin         32 bytes a row: the SHA-256 of the encoded image
    queries/         the same for pictures that are compared with them

The vectors and the keys only ever grow, the vectors first. So whatever was cut short, the rows that both of
them hold are whole. A row whose vector is not of length 1, because a disk lost what it was given, is embedded
again in its place; so are, at each use, the few pictures whose descriptor is 0.
"""
import fcntl
import json
import os
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import write_json

CHUNK = 64  # images that are embedded, and then safe, at a time
KEY = 32    # bytes
BLOCK = 2048     # rows that are checked at a time
COPIED = 65536    # rows that go from one index to another at a time
ROUNDING = 0.01  # how far half precision takes a length from 1, and more


class MappedRows:
    """Some rows of a memory map as a float32 matrix that is read where it is sliced."""

    def __init__(self, array, rows):
        self.rows = np.asarray(rows, np.int64)
        self.shape, self.in_order = (len(self.rows), array.shape[1]), np.array_equal(self.rows, np.arange(len(self.rows)))
        self.array = array[:len(self.rows)] if self.in_order else array  # what lies behind is no row of these

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
    """A folder of descriptors of one kind. InputError if it holds another kind. Any number of runs read it while one adds to it;
    who has something to add, too, waits."""

    def __init__(self, folder, name, dim):
        self.folder, self.name, self.dim = Path(folder), name, dim
        self.folder.mkdir(parents=True, exist_ok=True)
        self.vectors_file, self.keys_file = self.folder / "vectors.f16", self.folder / "keys.bin"
        self._check()
        self._read()

    def _check(self):
        wanted = {"descriptor": self.name, "dim": self.dim}
        if not (self.folder / "index.json").exists():
            if any(p.name != "queries" and not p.name.startswith(".") for p in self.folder.iterdir()):
                raise InputError(f"{self.folder} is no index, and not empty: name another folder")
            self._found(wanted)
        found = read_about(self.folder)
        if any(found[key] != value for key, value in wanted.items()):
            raise InputError(f"the index {self.folder} holds descriptors by {found['descriptor']}, not {self.name}: "
                             "name another folder, or that descriptor")

    def _found(self, about):
        """index.json, whole; where another run has made one in between, that one stays."""
        draft = self.folder / f".{uuid.uuid4().hex}.part"
        write_json(draft, about)
        try:
            os.link(draft, self.folder / "index.json")
        except FileExistsError:
            pass
        except OSError:  # a disk without links
            draft.replace(self.folder / "index.json")
        draft.unlink(missing_ok=True)

    def _read(self):
        """-> how many rows are whole."""
        keys = self.keys_file.read_bytes() if self.keys_file.exists() else b""
        vectors = self.vectors_file.stat().st_size if self.vectors_file.exists() else 0
        whole = min(vectors // (2 * self.dim), len(keys) // KEY)
        self.row_of = {keys[i * KEY:(i + 1) * KEY]: i for i in range(whole)}
        if len(self.row_of) < whole:
            raise InputError(f"{self.keys_file} names a picture twice, so it is damaged: remove {self.folder}, and index again")
        return whole

    @contextmanager
    def _growing(self):
        """Alone, and without what an earlier run left half-written; waits for another run that is adding."""
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another run is adding to the index {self.folder}: this one waits for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
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

    def _mend(self, keys, vectors):
        """The same for keys that are here already."""
        stored = np.memmap(self.vectors_file, np.float16, "r+", shape=(len(self), self.dim))
        stored[[self.row_of[key] for key in keys]] = vectors
        stored.flush()

    def _damaged(self, keys):
        """-> those of the keys whose vector is not whole."""
        stored, rows = self.vectors, np.array([self.row_of[key] for key in keys], np.int64)
        lengths = [np.linalg.norm(np.asarray(stored[rows[i:i + BLOCK]], np.float32), axis=1) for i in range(0, len(rows), BLOCK)]
        wrong = ~(np.abs(np.concatenate([np.zeros(0), *lengths]) - 1) <= ROUNDING)  # of NaN, too
        return {key for key, one in zip(keys, wrong, strict=True) if one}

    def embed(self, shas, openers, descriptor, on_image=None):
        """shas: hexadecimal SHA-256 of each picture; openers: what opens it, called only for what is new.

        -> MappedRows, in order."""
        keys = [bytes.fromhex(sha) for sha in shas]
        position, tick = {key: i for i, key in enumerate(keys)}, on_image or (lambda: None)
        if self._read() and not any(self._lacking(position)):  # there is nothing to add: nobody is in the way of a reader
            for _ in keys if on_image else ():
                tick()
            return self._view(keys)
        with self._growing():
            new, damaged = self._lacking(position)
            for _ in range(len(keys) - len(new) - len(damaged)):
                tick()
            for todo, put in ((new, self._add), (damaged, self._mend)):
                for part in (todo[i:i + CHUNK] for i in range(0, len(todo), CHUNK)):
                    put(part, descriptor([openers[position[key]]() for key in part]))
                    for _ in part:
                        tick()
        return self._view(keys)

    def _lacking(self, keys):
        """-> those of the keys that are not here, and those whose vector is not whole, each in their order."""
        damaged = self._damaged([key for key in keys if key in self.row_of])
        return [key for key in keys if key not in self.row_of], [key for key in keys if key in damaged]

    def _view(self, keys):
        return MappedRows(self.vectors, [self.row_of[key] for key in keys])


def read_about(folder):
    """index.json of an index -> {descriptor, dim, …}; InputError if there is none."""
    try:
        about = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not {"descriptor", "dim"} <= about.keys():
            raise ValueError("index.json names no descriptor")
        return about
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no index ({error}): name a folder that rotescope index wrote") from error


def merge(shards, folder):
    """Indexes of parts of a data set -> one Store in `folder`: each picture once. InputError unless they are
    all of one descriptor."""
    about = read_about(shards[0])
    merged = Store(folder, about["descriptor"], about["dim"])
    parts = [Store(shard, merged.name, merged.dim) for shard in shards]  # all checked before any is copied
    with merged._growing():
        for part in parts:
            new = [(key, row) for key, row in part.row_of.items() if key not in merged.row_of]
            for some in (new[i:i + COPIED] for i in range(0, len(new), COPIED)):
                merged._add([key for key, _ in some], part.vectors[[row for _, row in some]])
    return merged
