"""Numbers for each image -> findings for each prompt, and for each method and group of prompts."""
import numpy as np

from rotescope.evaluate.quality.fidelity import fidelity
from rotescope.evaluate.report.report_types import Pairing, PromptFindings, PValueBasis
from rotescope.evaluate.statistics.clusters import clustered_share
from rotescope.evaluate.statistics.replication import GroupFindings, mean, shares_over, sim95_estimate
from rotescope.evaluate.statistics.significance import FDR, benjamini_hochberg, null_needed, paired_p_value, rank_p_values

PAIRED = 2000  # prompts in the test of pairing: its matrix is images × prompts


# ----- per prompt

def prompt_findings(samples, measured, layer):
    """-> tuple of PromptFindings, one for each method and prompt.

    p: by rank of its highest similarity among layer.best_null; q: adjusted over the prompts of a method.
    leaked: its images copy, and chance does not explain it: they do with significance, by the descriptor or by
    verified matches, or all but identically, and the prompt's own image if it has one. leaked_any: the same of
    copies of a part; one of its own image is as sure.
    """
    found = []
    for method, by_prompt in _by_prompt(samples.records).items():
        top = np.array([measured.near.top1[at].max() for at in by_prompt.values()])
        p = rank_p_values(top, [len(at) for at in by_prompt.values()], layer.nulls[layer.best_null])
        matched = benjamini_hochberg(match_p_values(measured, by_prompt.values())) <= FDR
        for at, *figures in zip(by_prompt.values(), matched, top, p, benjamini_hochberg(p), strict=True):
            found.append(_of_prompt(method, samples.records, measured, at, *figures))
    return tuple(found)


def _of_prompt(method, records, measured, at, matched, top, p, q):
    """matched: whether so many verified matches are significant."""
    r, own = records[at[0]], measured.near.own[at]
    copies, partial, significant = int(measured.copied[at].sum()), int(measured.partial[at].sum()), bool(q <= FDR)
    verified = any(measured.verified_rows[i] for i in at)
    leaked = bool(copies and significant or measured.identical[at].any() or matched and verified)
    return PromptFindings(
        r.group, r.prompt_index, r.prompt, r.image, len(at), copies, partial, float(top), float(p), float(q), significant,
        leaked=leaked, leaked_any=bool(leaked or partial and (matched or measured.own_matched[at].any())), expected=r.image_id,
        own_similarity=None if np.isnan(own).any() else float(own.max()), method=method)


def match_p_values(measured, prompts):
    """prompts: positions of the images of each -> how likely chance alone verifies a match for any of its images; 1 where none
    has one. Of N null pictures of which k match, (k + 1) / (N + 1) is taken for the chance, so a p is never below what N allow.
    """
    thresholds = measured.verified.thresholds.values() if measured.verified else ()
    chance = max(((t.chance * t.n + 1) / (t.n + 1) for t in thresholds), default=1.0)
    return np.array([_any_of(len(at), chance) if any(measured.matches[i] for i in at) else 1.0 for at in prompts])


def _any_of(n, chance):
    """That one of n or more happens, each with this chance."""
    return 1 - (1 - chance) ** n


def _match_null_suffices(measured, prompts):
    """Whether one of these PromptFindings alone could be significant by its verified matches."""
    smallest = max((1 / (t.n + 1) for t in measured.verified.thresholds.values()), default=1.0) if measured.verified else 0
    return not prompts or _any_of(min(p.n for p in prompts), smallest) * len(prompts) <= FDR


def _by_prompt(records):
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
    """What the p-values rest on, and whether one could be significant at all -> PValueBasis."""
    methods = _by_prompt(samples.records).values()
    images = min(len(at) for prompts in methods for at in prompts.values())
    m, needed = len(layer.nulls[layer.best_null]), null_needed(max(map(len, methods)), images)
    return PValueBasis(layer.best_null, m, images / (m + images), FDR, needed if m < needed else None)


def shuffled_pairing(samples, measured, layer):
    """Shuffled pairing of prompts and training images -> {method: Pairing} where
    prompts name their images."""
    found = {}
    for method, by_prompt in _by_prompt(samples.records).items():
        known = [at for at in by_prompt.values()
                 if samples.records[at[0]].image_id in layer.index.rows][:PAIRED]
        rows = [layer.index.rows[samples.records[at[0]].image_id] for at in known]
        if len(set(rows)) > 1:
            images = np.concatenate(known)
            prompt = np.repeat(np.arange(len(known)), [len(at) for at in known])
            similarity = measured.vectors[images] @ layer.index.vectors[np.array(rows)].T
            found[method] = Pairing(*map(float, paired_p_value(similarity, prompt)))
    return found


# ----- per method and group

def group_findings(samples, measured, layer, heldout_features=(), prompts=(), resolved=True):
    """Measured images -> findings by method and group.

    Parameters
    ----------
    samples : Samples
    measured : Measured
        Of the same images.
    layer : Layer
        The calibrated one.
    heldout_features : array (m, f), optional
        For the distance to held-out pictures.
    prompts : tuple of PromptFindings
        Of the same samples.
    resolved : bool
        Whether any prompt could be significant at all.

    Returns
    -------
    dict
        {method: {group: GroupFindings}}, in the order of reports.
    """
    methods: dict[str, dict[str, GroupFindings]] = {}
    own: dict[tuple[str, str], list[PromptFindings]] = {}
    for p in prompts:
        own.setdefault((p.method, p.group), []).append(p)
    told = {method: (resolved, _match_null_suffices(measured, [p for p in prompts if p.method == method]))
            for method, _ in samples.cells}
    for (method, group), at in samples.cells.items():
        methods.setdefault(method, {})[group] = _of_group(
            [samples.records[i] for i in at], measured, at, layer, heldout_features,
            own.get((method, group), []), *told[method])
    return methods


def _of_group(records, measured, at, layer, heldout_features, prompts, resolved, matches_resolved):
    """resolved, matches_resolved: whether any prompt could be significant at all, by similarity and by verified matches."""
    copied, top1 = measured.copied[at], np.asarray(measured.near.top1[at], np.float64)
    whose, own = np.array([str(prompt_key(r)) for r in records]), measured.own_copied[at]
    known = ~np.isnan(own)
    copies, told = int(copied.sum()), prompts and prompts[0].prompt_index is not None
    copy_rate = clustered_share(copied, whose)
    verifiers = measured.verified.thresholds if measured.verified else ()
    by = [measured.copied_by(i) for i in at]
    return GroupFindings(
        n=len(at), copies=copies, copy_rate=copy_rate, above_chance=copy_rate.low > layer.chance + measured.match_chance,
        own_copies=int(own[known].sum()),
        own_copy_rate=clustered_share(own[known], whose[known]) if known.any() else None,
        **_partial(measured, at, whose, prompts),
        sim95=sim95_estimate(top1, whose, copy_rate.n_prompts), top1_mean=float(top1.mean()),
        share_over=shares_over(top1),
        copies_by={name: sum(name in layers for layers in by) for name in (*measured.layers, *verifiers)},
        n_prompts=copy_rate.n_prompts,
        prompts_copied=len({r.prompt_index for r, c in zip(records, copied, strict=True) if c} - {None}),
        prompts_significant=sum(p.significant for p in prompts) if told else None,
        leaked_prompts=sum(bool(p.copies and p.leaked) for p in prompts),
        unresolved_prompts=0 if resolved else sum(bool(p.copies and not p.leaked) for p in prompts),
        unresolved_prompts_any=sum(bool((p.copies and not resolved or p.partial_copies and not matches_resolved)
                                        and not p.leaked_any) for p in prompts),
        alignment=mean(measured.alignment[at]), caption_accuracy=mean(measured.hit[at]),
        denoiser_rows=mean([r.denoiser_rows for r in records]),
        transition_timestep=mean([r.transition_timestep for r in records]),
        fidelity=fidelity(measured.features[at], heldout_features) if len(heldout_features) else None)


def _partial(measured, at, whose, prompts):
    """whose (n,): the prompt of each -> the fields of GroupFindings on copies of a part; None where they were not sought."""
    if measured.verified is None:
        return {"partial_copies": None, "partial_copy_rate": None, "partial_above_chance": False, "leaked_prompts_any": None}
    rate = clustered_share(measured.partial[at], whose)
    return {"partial_copies": int(measured.partial[at].sum()), "partial_copy_rate": rate,
            "partial_above_chance": rate.low > measured.match_chance,
            "leaked_prompts_any": sum(bool((p.copies or p.partial_copies) and p.leaked_any) for p in prompts)}
