"""Which training pictures share local features with a picture, by votes of quantised features (Sivic and Zisserman 2003).

Some of the training features themselves serve as words, and each feature counts as its nearest word. A picture asks for the
pictures that hold its words; a word counts by how few pictures hold it. So a quarter of a collage finds its picture, however
little the rest looks like it, and one sparse product answers for the whole training set.
"""
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from rotescope.evaluate.verification.feature_store import KeptFeatures
from rotescope.evaluate.verification.local_features import DIM, LENGTH

WORDS = 8192
BLOCK = 2048          # features that are compared with all words at a time
NEAREST = 8           # words that are kept of each feature of a generated picture
ASKED = (1.0, 0.6, 0.4)   # how much its nearest words count when it asks


@dataclass(frozen=True)
class NearWords:
    """Of n features: their nearest words, the nearest first. words: (n, k) int64; similarity: (n, k) float32, at most 1."""
    words: np.ndarray
    similarity: np.ndarray


def unit_rows(descriptors: np.ndarray) -> np.ndarray:
    """(n, 128) uint8 of length 512 -> (n, 128) float32 of length 1."""
    return descriptors.astype(np.float32) / LENGTH


class FeatureVotes:
    """An inverted index of the training pictures. `words` (w, 128) float32 are a sample of their features, and `word_rows` (w,) says
    of which picture each is, so that they also show what other pictures hold."""

    def __init__(self, kept: KeptFeatures, on_image=None):
        self.words, self.word_rows = _sample(kept)
        self._table = self._inverted(kept, on_image or (lambda: None))

    def _inverted(self, kept, tick):
        """-> (words, m) CSR: in each picture's column √count · idf, over the root of the column's length."""
        words, counts, starts = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], [0]
        for row in range(len(kept)):
            held, count = np.unique(self._nearest(kept.descriptors(row)), return_counts=True)
            words.append(held.astype(np.int32))
            counts.append(np.sqrt(count, dtype=np.float32))
            starts.append(starts[-1] + len(held))
            tick()
        shape = (len(kept), len(self.words))
        table = sparse.csr_array((np.concatenate(counts), np.concatenate(words), np.array(starts)), shape=shape)
        pictures = np.bincount(table.indices, minlength=shape[1])
        self._rarity = np.log((shape[0] + 1) / (pictures + 0.5)).clip(0).astype(np.float32)
        table = table @ sparse.diags_array(self._rarity)
        lengths = np.sqrt(np.maximum(np.asarray((table * table).sum(1)).ravel(), 1.0))
        return (sparse.diags_array(lengths ** -0.5) @ table).T.tocsr().astype(np.float32)

    def _nearest(self, descriptors):
        """(n, 128) uint8 -> (n,) the nearest word of each."""
        blocks = [descriptors[i:i + BLOCK] for i in range(0, len(descriptors), BLOCK)] if len(self.words) else []
        return np.concatenate([np.zeros(0, np.int64), *((unit_rows(b) @ self.words.T).argmax(1) for b in blocks)])

    def near_words(self, descriptors: np.ndarray) -> NearWords:
        """(n, 128) uint8 -> the nearest words of each."""
        if not len(descriptors) or not len(self.words):
            return NearWords(np.zeros((len(descriptors), 0), np.int64), np.zeros((len(descriptors), 0), np.float32))
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


def _sample(kept):
    """-> words (w, 128) float32 and (w,) the row that each is of: every so-manyth feature of all."""
    ends = np.cumsum(kept.counts)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.unique(np.linspace(0, max(total - 1, 0), min(WORDS, total)).round().astype(np.int64))
    rows = np.searchsorted(ends, chosen, "right")
    words = np.zeros((len(chosen), DIM), np.float32)
    for row in np.unique(rows):
        here = rows == row
        words[here] = unit_rows(kept.descriptors(row)[chosen[here] - (ends[row] - kept.counts[row])])
    return words, rows
