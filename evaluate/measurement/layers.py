"""The calibrated layers that generated images are compared by: an index and a null of each descriptor."""
from functools import partial
from pathlib import Path

from rotescope.datasets.images.square import typical_side
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.neighbours.index import build_index, check_engine, unique
from rotescope.evaluate.nulls.calibration import calibrated, check_null, exact_layer, nulls_of, without
from rotescope.evaluate.nulls.same_picture import Twins
from rotescope.evaluate.options import check_exact, check_threshold


def check_measuring(how, manifest, heldout, base):
    """InputError on options that could not be met once the images are there."""
    check_threshold(how.copy_threshold, how.copy_quantile)
    if how.exact != "none":
        check_exact(how.exact)
    check_engine(how.search)
    if how.copy_threshold is None:
        several = len({e.sha256 for e in manifest}) > 1
        check_null(how.copy_null, {name for name, there in (("train", several), ("heldout", heldout), ("base", base)) if there})


def make_layers(side, manifest, heldout, base, how, on_image=None):
    """For generated images of a typical shorter side -> {"descriptor": the calibrated Layer, "exact": the one of
    near-identical copies unless how.exact is none}.
    Held-out pictures that are training images in other bytes are in neither's nulls."""
    side, twins = min(side, typical_side([e.open for e in manifest])), Twins(unique(manifest)[0])
    others = {"heldout": [(e.sha256, e.open) for e in heldout or ()], "base": base.pictures if base else ()}

    def index_and_nulls(descriptor, folder, tick):
        index = build_index(manifest, descriptor, tick and tick("training"), folder, how.search)
        return index, nulls_of(index, **others, on_image=tick and tick("held-out"), twins=twins, quantile=how.copy_quantile)
    descriptor = get_descriptor(how.descriptor, side, how.trust_sha256)
    found = {"descriptor": index_and_nulls(descriptor, how.index_dir, partial(ticker, on_image))}
    if how.exact != "none":
        exact = get_descriptor(how.exact)
        found["exact"] = (found["descriptor"] if exact.name == descriptor.name else
                          index_and_nulls(exact, how.index_dir and Path(how.index_dir) / "exact", None))
    kept = twins.kept(others["heldout"])  # once all layers have looked
    found = {name: (index, without(nulls, kept)) for name, (index, nulls) in found.items()}
    layer = calibrated(*found["descriptor"], how.copy_quantile, how.copy_null, how.copy_threshold, twins)
    return {"descriptor": layer} | ({"exact": exact_layer(*found["exact"], how.exact)} if "exact" in found else {})


def ticker(on_image, what):
    """-> what is called for each image that is embedded, or None."""
    return partial(on_image, what) if on_image else None
