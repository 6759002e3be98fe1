"""How close a prompt's images come, together, to training images that it does not belong to: what chance and its words bring.

A picture drawn from a caption is more like the training image of that caption than like any other, though nothing is
copied: they show the same thing. So the null of "near its own training image" is the same images against *other* training
images of the same words. Images of one prompt are alike, too: so they stay together in the null, as in the figure.
"""
import re
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.neighbours.nearest import nearest
from rotescope.evaluate.statistics.prompt_evidence import joint_nearness

PAIRS = 60      # of a prompt and a training image, that make a null at least, if there are so many
PROMPTS = 400   # whose images make a null, at most
LEAST = 4       # training images that each prompt's images are held against, at least
MOST = 12       # and at most: the next ones are less and less like its own
ALIKE_IN_WORDS = 6  # times as many training images share most words; of them those count that look most like its own


class LookAlikes:
    """Of the prompts of one method.

    Parameters
    ----------
    layer : Layer
        The calibrated one.
    vectors : array (n, d)
        Of the generated images.
    prompts : list of sequences of int
        Positions of the images of each prompt.
    anchors : sequence of int
        Of each prompt the row of its own training image, or of the nearest one where none is known.
    """

    def __init__(self, layer, vectors, prompts, anchors):
        self.index, self.twins = layer.index, layer.twins.clusters if layer.twins else {}
        self.vectors, self.prompts, self.anchors = vectors, prompts, anchors
        self._nulls: dict[int, np.ndarray] = {}

    def null(self, size):
        """Joint nearness of `size` images of a prompt to a training image of the same words, that it does not belong to -> (m,);
        over all prompts that have so many images."""
        if size not in self._nulls:
            several = [p for p, at in enumerate(self.prompts) if len(at) >= size]
            chosen = [several[i] for i in evenly_spread(len(several), PROMPTS)]
            each = min(max(PAIRS // max(len(chosen), 1), LEAST), MOST, len(self.index) - 1)
            rows = self.rows_alike([self.anchors[p] for p in chosen], each)
            found = [self._joint(self.prompts[p][:size], others) for p, others in zip(chosen, rows, strict=True)]
            self._nulls[size] = np.concatenate([np.zeros(0), *found])
        return self._nulls[size]

    def _joint(self, at, rows):
        if not len(rows):
            return np.zeros(0)
        return joint_nearness(np.asarray(self.vectors[at]) @ np.asarray(self.index.vectors[rows]).T)

    def joint(self, at, row):
        """Positions of a prompt's images -> their joint nearness to the training image of this row."""
        return float(self._joint(at, [row])[0])

    def rows_alike(self, anchors, n):
        """Rows of training images -> for each n rows of others that look most like it among those whose captions share most of
        its words, rare ones above all; among all, where there are no captions. Never the same picture in other bytes."""
        found: list[list[int]] = []
        for i in range(0, len(anchors), 64):
            part = anchors[i:i + 64]
            order = self._in_words(part, n) if self._words.nnz else self._in_looks(part, n)
            found += [self._most_alike(a, [int(r) for r in line if int(r) not in self.twins.get(a, {a})], n)
                      for a, line in zip(part, order, strict=True)]
        return found

    def _in_words(self, rows, n):
        """-> (r, …) rows, those whose captions share most words first."""
        shared = (self._words[rows] @ self._words.T).toarray()
        return np.argsort(-(shared + self._ties), axis=1)[:, :ALIKE_IN_WORDS * n + self._most_twins]

    def _in_looks(self, rows, n):
        """-> (r, …) rows, the nearest by the descriptor first."""
        k = min(n + self._most_twins, len(self.index))
        return nearest(np.asarray(self.index.vectors[rows]), self.index.vectors, k=k)[1]

    def _most_alike(self, row, others, n):
        likeness = np.asarray(self.index.vectors[others]) @ np.asarray(self.index.vectors[row])
        return [others[i] for i in np.argsort(-likeness, kind="stable")[:n]]

    @property
    def _most_twins(self):
        return max(map(len, self.twins.values()), default=1)

    @cached_property
    def _ties(self):
        """(N,) below any difference that words make: equal captions take their turn at random."""
        return 1e-6 * np.random.default_rng(0).random(len(self.index))

    @cached_property
    def _words(self):
        """(N, words): which words a caption has, weighed by how rare they are, rows of length 1."""
        texts = [set(re.findall(r"\w+", " ".join(e.captions[:1]).lower())) for e in self.index.examples]
        place = {word: i for i, word in enumerate(sorted(set().union(*texts)))}
        lines = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
        columns = np.array([place[word] for t in texts for word in sorted(t)], np.int64)
        weight = np.log1p(len(texts) / np.maximum(np.bincount(columns, minlength=len(place)), 1))[columns]
        length = np.sqrt(np.bincount(lines, weight ** 2, minlength=len(texts)))
        return csr_matrix((weight / length[lines], (lines, columns)), (len(texts), len(place)))
