"""Numbers for each image -> findings for each prompt: whether all its images together say that it leaks."""
import numpy as np

from rotescope.evaluate.measurement.lookalikes import LookAlikes
from rotescope.evaluate.nulls.calibration import EDITED
from rotescope.evaluate.report.report_types import PromptFindings, PValueBasis
from rotescope.evaluate.statistics.prompt_evidence import PromptEvidence, match_p, nearest_p, smallest_p
from rotescope.evaluate.statistics.significance import DOUBT, FDR, benjamini_hochberg, null_needed, tail_p_values


def prompt_findings(samples, measured, layer):
    """-> tuple of PromptFindings, one for each method and prompt.

    leaked: the images of the prompt together are closer to training images than chance explains (PromptEvidence.p, adjusted
    over the prompts of the method), or one is all but identical: with the prompt's own training image, or a verified copy of
    it, or with any where none is its own. leaked_any: the same of copies of a part; one of its own image is as sure.
    unresolved: neither that nor clean, since the adjusted p is below DOUBT; or it copies, and no p could have been small enough.
    """
    found = []
    for method, by_prompt in positions_by_prompt(samples.records).items():
        prompts = list(by_prompt.values())
        evidence, null = evidence_of(measured, layer, prompts), layer.nulls[layer.best_null]
        told = [smallest_p(len(at), null, e.tests) * len(prompts) <= FDR for at, e in zip(prompts, evidence, strict=True)]
        q, q_any = (benjamini_hochberg([getattr(e, p) for e in evidence]) for p in ("p", "p_any"))
        for at, *figures in zip(prompts, evidence, told, q, q_any, strict=True):
            found.append(_of_prompt(method, samples.records, measured, at, *figures))
    return tuple(found)


def evidence_of(measured, layer, prompts):
    """prompts: positions of the images of each, of one method -> their PromptEvidence."""
    closest = [int(np.argmax(measured.near.top1[at])) for at in prompts]
    nearest = [int(measured.near.row[at[i]]) for at, i in zip(prompts, closest, strict=True)]
    own = [int(measured.expected[at[0]]) for at in prompts]
    alike = LookAlikes(layer, measured.vectors, prompts, [o if o >= 0 else n for o, n in zip(own, nearest, strict=True)])
    thresholds = tuple(measured.verified.thresholds.values()) if measured.verified else ()
    null, evidence = layer.nulls[layer.best_null], []
    for at, i, row, expected in zip(prompts, closest, nearest, own, strict=True):
        at, others = list(at), [k for j, k in enumerate(at) if j != i]
        together = {"own": (at, expected)} if expected >= 0 else {}
        together |= {"agreement": (others, row)} if others else {}
        joint = {name: _joint_p(alike, *pair) for name, pair in together.items()}
        evidence.append(PromptEvidence(
            nearest_p(measured.near.top1[at], null), joint.get("own"), joint.get("agreement"),
            match_p(sum(bool(measured.verified_rows[k]) for k in at), len(at), thresholds),
            match_p(sum(bool(measured.matches[k]) for k in at), len(at), thresholds)))
    return evidence


def _joint_p(alike, at, row):
    return float(tail_p_values([alike.joint(at, row)], alike.null(len(at)))[0])


def _of_prompt(method, records, measured, at, evidence, resolvable, q, q_any):
    """resolvable: whether one copy could be told from chance at all; q, q_any: adjusted p-values."""
    r, own = records[at[0]], measured.near.own[at]
    copies, partial = int(measured.copied[at].sum()), int(measured.partial[at].sum())
    leaked = bool(q <= FDR or _sure(measured)[at].any())
    leaked_any = bool(leaked or q_any <= FDR or (measured.partial & measured.own_matched)[at].any())
    return PromptFindings(
        r.group, r.prompt_index, r.prompt, r.image, len(at), copies, partial, float(measured.near.top1[at].max()),
        evidence, evidence.p, float(q), bool(q <= FDR),
        leaked=leaked, leaked_any=leaked_any,
        unresolved=bool(not leaked and (q <= DOUBT or copies and not resolvable)),
        unresolved_any=bool(not leaked_any and (q_any <= DOUBT or (copies or partial) and not resolvable)),
        expected=r.image_id, own_similarity=None if np.isnan(own).any() else float(own.max()), method=method)


def _sure(measured):
    """(n,) whether an image is all but identical to the training image that its prompt belongs to; to any, where none is known,
    it must be the same picture but for its bytes, since the closest of very many images comes closer than the null."""
    exact = measured.layers.get("exact")
    same = exact.top1 >= EDITED if exact else np.zeros(len(measured.expected), bool)
    return measured.identical & ((measured.expected >= 0) | same)


def positions_by_prompt(records):
    """-> {method: {prompt index, or the image itself where it has none: positions}}."""
    methods: dict = {}
    for i, r in enumerate(records):
        methods.setdefault(r.method, {}).setdefault(prompt_key(r), []).append(i)
    return methods


def prompts_of(samples):
    """-> {(method, group): number of prompts}, as many as images where these do not say which is whose."""
    return {cell: len({prompt_key(samples.records[i]) for i in at}) for cell, at in samples.cells.items()}


def prompt_key(record):
    """Of a prompt: its index, or the image itself where it has none."""
    return record.image if record.prompt_index is None else record.prompt_index


def p_value_basis(samples, layer):
    """What the p-values rest on, and whether the prompt with the most images could be significant at all -> PValueBasis."""
    methods = positions_by_prompt(samples.records).values()
    images = min(len(at) for prompts in methods for at in prompts.values())
    null = layer.nulls[layer.best_null]
    needed = null_needed(max(map(len, methods)), images)
    return PValueBasis(layer.best_null, len(null), smallest_p(images, null), FDR, needed if len(null) < needed else None)
