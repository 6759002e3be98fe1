"""Which ways bring an image back: samples by their likeness to the image they aim at, beside pictures that the model never saw.

An image is brought back by a route if any of its samples copies it, as the calibrated descriptor or the exact layer says; images
are what is counted, since the samples of one are alike.
"""
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from rotescope.common.text_table import TextTable
from rotescope.common.wording import name
from rotescope.evaluate.inputs.samples import Record
from rotescope.evaluate.statistics.estimate import LEVEL, clopper_pearson
from rotescope.evaluate.statistics.significance import holm

ROUTES = {"caption": "own captions", "paraphrase": "paraphrases", "embedding": "found embeddings"}
HELDOUT, PLAIN = "heldout", "none"


@dataclass(frozen=True)
class Shot:
    """A sample, and how like its target it is."""
    route: str
    record: Record
    similarity: float   # by the calibrated descriptor
    copied: bool        # as any layer says

    @property
    def folder(self):
        """Of its route and method, among the samples."""
        return f"{self.route}-{self.record.method}"


# ----- per sample

def shots_of(route, samples, layers, targets):
    """Samples whose records name their targets, layers as make_layers has them, targets
    {image_id: Example} -> Shots."""
    own = {layer_name: own_similarity(samples, layer, targets) for layer_name, layer in layers.items()}
    copied = np.any([own[layer_name] >= layer.threshold for layer_name, layer in layers.items()], axis=0)
    return [Shot(route, *shot) for shot in zip(samples.records, own["descriptor"].tolist(), copied.tolist(), strict=True)]


def own_similarity(samples, layer, targets):
    """-> (n,) cosine of each sample to its own target, which need not be a training image."""
    row = {image_id: i for i, image_id in enumerate(targets)}
    vectors = np.asarray(layer.index.embed(samples.pictures), np.float64)
    own = np.asarray(layer.index.embed([(e.sha256, e.open) for e in targets.values()]), np.float64)
    return np.clip((vectors * own[[row[r.image_id] for r in samples.records]]).sum(1), -1, 1)


# ----- per image

def by_image(shots):
    """-> {method: {image_id: {route: its Shots}}}, in the order of the samples."""
    found = {}
    for shot in shots:
        found.setdefault(shot.record.method, {}).setdefault(shot.record.image_id, {}).setdefault(shot.route, []).append(shot)
    return found


def closest_shot(shots):
    """The Shot that is most like its target; a copy before what is none."""
    return max(shots, key=lambda s: (s.copied, s.similarity))


def image_figures(shots):
    """The Shots of one image -> {method: {route: how often it was copied, and by which sample best}}."""
    return {method: {route: _of_image(own) for route, own in routes.items()}
            for method, images in by_image(shots).items() for routes in images.values()}


def _of_image(shots):
    top = closest_shot(shots)
    return {"samples": len(shots), "copies": sum(s.copied for s in shots), "similarity": top.similarity,
            "prompt_index": top.record.prompt_index, "prompt": top.record.prompt, "seed": top.record.seed,
            "image": f"{top.folder}/{top.record.image}"}


# ----- per method and group of images

def tally(shots):
    """-> {method: {group: {route: figures}}}; p: of as many or more images brought back, were they no easier than held-out ones
    (Fisher's exact test, one-sided); None where no held-out ones were tried. p_adjusted: over all cells of all methods (Holm)."""
    found = {}
    for method, images in by_image(shots).items():
        cells = found.setdefault(method, {})
        for routes in images.values():
            for route, own in routes.items():
                cells.setdefault(own[0].record.group, {}).setdefault(route, []).append([s.copied for s in own])
        found[method] = {group: {route: _figures(copied, cells.get(HELDOUT, {}).get(route) if group != HELDOUT else None)
                                 for route, copied in routes.items()} for group, routes in cells.items()}
    return _adjusted(found)


def _adjusted(found):
    """The tally with p_adjusted in each cell: of many cells, one has a small p by chance."""
    cells = [cell for groups in found.values() for routes in groups.values() for cell in routes.values()]
    told = [cell for cell in cells if cell["p"] is not None]
    for cell in cells:
        cell["p_adjusted"] = None
    for cell, p in zip(told, holm([cell["p"] for cell in told]), strict=True):
        cell["p_adjusted"] = float(p)
    return found


def _figures(copied, heldout):
    """copied, heldout: for each image, for each of its samples, whether it copies the image."""
    back, n, samples = sum(map(any, copied)), len(copied), sum(copied, [])
    return {"images": n, "brought_back": back, "rate": back / n, "interval": list(clopper_pearson(back, n)), "level": LEVEL,
            "samples": len(samples), "copies": sum(samples), "sample_rate": sum(samples) / len(samples),
            "p": None if heldout is None else more_often(back, n, sum(map(any, heldout)), len(heldout))}


def more_often(k, n, k_other, n_other):
    """-> p of k or more of n, given k + k_other of n + n_other in all."""
    return float(fisher_exact([[k, n - k], [k_other, n_other - k_other]], alternative="greater").pvalue)


# ----- in words

def conclusion(method, group, cells, heldout, significance=0.05):
    """One sentence on a group of training images under a method; cells, heldout: {route: figures}, perhaps without embedding."""
    by = ", ".join(f"by {ROUTES[route]} {_of(figures)}" for route, figures in cells.items())
    start = f"{'Without mitigation' if method == PLAIN else f'Under {name(method)}'}, of {group} images are brought back {by}"
    found = cells.get("embedding")
    if found is None:
        return f"{start}; the method reads prompts, so no embedding can be tried on it."
    if not found["brought_back"]:
        return f"{start}; the search found nothing within its budget, which does not prove that nothing is left."
    if not heldout:
        return f"{start}: no pictures were tried that the model never saw, and without them this proves nothing."
    beside = f"{start}; of held-out ones by found embeddings {_of(heldout['embedding'])} (adjusted p = {found['p_adjusted']:.2g})"
    if found["p_adjusted"] > significance:
        return f"{beside}: the difference may be chance, so this proves nothing."
    if method == PLAIN:
        return f"{beside}: memorized."
    held_back = cells["caption"]["brought_back"] < found["brought_back"]
    return f"{beside}: {'suppressed, not erased' if held_back else 'not even suppressed'}."


def _of(cell):
    return f"{cell['brought_back']} of {cell['images']}"


def tally_table(tally):
    """A line for each method and group -> TextTable."""
    rows = []
    for method, groups in tally.items():
        for group, cells in groups.items():
            p = cells.get("embedding", {}).get("p_adjusted")
            rows.append((method, group, *(_cell(cells.get(route)) for route in ROUTES), "–" if p is None else f"{p:.2g}"))
    return TextTable(("method", "images", *ROUTES.values(), "adjusted p against held-out"), tuple(rows),
                     title="images brought back (95 % interval of their share)")


def _cell(figures):
    return f"{_of(figures)} ({'–'.join(f'{v:.2f}' for v in figures['interval'])})" if figures else "–"
