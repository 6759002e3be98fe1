"""Two sets of images -> Report: the measuring half, for score, audit and demo."""
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rotescope.common.outputs import versions
from rotescope.common.wording import name
from rotescope.evaluate.descriptors.registry import choose
from rotescope.evaluate.inputs.samples import open_image, read_samples
from rotescope.evaluate.inputs.training_and_heldout import apart, left_out_named, twins_apart
from rotescope.evaluate.inputs.training_and_heldout import notes as left_out_notes
from rotescope.evaluate.measurement.best_of_many import picked_mitigation
from rotescope.evaluate.measurement.chart_data import gap_curves, histogram, pairs_of, sweep_points
from rotescope.evaluate.measurement.control_lines import controls_of
from rotescope.evaluate.measurement.layers import check_measuring, make_layers, ticker
from rotescope.evaluate.measurement.notes import featureless_notes, idle_notes, match_notes
from rotescope.evaluate.measurement.per_group import group_findings, shuffled_pairing
from rotescope.evaluate.measurement.per_image import measure
from rotescope.evaluate.measurement.per_prompt import p_value_basis, prompt_findings
from rotescope.evaluate.neighbours.index import features, unique
from rotescope.evaluate.nulls.calibration import warnings
from rotescope.evaluate.options import TITLE, Measuring
from rotescope.evaluate.quality.fidelity import fidelity
from rotescope.evaluate.quality.recognition import chosen_alignment
from rotescope.evaluate.report.report import Report
from rotescope.evaluate.report.report_types import (
    ExactRule,
    MethodFindings,
    ReportPictures,
    SharedPart,
    TrainingImages,
    Verification,
)
from rotescope.evaluate.statistics.base_comparison import against_base
from rotescope.evaluate.statistics.published_tables import conventions
from rotescope.evaluate.verdict.rules import check_ids, check_own, check_verified, parse_rules
from rotescope.evaluate.verdict.verdict import verdict_on
from rotescope.evaluate.verification.matching import make_matcher, null_size


def score_samples(samples_dir, manifest, heldout=None, *, base=None, sweep=None, config=None, title=TITLE, rule=(), left_out=(),
                  on_image=None, **measuring):
    """Compare generated images with training images.

    Parameters
    ----------
    samples_dir : str, Path or Samples
        The generated images.
    manifest : Manifest
        The training images.
    heldout : Manifest, optional
        Pictures that the model never saw.
    base : str, Path or Samples, optional
        Images by the base model on the same prompts and seeds.
    sweep : str, Path or Samples, optional
        Images of the same model, one method a transition.
    config : dict, optional
        Goes into the provenance.
    title : str
        Heading of the report.
    rule : str, Rule or several of them
        What the verdict hangs on.
    left_out : sequence of LeftOut
        What take_in could not read.
    on_image : callable, optional
        Called with what it is for each image that is embedded: on_image("generated").
    **measuring
        Fields of options.Measuring; alignment also as a folder.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        On bad samples or rules, before anything is embedded.
    """
    how, rules = Measuring(**measuring), parse_rules(rule)
    samples, swept, unadapted = read_samples(samples_dir), sweep and read_samples(sweep), base and read_samples(base)
    heldout, twice = apart(heldout, manifest)
    check_measuring(how, manifest, heldout, base)
    _check_rules(rules, samples, manifest, how)
    aligner, foreign = chosen_alignment(how.alignment, samples.run.get("model"), manifest)
    layers = make_layers(samples.side, manifest, heldout, unadapted, how, on_image)
    layer, index = layers["descriptor"], layers["descriptor"].index
    heldout, again = twins_apart(heldout, layer.twins)
    left_out = (*left_out, *left_out_named("held-out", twice + again), *(
        item for what, some in (("generated", samples), ("sweep", swept), ("base model's", unadapted)) if some
        for item in left_out_named(what, some.left_out)))
    watched = {image_id for one in rules for image_id in one.ids}
    matcher = make_matcher(layer, how, ticker(on_image, "features"))
    if matcher:
        matcher.draw_thresholds([(e.sha256, e.open) for e in heldout or ()], how.copy_quantile, ticker(on_image, "chance"))

    def matches(some):
        own = [index.rows.get(r.image_id) for r in some.records]
        return matcher and matcher.verified(some.pictures, own, ticker(on_image, "verifying"))
    measured = measure(samples, layers, manifest, aligner, ticker(on_image, "generated"), watched, matches(samples))
    points = measure(swept, layers, manifest, aligner, ticker(on_image, "sweep"), (), matches(swept)) if swept else None
    seen = features([e.open for e in heldout or ()], aligner)
    prompts, p_values = prompt_findings(samples, measured, layer), p_value_basis(samples, layer)
    groups = group_findings(samples, measured, layer, seen if seen.size else (), prompts)
    controls = controls_of(samples, unadapted, layers, manifest, heldout, matcher, rules, prompts, p_values,
                           how.trust_train_data)
    return Report(
        title=title, created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=verdict_on(groups, rules, layer.chance if len(layer.nulls["heldout"]) else None,
                           copied_ids(samples, measured, index), samples.run.get("plan"), p_values.needed,
                           measured.match_chance if measured.verified else None, controls,
                           picked_mitigation(samples, measured, groups)),
        notes=(*left_out_notes(left_out), *idle_notes(samples), *foreign, *warnings(layer), *match_notes(how, measured),
               *featureless_notes(samples, measured)),
        left_out=left_out,
        **_similarity(layers, samples, how.descriptor == "auto"), p_values=p_values,
        shuffled_pairing=shuffled_pairing(samples, measured, layer), **_conditions(samples, manifest, index),
        **_metrics(index, aligner, seen, max(map(len, samples.cells.values()))),
        methods=_methods(samples, groups),
        prompts=prompts, verification=_verification(measured, index),
        conventions=conventions(samples, measured, layer),
        base=against_base(samples, measured, unadapted, measure(unadapted, layers, manifest, verified=matches(unadapted)),
                          prompts) if unadapted else None,
        sweep=sweep_points(swept, points, layer) if swept else (),
        hashes=_hashes(samples, manifest, heldout, aligner, index),
        versions=samples.run.get("versions", {}) | versions(),
        config={"sampling": samples.run.get("config", {}), "scoring": config or {}},
        prediction_gaps=gap_curves(samples),
        histogram=histogram(samples, measured, layer), pairs=pairs_of(samples, measured, layer),
        pictures=_pictures(samples, manifest))


def _check_rules(rules, samples, manifest, how):
    check_verified(rules, how.verify)
    for one in rules:
        one.scope(list(dict.fromkeys(method for method, _ in samples.cells)))
    check_ids(rules, {e.image_id for e in manifest})
    check_own(rules, manifest, {r.image_id for r in samples.records})


def _methods(samples, groups):
    """{method: {group: GroupFindings}} -> {method: MethodFindings}."""
    told = samples.run or set(groups) != {"none"}
    return {method: MethodFindings(name(method) if told else "generated images",
                                   samples.run.get("methods", {}).get(method, {}),
                                   found) for method, found in groups.items()}


def _similarity(layers, samples, chosen):
    """What similarity and copies are measured by -> fields of Report; chosen: whether auto
    chose the descriptor."""
    layer, exact = layers["descriptor"], layers.get("exact")
    side = min(samples.side, *layer.index.examples[0].open().size)
    return {"descriptor": layer.index.descriptor.name,
            "descriptor_choice": choose(side)[1] if chosen else "user's choice",
            "search": layer.index.engine, "copy_threshold": layer.threshold, "threshold_rule": layer.rule,
            "background": layer.background, "exact": exact and exact_rule(exact)}


def exact_rule(layer):
    """The Layer of near-identical copies -> ExactRule."""
    return ExactRule(layer.index.descriptor.name, layer.threshold, layer.rule)


def _verification(measured, index):
    """-> Verification; None where nothing was sought."""
    if measured.verified is None:
        return None
    return Verification(measured.verified.thresholds, tuple(
        SharedPart(tuple(index.examples[row].image_id for row in element.rows), len(element.images), element.region)
        for element in measured.verified.shared))


def copied_ids(samples, measured, index):
    """-> {method: ids of the training images that it copies}, every id of a picture that has several. Those that a rule names
    are copied whatever is nearer: their twin in other bytes, perhaps. So are all that a verified match says are copied."""
    ids = {}
    for image_id, row in index.rows.items():
        ids.setdefault(row, set()).add(image_id)
    found = {}
    for i in np.flatnonzero(measured.copied):
        for row in {measured.row[i], *measured.verified_rows[i]}:
            found.setdefault(samples.records[i].method, set()).update(ids[row])
    for image, column in np.argwhere(measured.watched):
        found.setdefault(samples.records[image].method, set()).update(ids[measured.watched_rows[column]])
    return found


def totals(samples_dir, manifest, heldout=None, sweep=None, base=None, verify=True):
    """How many images score_samples will look at, and for what -> {what: n}, for progress_bars."""
    def several(folder):
        return len(read_samples(folder).records) if folder else 0
    training, of_each = len(unique(manifest)[0]), [several(folder) for folder in (samples_dir, sweep, base)]
    found = {"training": training, "held-out": len(heldout or ()) + of_each[2], "generated": of_each[0], "sweep": of_each[1]}
    if verify:
        found |= {"features": training, "chance": null_size(training) + null_size(len(heldout or ())), "verifying": sum(of_each)}
    return found


def _conditions(samples, manifest, index):
    run = samples.run
    return {"training_images": TrainingImages(len(index), len(manifest), round(manifest.copies, 3)),
            "seeds": tuple(sorted({r.seed for r in samples.records if r.seed is not None})),
            "prompt_sets": run.get("prompt_sets") or {}, "plan": run.get("plan"),
            "guidance_scale": run.get("guidance_scale"), "num_inference_steps": run.get("num_inference_steps")}


def _metrics(index, aligner, heldout_features, n):
    """What alignment and fidelity were measured with, and the distance of n real training pictures to the held-out ones."""
    if not heldout_features.size:
        return {"alignment_metric": aligner and aligner.label, "fidelity_metric": None, "fidelity_floor": None}
    once = [e for e in index.examples if e.group != "duplicated"]
    picked = once[::max(len(once) // n, 1)][:n]
    floor = fidelity(features([e.open for e in picked], aligner), heldout_features)
    return {"alignment_metric": aligner.label, "fidelity_floor": floor,
            "fidelity_metric": f"KID, FID, precision and recall (k = 3) to held-out pictures, on features of the {aligner.label}"}


def _hashes(samples, manifest, heldout, aligner, index):
    found = samples.run.get("hashes", {}) | {"training_data": manifest.hash, "samples": samples.hash}
    known = {"heldout_data": heldout and heldout.hash, "alignment_model": aligner and aligner.sha256,
             "descriptor_weights": index.descriptor.sha256}
    return found | {name: value for name, value in known.items() if value}


def report_from(report, folder, kept=None):
    """The same report, whose generated pictures lie in `folder` now. kept: what must live as
    long as the report does."""
    folder = Path(folder)
    return replace(report, pictures=replace(report.pictures,
                                            generated=lambda image, _=kept: open_image(folder / image)))


def _pictures(samples, manifest):
    by_id, by_name = {e.image_id: e for e in manifest}, {r.image: r for r in samples.records}
    return ReportPictures(generated=lambda image: samples.open(by_name[image]),
                    training=lambda image_id: by_id[image_id].open() if image_id in by_id else None)
