"""The training images as an index: each picture once, with its copies, and exact search for the nearest."""
from dataclasses import dataclass

import numpy as np

from rotescope.datasets.records import Example
from rotescope.errors import InputError
from rotescope.evaluate.descriptors import Descriptor

BLOCK = 4096


@dataclass(frozen=True)
class Index:
    """m pictures that differ in their bytes."""
    descriptor: Descriptor
    examples: tuple[Example, ...]  # the first of each picture
    copies: np.ndarray             # (m,) how often an epoch shows the picture, over all its entries in the manifest
    rows: dict[str, int]           # image_id -> row, exact duplicates included
    vectors: np.ndarray            # (m, d) float32

    def __len__(self):
        return len(self.examples)


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


def build_index(manifest, descriptor, on_image=None):
    """Manifest -> Index; pictures with the same bytes are one, their copies added up. InputError if there are none."""
    examples, copies, rows = unique(manifest)
    if not examples:
        raise InputError("the training data hold no images: name data with at least two")
    return Index(descriptor, examples, copies, rows, embed([e.open for e in examples], descriptor, on_image=on_image)[0])


def embed(openers, descriptor, aligner=None, on_image=None):
    """n functions that open an image -> descriptors (n, d), and features (n, f) by the aligner; few in memory at a time."""
    vectors, features = [np.zeros((0, descriptor.dim), np.float32)], []
    for chunk in batches(openers, 64):
        images = [open_one() for open_one in chunk]
        vectors.append(descriptor(images))
        features.append(aligner.images(images) if aligner else np.zeros((len(images), 0), np.float32))
        for _ in images if on_image else ():
            on_image()
    return np.concatenate(vectors), np.concatenate(features) if features else np.zeros((0, 0), np.float32)


def batches(items, size):
    """A list in pieces of `size`."""
    return (items[i:i + size] for i in range(0, len(items), size))


def nearest(query, reference, k=1, block=BLOCK, skip_own_row=False):
    """Exact cosine search -> similarity (n, k) descending and row (n, k); equal ones in order of row.

    Memory is one block × block product, whatever n and m. With skip_own_row, query i never answers with row i.
    """
    n, k = len(query), min(k, len(reference) - skip_own_row)
    similarity, row = np.full((n, k), -np.inf, np.float32), np.zeros((n, k), np.int64)
    for i in range(0, n, block):
        for j in range(0, len(reference), block):
            part = slice(i, min(i + block, n))
            product = np.asarray(query[part], np.float32) @ np.asarray(reference[j:j + block], np.float32).T
            if skip_own_row:
                _blank_own(product, i - j)
            rows = np.broadcast_to(np.arange(j, j + product.shape[1]), product.shape)
            similarity[part], row[part] = _best(np.hstack([similarity[part], product]), np.hstack([row[part], rows]), k)
    return np.clip(similarity, -1, 1), row


def _blank_own(product, shift):
    """Line l of the product is column l + shift, if it is in this block."""
    lines = np.arange(max(0, -shift), min(product.shape[0], product.shape[1] - shift))
    product[lines, lines + shift] = -np.inf


def _best(similarity, row, k):
    """The k highest of each line, in order."""
    order = similarity.argmax(1)[:, None] if k == 1 else np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(row, order, 1)


def nearest_other(reference, block=BLOCK):
    """Each picture's similarity (m,) to the nearest other one: what training images resemble each other by nature."""
    if len(reference) < 2:
        return np.zeros(0, np.float32)
    return nearest(reference, reference, block=block, skip_own_row=True)[0][:, 0]
