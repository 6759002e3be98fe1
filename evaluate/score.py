"""Compare generated images with training images: which are copies, how often, and at what price a mitigation removes them.

    rotescope score --generated runs/samples --train_data runs/demo/checkpoint/manifest.parquet --output_dir runs/report
    rotescope score --generated pictures --train_data photos --heldout_data other_photos --output_dir runs/report
"""
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rotescope.datasets.sources import load_source
from rotescope.errors import exit_cleanly
from rotescope.evaluate import measure as m
from rotescope.evaluate.alignment import find_alignment, get_alignment
from rotescope.evaluate.descriptors import choose, get_descriptor
from rotescope.evaluate.fidelity import fidelity
from rotescope.evaluate.index import build_index, embed, unique
from rotescope.evaluate.options import TITLE, MeasureConfig
from rotescope.evaluate.report import Pictures, Report, write_report
from rotescope.evaluate.samples import open_image, read_samples
from rotescope.evaluate.table import print_table
from rotescope.evaluate.verdict import DEFAULT_RULE, Rule, check_power, judge, name
from rotescope.progress import progress_bars
from rotescope.runs import check_output, output_folder, versions
from rotescope.settings import parse, plain

SCHEMA_VERSION = "1.0"


def score_samples(samples_dir, manifest, heldout=None, descriptor="auto", alignment="auto", sweep=None, config=None, title=TITLE,
                  *, rule=DEFAULT_RULE, copy_quantile=0.99, copy_threshold=None, on_image=None):
    """A folder of generated images and the Manifest of the training images -> Report: a dict, as report.json has it.

    heldout: Manifest of pictures that the model never saw; alignment: what get_alignment takes, or "auto" for the sampled
    model's own; sweep: a second samples folder, one method a transition; config: goes into the provenance; on_image(what): called
    for each image that is embedded. Raises InputError on bad samples or rules before anything is embedded.
    """
    samples, swept, rule = read_samples(samples_dir), read_samples(sweep) if sweep else None, Rule.parse(rule)
    rule.scope(list(dict.fromkeys(method for method, _ in samples.cells)))
    aligner = get_alignment(find_alignment(samples.run.get("model")) if alignment == "auto" else alignment)
    side = min(*samples.open(samples.records[0]).size, *manifest[0].open().size)
    index = build_index(manifest, get_descriptor(descriptor, side), _tick(on_image, "training"))
    vectors, features = embed([e.open for e in heldout or ()], index.descriptor, aligner, _tick(on_image, "held-out"))
    null = m.null_of(index, vectors, copy_quantile, copy_threshold)
    measured = m.measure(samples, index, manifest, aligner, _tick(on_image, "generated"))
    points = m.measure(swept, index, manifest, aligner, _tick(on_image, "sweep")) if swept else None
    methods = m.cells(samples, measured, null, features if features.size else ())
    return Report({
        "schema_version": SCHEMA_VERSION, "title": title, "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "verdict": judge(methods, rule, null.chance if len(vectors) else None), "notes": list(m.warnings(index, null)),
        "descriptor": index.descriptor.name, "descriptor_choice": choose(side)[1] if descriptor == "auto" else "user's choice",
        "copy_threshold": null.threshold, "threshold_rule": null.rule, "background": null.as_json(),
        **_conditions(samples, manifest, index), **_metrics(index, aligner, features, max(map(len, samples.cells.values()))),
        "labels": {method: name(method) if samples.run else "generated images" for method in methods},
        "methods": {method: {"settings": _settings(samples, method), **groups} for method, groups in methods.items()},
        "sweep": m.sweep_points(swept, points, null) if swept else [],
        "hashes": _hashes(samples, manifest, heldout, aligner), "versions": samples.run.get("versions", {}) | versions(),
        "config": {"sampling": samples.run.get("config", {}), "scoring": config or {}},
        "prediction_gaps": m.gap_curves(samples), "histogram": m.histogram(samples, measured, null),
        "pairs": m.pairs(samples, measured, index, null.threshold),
    }, _pictures(samples, manifest))


def totals(samples_dir, manifest, heldout=None, sweep=None):
    """How many images score_samples will embed -> {what: n}, for progress_bars."""
    return {"training": len(unique(manifest)[0]), "held-out": len(heldout or ()),
            "generated": len(read_samples(samples_dir).records), "sweep": len(read_samples(sweep).records) if sweep else 0}


def _settings(samples, method):
    return samples.run.get("methods", {}).get(method, {})


def _tick(on_image, what):
    return partial(on_image, what) if on_image else None


def _conditions(samples, manifest, index):
    run = samples.run
    return {"training_images": {"unique": len(index), "entries": len(manifest), "copies": manifest.copies},
            "seeds": sorted({r.seed for r in samples.records if r.seed is not None}),
            "guidance_scale": run.get("guidance_scale"), "num_inference_steps": run.get("num_inference_steps")}


def _metrics(index, aligner, heldout_features, n):
    """What alignment and fidelity were measured with, and the distance of n real training pictures to the held-out ones."""
    if not heldout_features.size:
        return {"alignment_metric": aligner and aligner.label, "fidelity_metric": None, "fidelity_floor": None}
    once = [e for e in index.examples if e.group != "duplicated"]
    picked = once[::max(len(once) // n, 1)][:n]
    features = embed([e.open for e in picked], index.descriptor, aligner)[1]
    return {"alignment_metric": aligner.label, "fidelity_floor": fidelity(features, heldout_features),
            "fidelity_metric": f"KID and FID to held-out pictures, on features of the {aligner.label}"}


def _hashes(samples, manifest, heldout, aligner):
    found = samples.run.get("hashes", {}) | {"training_data": manifest.hash, "samples": samples.hash}
    known = {"heldout_data": heldout and heldout.hash, "alignment_model": aligner and aligner.sha256}
    return found | {name: value for name, value in known.items() if value}


def _pictures(samples, manifest):
    by_id = {e.image_id: e for e in manifest}
    return Pictures(generated=lambda image: open_image(samples.folder / image),
                    training=lambda image_id: by_id[image_id].open() if image_id in by_id else None)


# ----- command line

@dataclass(frozen=True, kw_only=True)
class ScoreConfig(MeasureConfig):
    generated: str
    """what rotescope generate wrote, or any folder of images"""
    sweep: str | None = None
    """a second samples folder with one method a transition, for the trade-off curves"""


def show_and_judge(report, output_dir, fail_on):
    """Print the table and the summary; exit with 1 if the rule that the user fixed is broken."""
    print_table(report)
    kept = ("verdict", "descriptor", "copy_threshold", "methods")
    print(json.dumps({key: report[key] for key in kept} | {"report": str(Path(output_dir) / "report.html")}))
    if fail_on and report["verdict"]["passed"] is False:
        raise SystemExit(1)


def score(config):
    """Score as `config` says -> Report."""
    check_output(config.output_dir, config.overwrite)
    rule = Rule.parse(config.fail_on or DEFAULT_RULE)
    if config.fail_on:
        check_power(rule, {cell: len(at) for cell, at in read_samples(config.generated).cells.items()})
    manifest = load_source(config.train_data, need_captions=False)
    heldout = load_source(config.heldout_data, need_captions=False) if config.heldout_data else None
    with progress_bars(totals(config.generated, manifest, heldout, config.sweep)) as on_image:
        report = score_samples(
            config.generated, manifest, heldout, config.descriptor, config.alignment, config.sweep, plain(config), config.title,
            rule=rule, copy_quantile=config.copy_quantile, copy_threshold=config.copy_threshold, on_image=on_image)
    with output_folder(config.output_dir, config.overwrite) as draft:
        write_report(report, draft)
    return report


@exit_cleanly
def main(argv=None):
    config = parse(ScoreConfig, sys.argv[1:] if argv is None else argv, prog="rotescope score", description=__doc__)
    show_and_judge(score(config), config.output_dir, config.fail_on)


if __name__ == "__main__":
    main()
