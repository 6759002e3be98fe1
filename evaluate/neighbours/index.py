"""The training images as an index: each picture once, with its copies, and what is nearest among them."""
from dataclasses import dataclass, field

import numpy as np

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Example
from rotescope.evaluate.descriptors.descriptor import Descriptor
from rotescope.evaluate.neighbours.descriptor_store import CHUNK, MappedRows, Memory, Store
from rotescope.evaluate.neighbours.nearest import approximate, load_faiss, nearest
from rotescope.evaluate.options import check_engine_name


@dataclass(frozen=True)
class Index:
    """m pictures that differ in their bytes."""
    descriptor: Descriptor
    examples: tuple[Example, ...]  # the first of each picture
    copies: np.ndarray             # (m,) how often an epoch shows the picture, over all its entries in the manifest
    rows: dict[str, int]           # image_id -> row, exact duplicates included
    vectors: np.ndarray | MappedRows     # (m, d) float32, in memory or on disk
    engine: str = "exact"
    queries: Store | Memory = field(default_factory=Memory)  # keeps the descriptors of other pictures
    said: list[str] = field(default_factory=list)  # how good an approximate search was

    def __len__(self):
        return len(self.examples)

    def nearest(self, vectors):
        """(n, d) -> similarity (n,) and row (n,) of the nearest picture."""
        if self.engine == "exact" or not len(vectors):
            similarity, row = nearest(vectors, self.vectors)
        else:
            similarity, row, how_good = approximate(vectors, self.vectors)
            self.said.append(how_good)
            say(how_good)
        return similarity[:, 0], row[:, 0]

    def embed(self, pictures, on_image=None):
        """Other pictures, [(SHA-256, what opens it)] -> descriptors (n, d)."""
        return self.queries.embed([sha for sha, _ in pictures], [opener for _, opener in pictures], self.descriptor, on_image)


def unique(manifest):
    """Manifest -> the first example of each picture, how often an epoch shows it over all its entries, and {image_id: row}."""
    row_of, first, copies = {}, [], []
    for example in manifest:
        row = row_of.setdefault(example.sha256, len(first))
        if row == len(first):
            first.append(example)
            copies.append(0)
        copies[row] += example.copies
    return tuple(first), np.array(copies), {e.image_id: row_of[e.sha256] for e in manifest}


def check_engine(engine):
    """InputError if there is none of that name, or its package is not here."""
    check_engine_name(engine)
    if engine == "faiss":
        load_faiss()


def build_index(manifest, descriptor, on_image=None, folder=None, engine="exact"):
    """Manifest -> Index; pictures with the same bytes are one, their copies added up. InputError if there are none.

    folder: keeps the descriptors; what lies there already is not embedded again.
    """
    examples, copies, rows = unique(manifest)
    if not examples:
        raise InputError("the training data hold no images: name data with at least two")
    check_engine(engine)
    shas, openers = [e.sha256 for e in examples], [e.open for e in examples]
    if not folder:
        return Index(descriptor, examples, copies, rows, embed(openers, descriptor, on_image=on_image)[0], engine)
    store = Store(folder, descriptor.name, descriptor.dim)
    vectors = store.embed(shas, openers, descriptor, on_image)
    queries = Store(store.folder / "queries", descriptor.name, descriptor.dim)
    return Index(descriptor, examples, copies, rows, vectors, engine, queries)


def embed(openers, descriptor, aligner=None, on_image=None):
    """n functions that open an image -> descriptors (n, d), and features (n, f) by the aligner; few in memory at a time."""
    vectors = _in_chunks(openers, descriptor, on_image) if openers else np.zeros((0, descriptor.dim), np.float32)
    return vectors, features(openers, aligner)


def features(openers, aligner, on_image=None):
    """n functions that open an image -> (n, f) by the aligner's image tower; (0, 0) without an aligner."""
    return _in_chunks(openers, aligner.images, on_image) if aligner and openers else np.zeros((0, 0), np.float32)


def _in_chunks(openers, describe, on_image=None):
    found = []
    for chunk in (openers[i:i + CHUNK] for i in range(0, len(openers), CHUNK)):
        found.append(describe([open_one() for open_one in chunk]))
        for _ in chunk if on_image else ():
            on_image()
    return np.concatenate(found)
