"""What the report draws: pairs, histograms, the sweep's points, gap curves."""
import numpy as np

from rotescope.common.errors import InputError
from rotescope.evaluate.report.per_image import cells


def pairs(samples, measured, layer):
    """Every generated image with the training image that it copies or is nearest to, copies first, then the closest;
    null_as_close: how many pictures of layer.best_null come as close as it."""
    found, copied, row, index = [], measured.copied, measured.row, layer.index
    null = np.sort(layer.nulls[layer.best_null])
    as_close = len(null) - np.searchsorted(null, measured.near.top1.astype(null.dtype), side="left")
    for i in np.lexsort((-measured.near.top1, ~copied)):
        r, example, own = samples.records[i], index.examples[row[i]], measured.near.own[i]
        found.append({
            "method": r.method, "group": r.group, "prompt_index": r.prompt_index, "prompt": r.prompt, "seed": r.seed,
            "image": r.image, "similarity": float(measured.near.top1[i]), "is_copy": bool(copied[i]),
            "copied_by": [name for name, m in measured.layers.items() if m.copied[i]],
            "nearest": example.image_id, "nearest_caption": example.captions[0] if example.captions else "",
            "copies": int(index.copies[row[i]]), "null_as_close": int(as_close[i]),
            "expected": r.image_id, "own_similarity": None if np.isnan(own) else float(own)})
    return found


def sweep_points(samples, measured, layer):
    """A samples folder with one method a transition -> the points of delayed (before >= 0) and of opposite guidance."""
    points = []
    for method, groups in cells(samples, measured, layer).items():
        settings = samples.run.get("methods", {}).get(method, {})
        if not isinstance(settings.get("transition"), int | float):
            raise InputError(f"{samples.folder / 'run.json'} gives {method} no fixed transition; a sweep needs one a method")
        cell = groups.get("duplicated") or next(iter(groups.values()))
        points.append({
            "family": "opposite" if settings["before"] < 0 else "delayed", "before": settings["before"],
            "transition_timestep": settings["transition"],
            **{k: cell[k] for k in ("n", "copies", "copy_rate", "copy_rate_interval", "alignment", "caption_accuracy")}})
    return sorted(points, key=lambda p: (p["family"], p["before"], -p["transition_timestep"]))


def histogram(samples, measured, layer, bins_above=8):
    """Counts of similarity to the nearest training image -> {edges, background, heldout, methods}; the threshold is an edge."""
    background, heldout = layer.nulls["train"], layer.nulls["heldout"]
    lowest = min(float(values.min()) for values in (measured.near.top1, background, heldout) if len(values))
    width = max((1 - layer.threshold) / bins_above, 0.005)
    below, above = int(np.ceil((layer.threshold - lowest) / width)) + 1, int(np.ceil((1 - layer.threshold) / width)) + 1
    edges = layer.threshold + width * np.arange(-below, above + 1)

    def count(values):
        return np.histogram(np.asarray(values, np.float64), edges)[0].tolist()
    methods = {}
    for (method, group), at in samples.cells.items():
        methods.setdefault(method, {})[group] = count(measured.near.top1[at])
    return {"edges": edges.tolist(), "background": count(background), "heldout": count(heldout), "methods": methods}


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
