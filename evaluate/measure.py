"""Samples against an index: numbers for each image first, then for each method and group of prompts."""
from dataclasses import dataclass
from functools import partial

import numpy as np

from rotescope.errors import InputError
from rotescope.evaluate.alignment import agreement
from rotescope.evaluate.fidelity import fidelity
from rotescope.evaluate.index import embed, nearest, nearest_other
from rotescope.evaluate.replication import copy_threshold, replication, spread

FEW = 100    # training images below which a quantile of .99 is only the highest similarity
TWIN = 0.98  # a threshold as high as this says that the training set is full of near-duplicates


# ----- what similarity means nothing

@dataclass(frozen=True)
class Null:
    """Similarities that no model caused, and the threshold drawn from them."""
    threshold: float
    rule: str                # where the threshold comes from
    background: np.ndarray   # (m,) each training image to its nearest other one
    heldout: np.ndarray      # (h,) each held-out picture to its nearest training image; empty without held-out data

    @property
    def chance(self):
        """Share of pictures over the threshold that cannot be copies: of the held-out ones, without them of the background."""
        values = self.heldout if len(self.heldout) else self.background
        return float((values >= self.threshold).mean()) if len(values) else 0.0

    def as_json(self):
        chance = {"copy_rate": self.chance} if len(self.heldout) else {}
        return spread(self.background) | {"heldout": spread(self.heldout) | chance}


def null_of(index, heldout, quantile=0.99, threshold=None):
    """heldout: descriptors (h, d) -> Null. InputError if there is nothing to calibrate on and no threshold is given."""
    background = nearest_other(index.vectors)
    top1 = nearest(heldout, index.vectors)[0][:, 0] if len(heldout) else np.zeros(0)
    if threshold is not None:
        return Null(float(threshold), "given by the user", background, top1)
    if not len(background):
        raise InputError("a copy threshold needs at least two different training images: add some, or pass --copy_threshold")
    rule = (f"{quantile:g} quantile of the similarity of each of {len(background):,} training images to its nearest other one, "
            f"by {index.descriptor.name}")
    return Null(copy_threshold(background, quantile), rule, background, top1)


def warnings(index, null):
    """What a reader must know before trusting the threshold."""
    if len(index) < FEW:
        yield f"Only {len(index)} different training images: the copy threshold rests on few comparisons."
    if null.threshold >= TWIN:
        yield ("Some training images almost equal others, so the threshold is very high and edited copies may be missed: "
               "remove near-duplicates, or give a threshold.")


# ----- per image

@dataclass(frozen=True)
class Measured:
    """Arrays over the n images; NaN where a number does not apply."""
    top1: np.ndarray         # similarity to the nearest training image
    row: np.ndarray          # its row in the index
    own: np.ndarray          # similarity to the training image that the prompt belongs to
    alignment: np.ndarray    # cosine with the own caption
    hit: np.ndarray          # 1 where no other caption fits better
    features: np.ndarray     # (n, f) for fidelity; f = 0 without an alignment model


def measure(samples, index, manifest, aligner=None, on_image=None):
    """Every generated image against the index and its caption -> Measured."""
    vectors, features = embed([partial(samples.open, r) for r in samples.records], index.descriptor, aligner, on_image)
    similarity, row = nearest(vectors, index.vectors)
    expected = np.array([index.rows.get(r.image_id, -1) for r in samples.records])
    own = np.where(expected >= 0, np.clip((vectors * index.vectors[expected]).sum(1), -1, 1), np.nan)
    alignment, hit = _aligned(samples.records, manifest, aligner, features)
    return Measured(similarity[:, 0].astype(np.float64), row[:, 0], own, alignment, hit, features)


def _aligned(records, manifest, aligner, features):
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
    alignment[told], hit[told] = agreement(features[told], texts[[place[p] for p in prompts]], texts, right)
    return alignment, hit


# ----- per method and group

def cells(samples, measured, null, heldout_features=()):
    """-> {method: {group: figures}}."""
    methods = {}
    for (method, group), at in samples.cells.items():
        records, top1 = [samples.records[i] for i in at], measured.top1[at]
        copied = {r.prompt_index for r, s in zip(records, top1, strict=True) if s >= null.threshold}
        methods.setdefault(method, {})[group] = replication(top1, null.threshold, measured.own[at], null.chance) | {
            "n_prompts": len({r.prompt_index for r in records}), "prompts_copied": len(copied - {None}),
            "alignment": _mean(measured.alignment[at]), "caption_accuracy": _mean(measured.hit[at]),
            "denoiser_rows": _mean([r.denoiser_rows for r in records]),
            "transition_timestep": _mean([r.transition_timestep for r in records]),
            "fidelity": fidelity(measured.features[at], heldout_features) if len(heldout_features) else None}
    return methods


def _mean(values):
    """Of what is known; None if nothing is."""
    values = np.array([np.nan if v is None else v for v in values], np.float64)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else None


def sweep_points(samples, measured, null):
    """A samples folder with one method a transition -> the points of delayed (before >= 0) and of opposite guidance."""
    points = []
    for method, groups in cells(samples, measured, null).items():
        settings = samples.run.get("methods", {}).get(method, {})
        if not isinstance(settings.get("transition"), int | float):
            raise InputError(f"{samples.folder / 'run.json'} gives {method} no fixed transition; a sweep needs one a method")
        cell = groups.get("duplicated") or next(iter(groups.values()))
        points.append({
            "family": "opposite" if settings["before"] < 0 else "delayed", "before": settings["before"],
            "transition_timestep": settings["transition"],
            **{k: cell[k] for k in ("n", "copies", "copy_rate", "copy_rate_interval", "alignment", "caption_accuracy")}})
    return sorted(points, key=lambda p: (p["family"], p["before"], -p["transition_timestep"]))


# ----- what the report draws

def pairs(samples, measured, index, threshold):
    """Every generated image with its nearest training image, the closest first."""
    found = []
    for i in np.argsort(-measured.top1, kind="stable"):
        r, example, own = samples.records[i], index.examples[measured.row[i]], measured.own[i]
        found.append({
            "method": r.method, "group": r.group, "prompt_index": r.prompt_index, "prompt": r.prompt, "seed": r.seed,
            "image": r.image, "similarity": float(measured.top1[i]), "is_copy": bool(measured.top1[i] >= threshold),
            "nearest": example.image_id, "nearest_caption": example.captions[0] if example.captions else "",
            "copies": int(index.copies[measured.row[i]]),
            "expected": r.image_id, "own_similarity": None if np.isnan(own) else float(own)})
    return found


def histogram(samples, measured, null, bins_above=8):
    """Counts of similarity to the nearest training image -> {edges, background, heldout, methods}; the threshold is an edge."""
    lowest = min(float(values.min()) for values in (measured.top1, null.background, null.heldout) if len(values))
    width = max((1 - null.threshold) / bins_above, 0.005)
    below, above = int(np.ceil((null.threshold - lowest) / width)) + 1, int(np.ceil((1 - null.threshold) / width)) + 1
    edges = null.threshold + width * np.arange(-below, above + 1)

    def count(values):
        return np.histogram(np.asarray(values, np.float64), edges)[0].tolist()
    methods = {}
    for (method, group), at in samples.cells.items():
        methods.setdefault(method, {})[group] = count(measured.top1[at])
    return {"edges": edges.tolist(), "background": count(null.background), "heldout": count(null.heldout), "methods": methods}


def gap_curves(samples):
    """Prediction gaps -> {method: {group: {n, timesteps, median, low, high}}}: quartiles over images, where half have a gap."""
    curves = {}
    for (method, group), at in samples.cells.items():
        told = [samples.records[i] for i in at if samples.records[i].prediction_gaps]
        told = [r for r in told if r.timesteps == told[0].timesteps and len(r.prediction_gaps) == len(r.timesteps)]
        gaps = np.array([r.prediction_gaps for r in told], np.float64)  # (images, steps), NaN where not computed
        steps = np.flatnonzero((~np.isnan(gaps)).mean(0) >= 0.5) if told else ()
        if len(steps):
            low, median, high = np.nanquantile(gaps[:, steps], [0.25, 0.5, 0.75], axis=0).tolist()
            curves.setdefault(method, {})[group] = {
                "n": len(told), "timesteps": [told[0].timesteps[s] for s in steps], "median": median, "low": low, "high": high}
    return curves
