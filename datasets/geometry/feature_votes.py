"""Which training pictures share local features with a picture, by votes of quantised features.

Some of the training features themselves serve as words, and each feature counts as its nearest word. A
picture asks for the pictures that hold its words, and a word counts by how few pictures hold it (Sivic and
Zisserman 2003): one sparse product answers for the whole training set. The pictures with most votes are then
ranked by how many of their votes agree in one shift, scale and angle (Lowe 2004, section 7.3). So a quarter
of a collage finds its picture, however much the rest of the collage looks like other pictures.
"""
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from rotescope.datasets.geometry.feature_store import KeptFeatures
from rotescope.datasets.geometry.local_features import DIM, LENGTH, LocalFeatures, feature_numbers
from rotescope.datasets.images.sampling import evenly_spread

WORDS = 8192
SHORTLIST = 150       # pictures with most votes whose features' places are compared
NEAREST = 8           # words that are kept of each feature of a generated picture
BIN, BIN_ANGLE = 80.0, 30   # pixels and degrees within which votes agree; the scales within a factor of 2
ASKED = (1.0, 0.6, 0.4)   # how much its nearest words count when it asks


@dataclass(frozen=True)
class NearWords:
    """Of n features: their nearest words, the nearest first. words: (n, k) int64; similarity: (n, k)
    float32."""
    words: np.ndarray
    similarity: np.ndarray


def unit_rows(descriptors: np.ndarray) -> np.ndarray:
    """(n, 128) uint8 of length 512 -> (n, 128) float32 of length 1."""
    return descriptors.astype(np.float32) / LENGTH


class FeatureVotes:
    """An inverted index of the training pictures. `words` (w, 128) float32 are a sample of their features,
    and `word_rows` (w,) says of which picture each is, so that they also show what other pictures hold."""

    def __init__(self, kept: KeptFeatures, file=None):
        """file: where the words of the features are kept for the next time, if anywhere."""
        self._kept = kept
        self.words, self.word_rows = _sample(kept)
        self._word_of = self._words_of_all(Path(file) if file else None)
        self._table = self._inverted(kept)

    def _words_of_all(self, file):
        """-> for each picture the nearest word of each of its features, (n,) uint16."""
        sizes = self._kept.counts
        key = sha256(self.words.tobytes() + self.word_rows.tobytes() + sizes.tobytes()).digest()
        data = file.read_bytes() if file and file.exists() else b""
        if data[:len(key)] == key and len(data) == len(key) + 2 * sizes.sum():
            words = np.frombuffer(data, np.uint16, offset=len(key))
            return [words[end - n:end] for n, end in zip(sizes, np.cumsum(sizes), strict=True)]
        found = [self._nearest(self._kept.descriptors(row)).astype(np.uint16) for row in range(len(sizes))]
        if file:
            part = file.with_suffix(".part")
            part.write_bytes(key + b"".join(words.tobytes() for words in found))
            os.replace(part, file)
        return found

    def _inverted(self, kept):
        """-> (words, m) CSR: in each picture's column √count · idf, over the root of the column's length."""
        words: list[np.ndarray] = [np.zeros(0, np.int32)]
        counts: list[np.ndarray] = [np.zeros(0, np.float32)]
        starts = [0]
        for row in range(len(kept)):
            held, count = np.unique(self._word_of[row], return_counts=True)
            words.append(held.astype(np.int32))
            counts.append(np.sqrt(count, dtype=np.float32))
            starts.append(starts[-1] + len(held))
        shape = (len(kept), len(self.words))
        filled = np.concatenate(counts), np.concatenate(words), np.array(starts)
        table = sparse.csr_array(filled, shape=shape)
        pictures = np.bincount(table.indices, minlength=shape[1])
        self._rarity = np.log((shape[0] + 1) / (pictures + 0.5)).clip(0).astype(np.float32)
        table = table @ sparse.diags_array(self._rarity)
        lengths = np.sqrt(np.maximum(np.asarray((table * table).sum(1)).ravel(), 1.0))
        return (sparse.diags_array(lengths ** -0.5) @ table).T.tocsr().astype(np.float32)

    def _nearest(self, descriptors):
        """(n, 128) uint8 -> (n,) the nearest word of each."""
        if not len(descriptors):
            return np.zeros(0, np.int64)
        return (unit_rows(descriptors) @ self.words.T).argmax(1)

    def near_words(self, descriptors: np.ndarray) -> NearWords:
        """(n, 128) uint8 -> the nearest words of each."""
        if not len(descriptors) or not len(self.words):
            none = np.zeros((len(descriptors), 0))
            return NearWords(none.astype(np.int64), none.astype(np.float32))
        similarity = torch.from_numpy(unit_rows(descriptors) @ self.words.T)
        found = similarity.topk(min(NEAREST, len(self.words)), dim=1)
        return NearWords(found.indices.numpy(), found.values.numpy())

    def votes(self, near: NearWords) -> np.ndarray:
        """-> (m,) float32: how much of what the features ask for each training picture holds."""
        asked = np.zeros(len(self.words), np.float32)
        for weight, words in zip(ASKED, near.words.T, strict=False):
            np.add.at(asked, words, np.float32(weight))
        held = np.flatnonzero(asked)
        if not len(held):
            return np.zeros(self._table.shape[1], np.float32)
        return (np.sqrt(asked[held]) * self._rarity[held]) @ self._table[held]

    def ranked(self, side: LocalFeatures, near: NearWords, without=()) -> tuple[np.ndarray, np.ndarray]:
        """-> rows of the pictures with most votes, none of `without`, and how much of their votes agrees in
        one shift, scale and angle (to which a hundredth of the votes is added)."""
        votes = self.votes(near)
        votes[list(without)] = 0
        rows = np.argsort(-votes, kind="stable")[:SHORTLIST]
        rows = rows[votes[rows] > 0]
        return rows, self._agreement(rows, side, near) + 0.01 * votes[rows]

    def _agreement(self, rows, side, near):
        """-> (rows,) float: of the features that share a word, the weight of those that lay the picture in
        one place."""
        if not len(rows):
            return np.zeros(0)
        which = np.repeat(np.arange(len(rows)), self._kept.counts[rows])
        theirs, ours, weight = self._shared(np.concatenate([self._word_of[row] for row in rows]), near)
        sizes = np.stack([self._kept.size(row) for row in rows])[which]
        held = np.concatenate([self._kept.places(row) for row in rows])
        held[:, :2] *= sizes
        at, rows_of = _laid_at(held[theirs], feature_numbers(side)[ours], sizes[theirs]), which[theirs]
        grids = [_fullest(rows_of, np.floor(at + shift), weight, len(rows)) for shift in (0.0, 0.5)]
        return np.max(grids, axis=0)  # what one grid parts lies in one bin of the other

    def _shared(self, held, near):
        """Words (h,) of training features -> pairs of a training feature and a feature that asks for its
        word; their weight."""
        n, k = near.words.shape
        k = min(k, len(ASKED))
        asked, feature = near.words[:, :k].ravel(), np.repeat(np.arange(n), k)
        order = np.argsort(asked, kind="stable")
        first, last = (np.searchsorted(asked[order], held, end) for end in ("left", "right"))
        theirs = np.repeat(np.arange(len(held)), last - first)
        before = np.cumsum(last - first) - last  # a training feature's pairs run from first to last
        at = order[np.arange(len(theirs)) - before[theirs]]
        return theirs, feature[at], self._rarity[asked[at]] * np.tile(np.array(ASKED[:k], np.float32), n)[at]


def _laid_at(held, asked, sizes):
    """Pairs of features (p, 4) -> (p, 4): where each lays the middle of the training picture, the scale and
    the angle, in units of bins."""
    scale, angle = asked[:, 2] / held[:, 2], np.radians(asked[:, 3] - held[:, 3])
    middle = ((sizes / 2 - held[:, :2]) @ (1, 1j) * scale * np.exp(1j * angle) + asked[:, :2] @ (1, 1j)) / BIN
    return np.stack([middle.real, middle.imag, np.log2(scale), np.degrees(angle) % 360 / BIN_ANGLE], 1)


def _fullest(rows, bins, weight, m):
    """-> (m,): the weight in each row's fullest bin."""
    found = np.zeros(m)
    bins = np.clip(bins, -60, 60).astype(np.int64) + 64  # seven bits each; the angle comes round
    bins[:, 3] %= 360 // BIN_ANGLE
    keys, inverse = np.unique((rows << 28) + bins @ (1 << 21, 1 << 14, 1 << 7, 1), return_inverse=True)
    np.maximum.at(found, keys >> 28, np.bincount(inverse, weight, len(keys)))
    return found


def _sample(kept):
    """-> words (w, 128) float32 and (w,) the row that each is of: every so-manyth feature of all."""
    ends = np.cumsum(kept.counts)
    total = int(ends[-1]) if len(ends) else 0
    chosen = evenly_spread(total, WORDS)
    rows = np.searchsorted(ends, chosen, "right")
    words = np.zeros((len(chosen), DIM), np.float32)
    for row in np.unique(rows):
        here = rows == row
        words[here] = unit_rows(kept.descriptors(row)[chosen[here] - (ends[row] - kept.counts[row])])
    return words, rows
