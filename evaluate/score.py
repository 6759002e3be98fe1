"""Compare generated images with training images: which are copies, how often, and at what price a mitigation removes them.

    rotescope score --generated runs/samples --train_data runs/demo/checkpoint/manifest.parquet --output_dir runs/report
    rotescope score --generated pictures --train_data photos --heldout_data other_photos --output_dir runs/report
"""
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from rotescope.common.errors import exit_cleanly
from rotescope.common.outputs import output_folder
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.common.wording import percent
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.output_checks import check_images, check_places, junit_file
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.inputs.training_and_heldout import take_in
from rotescope.evaluate.options import MeasureConfig, Measuring
from rotescope.evaluate.report.exports import junit, model_card, write_pairs
from rotescope.evaluate.report.findings import score_samples, totals
from rotescope.evaluate.report.html import write_report
from rotescope.evaluate.report.terminal import print_table
from rotescope.evaluate.verdict.rules import check_power, parse_rules


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(MeasureConfig):
    generated: str
    """what rotescope generate wrote, or any folder of images"""
    base_generated: str | None = None
    """pictures by the base model on the same prompts and seeds: what it makes too, this fine-tune did not memorize"""
    sweep: str | None = None
    """a second samples folder with one method a transition, for the trade-off curves"""


def announce(rules, config, images=1):
    """Print the rules before anything is measured, and which of them chance alone would break in a group of so many images."""
    for rule in rules:
        print(f"rule, fixed before the run: fail if {rule}", file=sys.stderr)
    for rule in rules if config.copy_threshold is None else ():
        if rule.by_chance(config.copy_quantile, images):
            print(f"note: about {percent(1 - config.copy_quantile)} of pictures that copy nothing are over this threshold, so "
                  f"{rule} breaks by chance: leaked_prompts>0 counts what chance does not explain", file=sys.stderr)


def write_all(report, folder, config):
    """The report for people and for machines; the JUnit file where the user wants it."""
    write_report(report, folder, config.redact)
    write_pairs(report, Path(folder) / "pairs.parquet")
    (Path(folder) / "model_card.md").write_text(model_card(report), encoding="utf-8")
    if config.junit_xml:
        file = junit_file(config, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(junit(report))


def show_and_judge(report, output_dir, fail_on):
    """Print the table and the summary; exit with 1 unless the rules that the user fixed hold."""
    print_table(report)
    kept = ("verdict", "descriptor", "copy_threshold", "methods")
    print(json.dumps({key: report[key] for key in kept} | {"report": str(Path(output_dir) / "report.html")}))
    if fail_on and not report["verdict"]["passed"]:
        raise SystemExit(1)


def measuring(config):
    """The fields of Measuring in a larger config."""
    return {f.name: getattr(config, f.name) for f in fields(Measuring)}


def score(config):
    """Score as `config` says -> Report."""
    check_places(config, config.generated, config.base_generated, config.sweep)
    rules = parse_rules(config.fail_on)
    get_descriptor(config.descriptor, trust_sha256=config.trust_sha256)
    generated, sweep, base = (folder and read_samples(folder)
                              for folder in (config.generated, config.sweep, config.base_generated))
    sizes = {cell: len(at) for cell, at in generated.cells.items()}
    if config.fail_on:
        check_power(rules, sizes)
    announce(rules, config, max(sizes.values()))
    manifest, heldout, left_out = take_in(config.train_data, config.heldout_data)
    check_images(config, manifest, heldout)
    with progress_bars(totals(generated, manifest, heldout, sweep, base)) as on_image:
        report = score_samples(
            generated, manifest, heldout, base=base, sweep=sweep, config=plain(config),
            title=config.title, rule=rules, left_out=left_out, on_image=on_image, **measuring(config))
    with output_folder(config.output_dir, config.overwrite) as draft:
        write_all(report, draft, config)
    return report


@exit_cleanly
def main(argv=None):
    config = parse(ScoreConfig, sys.argv[1:] if argv is None else argv, prog="rotescope score", description=__doc__)
    show_and_judge(score(config), config.output_dir, config.fail_on)


if __name__ == "__main__":
    main()
