"""Training pictures as small as they are compared, kept in a folder and known by content: large ones are decoded once.

    small.json     how they were made small
    pictures.bin   of each picture: the SHA-256 of its encoded bytes, its width and height, and 64 × 64 × 3 bytes that hold its
                   pixels first. It only ever grows; a record that was cut short does not count, and is written again.
"""
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rotescope.common.outputs import check_kept
from rotescope.common.processes import alone_in
from rotescope.datasets.geometry.structure import FINE, small_picture

CHUNK = 64   # pictures that are made small, and then safe, at a time
RECORD = np.dtype([("key", "V32"), ("size", "u1", 2), ("pixels", "u1", 3 * FINE ** 2)])
HOW = {"pictures": "small", "side": FINE, "version": 1}

Opener = Callable[[], Image.Image]


class SmallPictures:
    """A folder of small pictures. InputError if it holds something else."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._file = self.folder / "pictures.bin"
        check_kept(self.folder, "small.json", HOW, "small pictures", "made")

    def keep(self, shas: Sequence[str], openers: Sequence[Opener]) -> list[Opener]:
        """SHA-256 of each picture and what opens it -> what opens each small. What lies in the folder is not opened."""
        opener_of = dict(zip(shas, openers, strict=True))
        if self._lacking(opener_of):  # else there is nothing to add: a reader is in nobody's way
            with alone_in(self.folder), ThreadPoolExecutor() as threads:
                if self._file.exists():
                    os.truncate(self._file, len(self._records()) * RECORD.itemsize)
                lacking = self._lacking(opener_of)
                for i in range(0, len(lacking), CHUNK):
                    part = lacking[i:i + CHUNK]
                    small = list(threads.map(lambda sha: small_picture(opener_of[sha]()), part))
                    with self._file.open("ab") as stream:
                        stream.write(np.array([_record(sha, image) for sha, image in zip(part, small, strict=True)],
                                              RECORD).tobytes())
        records = self._records()
        row_of = {key.tobytes(): row for row, key in enumerate(records["key"])}
        return [partial(_opened, records, row_of[bytes.fromhex(sha)]) for sha in shas]

    def _lacking(self, shas):
        """-> those that are not here, each once, in order."""
        known = {key.tobytes() for key in self._records()["key"]}
        return [sha for sha in dict.fromkeys(shas) if bytes.fromhex(sha) not in known]

    def _records(self):
        """-> those that are whole, as a memory map."""
        n = self._file.stat().st_size // RECORD.itemsize if self._file.exists() else 0
        return np.memmap(self._file, RECORD, "r", shape=(n,)) if n else np.zeros(0, RECORD)


def _record(sha, image):
    record, pixels = np.zeros((), RECORD), np.asarray(image)
    record["key"], record["size"] = bytes.fromhex(sha), image.size
    record["pixels"][:pixels.size] = pixels.ravel()
    return record


def _opened(records, row):
    width, height = map(int, records["size"][row])
    pixels = np.array(records["pixels"][row, :3 * width * height])
    return Image.fromarray(pixels.reshape(height, width, 3))
