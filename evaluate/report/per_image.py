"""Samples against an index: numbers for each image first, then for each prompt, and for each method and group of prompts."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rotescope.evaluate.neighbours.index import features
from rotescope.evaluate.quality.alignment import agreement
from rotescope.evaluate.quality.fidelity import fidelity
from rotescope.evaluate.statistics.replication import mean, replication
from rotescope.evaluate.statistics.significance import FDR, benjamini_hochberg, null_needed, paired_p_value, rank_p_values

PAIRED = 2000  # prompts in the test of pairing: its matrix is images × prompts


# ----- per image

@dataclass(frozen=True)
class Matched:
    """By one layer, over the n images; NaN where a number does not apply."""
    top1: np.ndarray         # similarity to the nearest training image
    row: np.ndarray          # its row in the index
    own: np.ndarray          # similarity to the training image that the prompt belongs to
    threshold: float
    watched: np.ndarray      # (n, w) whether it copies each of the w training images that a rule names, nearest or not

    @property
    def copied(self):
        return self.top1 >= self.threshold

    @property
    def own_copied(self):
        """1, 0, or NaN where no training image is expected."""
        return np.where(np.isnan(self.own), np.nan, self.own >= self.threshold)


@dataclass(frozen=True)
class Measured:
    """A copy is what any of the layers says: the calibrated descriptor, or the exact layer, which needs no learned weights."""
    vectors: np.ndarray      # (n, d) by the calibrated descriptor
    layers: dict[str, Matched]
    alignment: np.ndarray    # cosine with the own caption
    hit: np.ndarray          # 1 where no other caption fits better
    features: np.ndarray     # (n, f) for fidelity; f = 0 without an alignment model
    watched_rows: np.ndarray  # (w,) of the training images that a rule names

    @property
    def near(self):
        return self.layers["descriptor"]

    @cached_property
    def copied(self):
        return np.any([m.copied for m in self.layers.values()], axis=0)

    @cached_property
    def own_copied(self):
        return np.max([m.own_copied for m in self.layers.values()], axis=0)

    @cached_property
    def identical(self):
        """Whether the exact layer says that it is the prompt's own training image, or any where none is expected."""
        exact = self.layers.get("exact")
        return np.where(np.isnan(exact.own), exact.copied, exact.own_copied == 1) if exact else np.zeros(len(self.vectors), bool)

    @cached_property
    def row(self):
        """Of the training image that is copied, where one is; else of the nearest by the descriptor."""
        row = self.near.row
        for m in self.layers.values():
            row = np.where(~self.near.copied & m.copied, m.row, row)
        return row

    @property
    def watched(self):
        """(n, w) whether an image copies each training image that a rule names."""
        return np.any([m.watched for m in self.layers.values()], axis=0)


def measure(samples, layers, manifest, aligner=None, on_image=None, watched=()):
    """Every generated image against each Layer, {"descriptor": …, perhaps "exact": …}, and against its caption -> Measured.

    watched: ids of training images that each is compared with, though another may be nearer.
    """
    vectors, matched = {}, {}
    rows = np.unique([layers["descriptor"].index.rows[image_id] for image_id in watched]).astype(np.int64)
    for name, layer in layers.items():
        key = layer.index.descriptor.name
        if key not in vectors:
            vectors[key] = layer.index.embed(samples.pictures, None if vectors else on_image)
        matched[name] = _matched(samples.records, vectors[key], layer, rows)
    seen = features([opener for _, opener in samples.pictures], aligner)
    alignment, hit = _aligned(samples.records, manifest, aligner, seen)
    return Measured(vectors[layers["descriptor"].index.descriptor.name], matched, alignment, hit, seen, rows)


def _matched(records, vectors, layer, watched):
    similarity, row = layer.index.nearest(vectors)
    expected = np.array([layer.index.rows.get(r.image_id, -1) for r in records])
    own = np.full(len(records), np.nan)
    known = np.flatnonzero(expected >= 0)
    if len(known):
        own[known] = np.clip((vectors[known] * layer.index.vectors[expected[known]]).sum(1), -1, 1)
    return Matched(similarity.astype(np.float64), row, own, layer.threshold, _copies_of(watched, vectors, layer))


def _copies_of(rows, vectors, layer, block=256):
    """Which of the rows each image copies -> (n, w) bool, a block of them at a time."""
    every = vectors[:]
    found = [every @ layer.index.vectors[rows[i:i + block]].T >= layer.threshold for i in range(0, len(rows), block)]
    return np.concatenate(found, axis=1) if found else np.zeros((len(vectors), 0), bool)


def _aligned(records, manifest, aligner, seen):
    """-> alignment (n,) and hit (n,), best of prompts and training captions; any caption of the own image is right."""
    alignment, hit = np.full(len(records), np.nan), np.full(len(records), np.nan)
    told = [i for i, r in enumerate(records) if r.prompt]
    if not aligner or not told:
        return alignment, hit
    prompts = [records[i].prompt for i in told]
    place = {c: i for i, c in enumerate(dict.fromkeys([*prompts, *(e.captions[0] for e in manifest if e.captions)]))}
    captions = {e.image_id: e.captions for e in manifest}
    right = [{place.get(c) for c in (records[i].prompt, *captions.get(records[i].image_id, ()))} for i in told]
    texts = aligner.texts(list(place))
    alignment[told], hit[told] = agreement(seen[told], texts[[place[p] for p in prompts]], texts, right)
    return alignment, hit


# ----- per prompt

def prompts_of(samples, measured, layer):
    """-> [{method, group, prompt, n, copies, top1_similarity, p, q, significant, leaked, …}], one for each method and prompt.

    p: by rank of its highest similarity among layer.best_null; q: adjusted over the prompts of a method. leaked: its images copy,
    and chance does not explain it: they do with significance, or all but identically, and the prompt's own image if it has one.
    """
    found = []
    for method, by_prompt in _by_prompt(samples.records).items():
        top = np.array([measured.near.top1[at].max() for at in by_prompt.values()])
        p = rank_p_values(top, [len(at) for at in by_prompt.values()], layer.nulls[layer.best_null])
        for at, *figures in zip(by_prompt.values(), top, p, benjamini_hochberg(p), strict=True):
            found.append(_prompt(samples.records, measured, at, *figures) | {"method": method})
    return found


def _prompt(records, measured, at, top, p, q):
    r, own, copies, significant = records[at[0]], measured.near.own[at], int(measured.copied[at].sum()), bool(q <= FDR)
    return {"group": r.group, "prompt_index": r.prompt_index, "prompt": r.prompt, "image": r.image, "n": len(at),
            "copies": copies, "top1_similarity": float(top), "p": float(p), "q": float(q), "significant": significant,
            "leaked": bool(copies and significant or measured.identical[at].any()), "expected": r.image_id,
            "own_similarity": None if np.isnan(own).any() else float(own.max())}


def _by_prompt(records):
    """-> {method: {prompt index, or the image itself where it has none: positions}}."""
    methods = {}
    for i, r in enumerate(records):
        methods.setdefault(r.method, {}).setdefault(_key(r), []).append(i)
    return methods


def _key(record):
    """Of a prompt: its index, or the image itself where it has none."""
    return record.image if record.prompt_index is None else record.prompt_index


def p_value_note(samples, layer):
    """What the p-values rest on, and whether one could be significant at all -> dict for the report."""
    methods = _by_prompt(samples.records).values()
    images = min(len(at) for prompts in methods for at in prompts.values())
    m, needed = len(layer.nulls[layer.best_null]), null_needed(max(map(len, methods)), images)
    return {"null": layer.best_null, "n": m, "smallest": images / (m + images), "fdr": FDR,
            "needed": needed if m < needed else None}


def pairing(samples, measured, layer):
    """Shuffled pairing of prompts and training images -> {method: {own, shuffled, p}} where prompts name their images."""
    found = {}
    for method, by_prompt in _by_prompt(samples.records).items():
        known = [at for at in by_prompt.values() if samples.records[at[0]].image_id in layer.index.rows][:PAIRED]
        rows = [layer.index.rows[samples.records[at[0]].image_id] for at in known]
        if len(set(rows)) > 1:
            images, prompt = np.concatenate(known), np.repeat(np.arange(len(known)), [len(at) for at in known])
            own, shuffled, p = paired_p_value(measured.vectors[images] @ layer.index.vectors[np.array(rows)].T, prompt)
            found[method] = {"own": own, "shuffled": shuffled, "p": p}
    return found


# ----- per method and group

def cells(samples, measured, layer, heldout_features=(), prompts=(), resolved=True):
    """-> {method: {group: figures}}; prompts: as prompts_of has them; resolved: whether any could be significant at all."""
    methods, told = {}, {}
    for p in prompts:
        told.setdefault((p["method"], p["group"]), []).append(p)
    for (method, group), at in samples.cells.items():
        records, copied = [samples.records[i] for i in at], measured.copied[at]
        keys, own = [_key(r) for r in records], told.get((method, group), ())
        leaked, open_ = ([p for p in own if p["copies"] and p["leaked"] == which] for which in (True, False))
        methods.setdefault(method, {})[group] = replication(
            measured.near.top1[at], copied, keys, measured.own_copied[at], layer.chance) | {
            "copies_by": {name: int(m.copied[at].sum()) for name, m in measured.layers.items()},
            "n_prompts": len({r.prompt_index for r in records}),
            "prompts_copied": len({r.prompt_index for r, c in zip(records, copied, strict=True) if c} - {None}),
            "prompts_significant": sum(p["significant"] for p in own) if own and own[0]["prompt_index"] is not None else None,
            "leaked_prompts": len(leaked), "unresolved_prompts": 0 if resolved else len(open_),
            "alignment": mean(measured.alignment[at]), "caption_accuracy": mean(measured.hit[at]),
            "denoiser_rows": mean([r.denoiser_rows for r in records]),
            "transition_timestep": mean([r.transition_timestep for r in records]),
            "fidelity": fidelity(measured.features[at], heldout_features) if len(heldout_features) else None}
    return methods


