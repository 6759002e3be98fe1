"""Numbers for each image -> findings for each prompt: whether all its images together say that it leaks."""
import numpy as np

from rotescope.evaluate.measurement.lookalikes import LookAlikes
from rotescope.evaluate.nulls.calibration import EDITED
from rotescope.evaluate.report.report_types import PromptFindings, PValueBasis
from rotescope.evaluate.statistics.prompt_evidence import PromptEvidence, least_nearest_p, match_p, nearest_p, smallest_p
from rotescope.evaluate.statistics.significance import DOUBT, FDR, benjamini_hochberg, null_needed, tail_p_values


def prompt_findings(samples, measured, layer):
    """-> tuple of PromptFindings, one for each method and prompt.

    leaked: the images of the prompt together are closer to training images than chance explains (PromptEvidence.p, adjusted
    over the prompts of the method, and no smaller than so many null pictures can show), or one is all but identical: with the
    prompt's own training image, or with any where none is its own; or its own image is verified in two of them, or in one on
    evidence that chance brings to none of so many images. leaked_any: the same of copies of a part. unresolved: neither that
    nor clean, since the adjusted p is below DOUBT, or its own image is copied or verified once, on less evidence; or it copies,
    and no p could have been small enough.
    """
    found = []
    for method, by_prompt in positions_by_prompt(samples.records).items():
        prompts = list(by_prompt.values())
        evidence, null = evidence_of(measured, layer, prompts), layer.nulls[layer.best_null]
        told = [smallest_p(len(at), null, e.tests) * len(prompts) <= FDR for at, e in zip(prompts, evidence, strict=True)]
        shown = [e.within(least_nearest_p(len(at), null)) for at, e in zip(prompts, evidence, strict=True)]
        q = [benjamini_hochberg([getattr(e, p) for e in some]) for some in (shown, evidence) for p in ("p", "p_any")]
        sure = _sure_copies(measured, sum(map(len, prompts)))
        for at, *figures in zip(prompts, evidence, told, *q, strict=True):
            found.append(_of_prompt(method, samples.records, measured, sure, at, *figures))
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


def _of_prompt(method, records, measured, sure, at, evidence, resolvable, q, q_any, doubt, doubt_any):
    """sure: as _sure_copies has it; resolvable: whether one copy could be told from chance at all; q, q_any: adjusted p-values,
    as far as the null is large enough to show; doubt, doubt_any: the same along its tail."""
    r, own = records[at[0]], measured.near.own[at]
    copies, partial = int(measured.copied[at].sum()), int(measured.partial[at].sum())
    own_matched, own_copied = measured.own_matched[at], measured.own_copied[at] == 1  # the latter by a verified match, too
    leaked = bool(q <= FDR or sure[0][at].any() or measured.own_verified[at].sum() > 1)
    leaked_any = bool(leaked or q_any <= FDR or sure[1][at].any() or own_matched.sum() > 1)
    return PromptFindings(
        r.group, r.prompt_index, r.prompt, r.image, len(at), copies, partial, float(measured.near.top1[at].max()),
        evidence, evidence.p, float(q), bool(q <= FDR),
        leaked=leaked, leaked_any=leaked_any,
        unresolved=bool(not leaked and (doubt <= DOUBT or own_copied.any() or copies and not resolvable)),
        unresolved_any=bool(not leaked_any and (doubt_any <= DOUBT or own_matched.any() or own_copied.any()
                                                or (copies or partial) and not resolvable)),
        expected=r.image_id, own_similarity=None if np.isnan(own).any() else float(own.max()), method=method)


def _sure_copies(measured, n):
    """-> two arrays, over all images: whether each, one of n of a method, alone makes a leak, as a copy of the whole; of a part,
    too."""
    identical, strong = _identical(measured), _strong_own_matches(measured, n)
    return identical | measured.own_verified & strong, identical | measured.own_matched & strong


def _identical(measured):
    """(n,) whether an image is all but identical to the training image that its prompt belongs to; to any, where none is known,
    it must be the same picture but for its bytes, since the closest of very many images comes closer than the null."""
    exact = measured.layers.get("exact")
    if exact is None:
        return np.zeros(len(measured.expected), bool)
    return np.where(measured.expected >= 0, exact.own_copied == 1, exact.copied & (exact.top1 >= EDITED))


def _strong_own_matches(measured, n):
    """(…,) whether an image has a match with its prompt's own training image that chance brings to less than FDR of n images.

    A fresh picture of a caption can be laid on the training picture of that caption, if only just. A score is minus the
    logarithm of how rare it is (Evidence), so chance · exp(threshold − score) of pictures that copy nothing reach it.
    """
    if measured.verified is None:
        return np.zeros(len(measured.expected), bool)
    least = max(t.threshold + np.log((t.chance * t.n + 1) / (t.n + 1) * n / FDR) for t in measured.verified.thresholds.values())
    return np.array([any(m.row == row and m.score >= least for m in found)
                     for row, found in zip(measured.expected, measured.matches, strict=True)], bool)


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
    """What the p-values rest on, and whether a prompt with the fewest images could be significant at all -> PValueBasis."""
    methods = positions_by_prompt(samples.records).values()
    images = min(len(at) for prompts in methods for at in prompts.values())
    null = layer.nulls[layer.best_null]
    needed = null_needed(max(map(len, methods)), images)
    return PValueBasis(layer.best_null, len(null), smallest_p(images, null), FDR, needed if len(null) < needed else None)
