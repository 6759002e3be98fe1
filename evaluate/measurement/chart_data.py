"""What the report draws: pairs, histograms, the sweep's points, gap curves."""
import numpy as np

from rotescope.common.errors import InputError
from rotescope.datasets.geometry.match import in_words, outlines
from rotescope.datasets.manifest import plain_copies
from rotescope.evaluate.measurement.per_group import group_findings
from rotescope.evaluate.report.report_types import GapCurve, Histogram, Pair, PairMatch, SweepPoint


def pairs_of(samples, measured, layer):
    """-> a Pair for every generated image: copies first, then copies of a part, then the closest."""
    null = np.sort(layer.nulls[layer.best_null])
    as_close = len(null) - np.searchsorted(null, measured.near.top1.astype(null.dtype), side="left")
    order = np.lexsort((-measured.near.top1, ~measured.partial, ~measured.copied))
    return tuple(_pair(samples.records[i], measured, layer.index, i, int(as_close[i])) for i in order)


def _pair(r, measured, index, i, as_close):
    row, own = measured.row[i], measured.near.own[i]
    example, match = index.examples[row], measured.shown_match(i)
    return Pair(
        r.method, r.group, r.prompt_index, r.prompt, r.seed, r.image, float(measured.near.top1[i]),
        bool(measured.copied[i]), bool(measured.partial[i]), measured.copied_by(i), example.image_id,
        example.captions[0] if example.captions else "", plain_copies(round(index.copies[row].item(), 3)), as_close, r.image_id,
        None if np.isnan(own) else float(own), match and pair_match(match, index))


def pair_match(match, index):
    """A verified Match -> PairMatch, with all that a page shows of it."""
    generated, training = outlines(match.transform)
    return PairMatch(
        index.examples[match.row].image_id, match.verifier, match.score, match.is_copy, match.transform,
        match.training_share, match.generated_share, match.mirrored, match.recoloured, in_words(match), match.points,
        generated, training)


def sweep_points(samples, measured, layer):
    """A samples folder with one method a transition -> the SweepPoints of delayed (before >= 0) and
    of opposite guidance."""
    points = []
    for method, groups in group_findings(samples, measured, layer).items():
        settings = samples.run.get("methods", {}).get(method, {})
        if not isinstance(settings.get("transition"), int | float):
            raise InputError(f"{samples.folder / 'run.json'} gives {method} no timestep as its transition: sweep timesteps")
        found = groups.get("duplicated") or next(iter(groups.values()))
        points.append(SweepPoint(
            "opposite" if settings["before"] < 0 else "delayed", settings["before"], settings["transition"],
            found.n, found.n_prompts, found.copies, found.copy_rate, found.alignment, found.caption_accuracy))
    return tuple(sorted(points, key=lambda p: (p.family, p.before, -p.transition_timestep)))


def histogram(samples, measured, layer, bins_above=8):
    """Counts of similarity to the nearest training image -> Histogram; the threshold is an edge."""
    background, heldout = layer.nulls["train"], layer.nulls["heldout"]
    lowest = min(float(values.min()) for values in (measured.near.top1, background, heldout) if len(values))
    width = max((1 - layer.threshold) / bins_above, 0.005)
    below, above = int(np.ceil((layer.threshold - lowest) / width)) + 1, int(np.ceil((1 - layer.threshold) / width)) + 1
    edges = layer.threshold + width * np.arange(-below, above + 1)

    def count(values):
        return tuple(np.histogram(np.asarray(values, np.float64), edges)[0].tolist())
    methods: dict = {}
    for (method, group), at in samples.cells.items():
        methods.setdefault(method, {})[group] = count(measured.near.top1[at])
    return Histogram(tuple(edges.tolist()), count(background), count(heldout), methods)


def gap_curves(samples):
    """Prediction gaps -> {method: {group: GapCurve}}: quartiles over images, where half have a gap."""
    curves: dict = {}
    for (method, group), at in samples.cells.items():
        told = [samples.records[i] for i in at if samples.records[i].prediction_gaps]
        told = [r for r in told if r.timesteps == told[0].timesteps and len(r.prediction_gaps) == len(r.timesteps)]
        gaps = np.array([r.prediction_gaps for r in told], np.float64)  # (images, steps), NaN where not computed
        steps = np.flatnonzero((~np.isnan(gaps)).mean(0) >= 0.5) if told else ()
        if len(steps):
            low, median, high = np.nanquantile(gaps[:, steps], [0.25, 0.5, 0.75], axis=0).tolist()
            curves.setdefault(method, {})[group] = GapCurve(
                len(told), tuple(told[0].timesteps[s] for s in steps), tuple(median), tuple(low), tuple(high))
    return curves
