"""Local features of the training pictures, extracted once and known by content: in memory, or in a folder.

    features.json      how they were extracted
    descriptors.u8     128 bytes a feature; read as a memory map, as are the two files that follow
    places.f32         x, y, scale and angle of each feature
    thumbnails.u8      64 × 64 × 3 bytes a picture
    pictures.bin       of each picture: the SHA-256 of its encoded bytes, its number of features, its size
    words.u16          which word each feature counts as (feature_votes.py): made anew for other pictures

The other files only ever grow, pictures.bin last. So whatever was cut short, the pictures that all of them
hold are whole.
"""
import fcntl
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_kept
from rotescope.datasets.geometry.local_features import (
    CONTRAST,
    DIM,
    SIDE,
    THUMBNAIL,
    TRAINING_MOST,
    LocalFeatures,
    local_features,
)

Opener = Callable[[], Image.Image]
CHUNK = 64   # pictures whose features are extracted, and then safe, at a time
RECORD = np.dtype([("key", "V32"), ("features", "<u4"), ("width", "<u4"), ("height", "<u4")])
HOW = {"features": "RootSIFT", "side": SIDE, "most": TRAINING_MOST, "contrast": CONTRAST,
       "thumbnail": THUMBNAIL, "version": 1}
WIDTHS = {"descriptors.u8": DIM, "places.f32": 16, "thumbnails.u8": 3 * THUMBNAIL ** 2}  # bytes


class KeptFeatures:
    """The features of m training pictures, in order: `kept[row]` reads those of one."""

    def __init__(self, descriptors, places, thumbnails, records, rows):
        """descriptors (F, 128) uint8, places (F, 4) float32, thumbnails (M, 64, 64, 3) uint8, records (M,):
        arrays or memory maps; rows (m,): which of the M are meant, and in which order."""
        self._descriptors, self._places = descriptors, places
        self._thumbnails, self._records = thumbnails, records
        self._rows, ends = np.asarray(rows, np.int64), np.cumsum(records["features"], dtype=np.int64)
        self._starts = (ends - records["features"])[self._rows]
        self.counts = records["features"][self._rows].astype(np.int64)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, row) -> LocalFeatures:
        places, (width, height) = self.places(row), self.size(row)
        return LocalFeatures(places[:, :2], places[:, 2], places[:, 3], self.descriptors(row),
                             (int(width), int(height)), self.thumbnail(row))

    def descriptors(self, row) -> np.ndarray:
        """-> (n, 128) uint8."""
        return np.array(self._descriptors[self._at(row)])

    def places(self, row) -> np.ndarray:
        """-> (n, 4) float32: x, y, scale and angle of each."""
        return np.array(self._places[self._at(row)])

    def size(self, row) -> np.ndarray:
        """-> (2,) float32: width and height as the picture was taken."""
        record = self._records[self._rows[row]]
        return np.array((record["width"], record["height"]), np.float32)

    def thumbnail(self, row) -> np.ndarray:
        """-> (64, 64, 3) uint8."""
        return np.array(self._thumbnails[self._rows[row]])

    def _at(self, row):
        return slice(self._starts[row], self._starts[row] + self.counts[row])


def _extracted(openers, tick):
    """Yields the LocalFeatures of each picture; several are extracted at a time."""
    with ThreadPoolExecutor() as threads:
        for features in threads.map(lambda opener: local_features(opener()), openers):
            tick()
            yield features


class FeatureMemory:
    """The same for one run, in memory."""

    def keep(self, shas: Sequence[str], openers: Sequence[Opener], on_image=None) -> KeptFeatures:
        """shas: hexadecimal SHA-256 of each picture; openers: what opens it. Each picture is opened once."""
        position = {sha: i for i, sha in reversed(list(enumerate(shas)))}
        row_of = {sha: row for row, sha in enumerate(dict.fromkeys(shas))}
        found = list(_extracted([openers[position[sha]] for sha in row_of], on_image or (lambda: None)))
        for _ in range(len(shas) - len(row_of) if on_image else 0):
            on_image()
        descriptors, places, thumbnails, records = _arrays(found, [bytes.fromhex(sha) for sha in row_of])
        return KeptFeatures(descriptors, places, thumbnails, records, [row_of[sha] for sha in shas])


class FeatureStore:
    """A folder of local features. InputError if it holds something else, or another run is adding to it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        check_kept(self.folder, "features.json", HOW, "local features", "extracted", beside=(".lock",))

    def _sizes(self):
        """-> {file: how many features or pictures it holds}."""
        found = {}
        for name, width in (WIDTHS | {"pictures.bin": RECORD.itemsize}).items():
            file = self.folder / name
            found[name] = file.stat().st_size // width if file.exists() else 0
        return found

    def _records(self):
        """-> the records of the pictures that are whole."""
        sizes, file = self._sizes(), self.folder / "pictures.bin"
        n = sizes["pictures.bin"]
        records = np.fromfile(file, RECORD, n) if n else np.zeros(0, RECORD)
        ends = np.cumsum(records["features"], dtype=np.int64)
        held = min(sizes["descriptors.u8"], sizes["places.f32"])
        whole = min(int(np.searchsorted(ends, held, "right")), sizes["thumbnails.u8"])
        if len({key.tobytes() for key in records["key"][:whole]}) < whole:
            raise InputError(f"{file} names a picture twice, so it is damaged: remove {self.folder}, and it "
                             "is made again")
        return records[:whole]

    @contextmanager
    def _growing(self):
        """Alone, and without what an earlier run left half-written."""
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another run is adding to {self.folder}: wait for it, or name another "
                                 "folder") from error
            records = self._records()
            features, pictures = int(records["features"].sum(dtype=np.int64)), len(records)
            for name, width in WIDTHS.items():
                (self.folder / name).touch()
                os.truncate(self.folder / name, width * (pictures if name == "thumbnails.u8" else features))
            (self.folder / "pictures.bin").touch()
            os.truncate(self.folder / "pictures.bin", RECORD.itemsize * pictures)
            yield

    def keep(self, shas, openers, on_image=None) -> KeptFeatures:
        """As FeatureMemory.keep; what lies in the folder already is not opened."""
        keys, tick = [bytes.fromhex(sha) for sha in shas], on_image or (lambda: None)
        position = {key: i for i, key in reversed(list(enumerate(keys)))}
        new = self._lacking(keys)
        if new:  # else there is nothing to add: a reader is in nobody's way
            with self._growing():
                new = self._lacking(keys)
                for part in (new[i:i + CHUNK] for i in range(0, len(new), CHUNK)):
                    self._add(_arrays(list(_extracted([openers[position[key]] for key in part], tick)), part))
        for _ in range(len(keys) - len(new)):
            tick()
        return self._kept(keys)

    def _lacking(self, keys):
        """-> those of the keys that are not here, each once, in order."""
        known = {key.tobytes() for key in self._records()["key"]}
        return [key for key in dict.fromkeys(keys) if key not in known]

    def _add(self, arrays):
        for name, array in zip((*WIDTHS, "pictures.bin"), arrays, strict=True):
            with (self.folder / name).open("ab") as stream:
                stream.write(array.tobytes())

    def _kept(self, keys):
        records = self._records()
        row_of = {key.tobytes(): row for row, key in enumerate(records["key"])}
        features = int(records["features"].sum(dtype=np.int64))
        return KeptFeatures(_mapped(self.folder / "descriptors.u8", np.uint8, (features, DIM)),
                            _mapped(self.folder / "places.f32", np.float32, (features, 4)),
                            _mapped(self.folder / "thumbnails.u8", np.uint8,
                                    (len(records), THUMBNAIL, THUMBNAIL, 3)),
                            records, [row_of[key] for key in keys])


def _mapped(file, dtype, shape):
    return np.memmap(file, dtype, "r", shape=shape) if shape[0] else np.zeros(shape, dtype)


def _arrays(found, keys):
    """Features and keys of some pictures -> descriptors, places, thumbnails, records."""
    records = np.zeros(len(found), RECORD)
    for record, one, key in zip(records, found, keys, strict=True):
        record["key"], record["features"], (record["width"], record["height"]) = key, len(one), one.size
    places = [np.concatenate([f.places, f.scales[:, None], f.angles[:, None]], 1) for f in found]
    return (np.concatenate([np.zeros((0, DIM), np.uint8), *(f.descriptors for f in found)]),
            np.concatenate([np.zeros((0, 4), np.float32), *places]).astype(np.float32),
            np.array([f.thumbnail for f in found], np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3), records)
