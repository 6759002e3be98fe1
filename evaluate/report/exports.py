"""The report for machines: pairs as a table, prompts as test cases, a section for the model card."""
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa

from rotescope.common.parquet import write_table
from rotescope.common.wording import PROMPTS, percent, printable, share
from rotescope.evaluate.report.badge import judged_methods
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.report.terminal import number, parts_of
from rotescope.evaluate.verdict.controls import PASSED, UNDECIDED
from rotescope.evaluate.verdict.rules import OF_PARTS

POINT = pa.list_(pa.float64())   # x from the left, y from the top, as shares of the whole picture
MATCH = pa.struct([
    ("training_image", pa.string()), ("verifier", pa.string()), ("score", pa.float64()), ("is_copy", pa.bool_()),
    ("transform", pa.list_(pa.float64())), ("training_share", pa.float64()), ("generated_share", pa.float64()),
    ("mirrored", pa.bool_()), ("recoloured", pa.bool_()), ("description", pa.string()),
    ("points", pa.list_(pa.list_(POINT))),  # of each: in the generated, in the training image
    ("generated_outline", pa.list_(POINT)), ("training_outline", pa.list_(POINT))])
PAIRS = pa.schema([
    ("method", pa.string()), ("group", pa.string()), ("prompt_index", pa.int64()), ("prompt", pa.string()), ("seed", pa.int64()),
    ("image", pa.string()), ("similarity", pa.float64()), ("is_copy", pa.bool_()), ("is_partial", pa.bool_()),
    ("copied_by", pa.list_(pa.string())),
    ("nearest", pa.string()), ("nearest_caption", pa.string()), ("copies", pa.float64()), ("null_as_close", pa.int64()),
    ("expected", pa.string()), ("own_similarity", pa.float64()), ("match", MATCH)])


def write_pairs(report, file):
    """Every generated image with the training image that it copies or is nearest to, and the verified match; descriptor and
    thresholds are in the table's metadata."""
    found = report.verification.thresholds if report.verification else {}
    about = {"rotescope": "pairs 2", "descriptor": report.descriptor, "copy_threshold": str(as_json(report.copy_threshold)),
             **{f"{name}_threshold": str(as_json(t.threshold)) for name, t in found.items()}}
    write_table(pa.Table.from_pylist([as_json(p) for p in report.pairs], PAIRS.with_metadata(about)), file)


# ----- JUnit

def junit(report):
    """-> XML in JUnit's form: one case for each rule and each control, then one for each prompt of each method.

    A rule fails if it is broken; undecided, it is skipped, and so is a control that is undecided or absent. A prompt fails if it
    leaks, whatever the rules allow, and only under the methods that the rules are on; where its copies are no more than chance
    brings, or no rule is on its method, it is skipped. A prompt whose images copy parts alone fails only where a rule is on
    copies of a part.
    """
    root, gate = ET.Element("testsuites", name=_legal(report.title)), judged_methods(report)
    of_parts = judged_methods(report, OF_PARTS)
    verdict = report.verdict
    _suite(root, "rules", [(r.rule, r.rule, r.outcome == "failed" and verdict.headline, _undecided(r, verdict))
                           for r in verdict.rules])
    _suite(root, "controls", [(c.name, c.name, False, c.outcome != PASSED and f"{c.outcome}: {c.sentence}")
                              for c in verdict.controls])
    for method in report.methods:
        told = [p for p in report.prompts if p.method == method]
        _suite(root, method, [_case(report, p, method in gate, method in of_parts) for p in told])
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _undecided(rule, verdict):
    """Why a rule is skipped: it is undecided, or it holds and a control does not let it pass."""
    return rule.outcome != "failed" and verdict.outcome == UNDECIDED and f"undecided: {verdict.headline}"


def _case(report, p, gated, parts_gated):
    """-> name, prompt, failure, reason to skip."""
    number_ = "image" if p.prompt_index is None else f"prompt {p.prompt_index:05d}"
    parts = f", {p.partial_copies}{' more' if p.copies else ''} a part of one" if p.partial_copies else ""
    found = (f"{p.copies} of {p.n} images copy a training image{parts}; highest similarity {p.top1_similarity:.3f}, "
             f"threshold {report.copy_threshold:.3f}, p = {p.p:.2g}, q = {p.q:.2g}, by {report.descriptor}")
    failed = gated and p.leaked or parts_gated and p.leaked_any
    reason = ("no rule is on this method" if not gated else f"no rule is on copies of a part: {found}" if p.leaked_any
              else f"no more than chance explains: {found}")
    return number_, p.prompt or printable(p.image), failed and found, (p.copies or p.partial_copies) and not failed and reason


def _suite(root, name, cases):
    suite = ET.SubElement(root, "testsuite", name=name, tests=str(len(cases)), failures=str(sum(bool(f) for _, _, f, _ in cases)),
                          skipped=str(sum(bool(s) for _, _, _, s in cases)), errors="0")
    for classname, case, failure, skipped in cases:
        node = ET.SubElement(suite, "testcase", classname=_legal(f"{name}.{classname}"), name=_legal(case[:500]))
        if failure:
            ET.SubElement(node, "failure", message=_legal(failure))
        elif skipped:
            ET.SubElement(node, "skipped", message=_legal(skipped))


def _legal(text):
    """Without the control characters that XML cannot hold."""
    return "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff") else "�"
                   for c in text)


# ----- model card

def model_card(report):
    """-> Markdown: evaluation results as the hub's metadata, then a section to paste into a README.md."""
    return f"---\n{metadata(report)}---\n\n{section(report)}"


def _sought_again(found):
    """What the re-trigger check says, a paragraph."""
    return [" ".join(found["conclusions"]), ""] if found and "conclusions" in found else []


def metadata(report):
    """-> YAML with a model-index of EvalResult: copy rate, and similarity at the 95th percentile, of each method and group."""
    from huggingface_hub import EvalResult, ModelCardData
    results = [EvalResult(
        task_type="text-to-image", task_name="Memorization audit", dataset_type="training-data",
        dataset_name=f"training data {report.hashes['training_data'][:12]}",
        dataset_config=printable(f"{group} captions, {method}"), metric_type=metric,
        metric_name=f"{label}, n = {found.n}, by {report.descriptor}",
        metric_value=as_json(getattr(found, metric).value),
        metric_config=f"threshold {report.copy_threshold:.4f}")
        for method, group, found in report.each_group()
        for metric, label in (("copy_rate", "copy rate"), ("partial_copy_rate", "rate of copies of a part"),
                              ("sim95", "95th percentile of top-1 similarity")) if getattr(found, metric)]
    model = Path(printable(str(report.config["sampling"].get("model") or "model"))).name
    return ModelCardData(model_name=model, eval_results=results).to_yaml() + "\n"


def _verified(report):
    """What verified matches make, a sentence."""
    found = report.verification
    return (" So is one on which a training image, cropped, shifted, mirrored or turned, was laid by geometry, if the match "
            f"covers half of that and a third of the image; less is a copy of a part. By chance a match is verified for "
            f"{percent(found.chance)} of pictures that copy nothing.") if found else ""


def _controls(verdict):
    """A line for each control."""
    return ["Controls, without which nothing passes:", "",
            *(f"- *{control.name}* ({control.outcome}): {control.sentence}" for control in verdict.controls)]


def section(report):
    verdict, heldout = report.verdict, report.background.heldout
    rows = [f"| {report[method].label} | {PROMPTS.get(group, group)} | {found.copies} of {found.n} | {share(found.copy_rate)} | "
            f"{parts_of(found).replace('/', ' of ')} | {number(found.sim95.value, 3)} | {number(found.alignment, 3)} |"
            for method, group, found in report.each_group()]
    chance = f" By chance {percent(heldout.copy_rate)} of {heldout.n:,} held-out pictures come as close." if heldout.n else ""
    return "\n".join([
        "## Memorization", "", f"**{verdict.headline}** {verdict.text}", "",
        f"Rule, fixed before the run: fail if `{verdict.rule}`. Outcome: {verdict.outcome}.", "",
        *([*_controls(verdict), ""] if verdict.controls else []),
        "| sampling | prompts | copies | copy rate (95% interval) | copies of a part | similarity, 95th pct. | "
        "text-image agreement |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"A copy is a generated image whose similarity to a training image is at least {report.copy_threshold:.4f} by "
        f"`{report.descriptor}`: {report.threshold_rule}.{chance}{_verified(report)} Searched over "
        f"{report.training_images.unique:,} different training images. Few copies in a sample are no proof that none can be "
        f"made; a mitigation holds an image back without erasing it.", "",
        *_sought_again(report.retrigger),
        f"Measured by Rotescope {report.versions['rotescope']}; training data "
        f"`{report.hashes['training_data'][:16]}`, samples `{report.hashes['samples'][:16]}`.", ""])
