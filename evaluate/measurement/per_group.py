"""Numbers for each image -> findings for each prompt, and for each method and group of prompts."""
import numpy as np

from rotescope.evaluate.quality.fidelity import fidelity
from rotescope.evaluate.report.report_types import Pairing, PromptFindings, PValueBasis
from rotescope.evaluate.statistics.estimate import share_estimate
from rotescope.evaluate.statistics.replication import GroupFindings, mean, shares_over, sim95_estimate
from rotescope.evaluate.statistics.significance import FDR, benjamini_hochberg, null_needed, paired_p_value, rank_p_values

PAIRED = 2000  # prompts in the test of pairing: its matrix is images × prompts


# ----- per prompt

def prompt_findings(samples, measured, layer):
    """-> tuple of PromptFindings, one for each method and prompt.

    p: by rank of its highest similarity among layer.best_null; q: adjusted over the prompts of a method.
    leaked: its images copy, and chance does not explain it: they do with significance, or all but
    identically, and the prompt's own image if it has one.
    """
    found = []
    for method, by_prompt in _by_prompt(samples.records).items():
        top = np.array([measured.near.top1[at].max() for at in by_prompt.values()])
        p = rank_p_values(top, [len(at) for at in by_prompt.values()], layer.nulls[layer.best_null])
        for at, *figures in zip(by_prompt.values(), top, p, benjamini_hochberg(p), strict=True):
            found.append(_of_prompt(method, samples.records, measured, at, *figures))
    return tuple(found)


def _of_prompt(method, records, measured, at, top, p, q):
    r, own = records[at[0]], measured.near.own[at]
    copies, significant = int(measured.copied[at].sum()), bool(q <= FDR)
    return PromptFindings(
        r.group, r.prompt_index, r.prompt, r.image, len(at), copies, float(top), float(p), float(q), significant,
        leaked=bool(copies and significant or measured.identical[at].any()), expected=r.image_id,
        own_similarity=None if np.isnan(own).any() else float(own.max()), method=method)


def _by_prompt(records):
    """-> {method: {prompt index, or the image itself where it has none: positions}}."""
    methods: dict = {}
    for i, r in enumerate(records):
        methods.setdefault(r.method, {}).setdefault(_key(r), []).append(i)
    return methods


def _key(record):
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
    for (method, group), at in samples.cells.items():
        methods.setdefault(method, {})[group] = _of_group(
            [samples.records[i] for i in at], measured, at, layer, heldout_features,
            own.get((method, group), []), resolved)
    return methods


def _of_group(records, measured, at, layer, heldout_features, prompts, resolved):
    copied, top1 = measured.copied[at], np.asarray(measured.near.top1[at], np.float64)
    own, n_prompts = measured.own_copied[at], len({r.prompt_index for r in records})
    own = own[~np.isnan(own)]
    copies, told = int(copied.sum()), prompts and prompts[0].prompt_index is not None
    copy_rate = share_estimate(copies, len(at), n_prompts)
    return GroupFindings(
        n=len(at), copies=copies, copy_rate=copy_rate, above_chance=copy_rate.low > layer.chance,
        own_copies=int(own.sum()),
        own_copy_rate=share_estimate(int(own.sum()), len(own), n_prompts) if len(own) else None,
        sim95=sim95_estimate(top1, [_key(r) for r in records], n_prompts), top1_mean=float(top1.mean()),
        share_over=shares_over(top1),
        copies_by={name: int(m.copied[at].sum()) for name, m in measured.layers.items()},
        n_prompts=n_prompts,
        prompts_copied=len({r.prompt_index for r, c in zip(records, copied, strict=True) if c} - {None}),
        prompts_significant=sum(p.significant for p in prompts) if told else None,
        leaked_prompts=sum(bool(p.copies and p.leaked) for p in prompts),
        unresolved_prompts=0 if resolved else sum(bool(p.copies and not p.leaked) for p in prompts),
        alignment=mean(measured.alignment[at]), caption_accuracy=mean(measured.hit[at]),
        denoiser_rows=mean([r.denoiser_rows for r in records]),
        transition_timestep=mean([r.transition_timestep for r in records]),
        fidelity=fidelity(measured.features[at], heldout_features) if len(heldout_features) else None)
