"""Numbers for each image, and findings for each prompt -> findings for each method and group of prompts."""
import numpy as np

from rotescope.evaluate.measurement.per_prompt import positions_by_prompt, prompt_key
from rotescope.evaluate.quality.fidelity import fidelity
from rotescope.evaluate.report.report_types import Pairing, PromptFindings
from rotescope.evaluate.statistics.clusters import clustered_share
from rotescope.evaluate.statistics.replication import GroupFindings, mean, shares_over, sim95_estimate
from rotescope.evaluate.statistics.significance import paired_p_value

PAIRED = 2000  # prompts in the test of pairing: its matrix is images × prompts


def shuffled_pairing(samples, measured, layer):
    """Shuffled pairing of prompts and training images -> {method: Pairing} where
    prompts name their images."""
    found = {}
    for method, by_prompt in positions_by_prompt(samples.records).items():
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

def group_findings(samples, measured, layer, heldout_features=(), prompts=()):
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
            own.get((method, group), []))
    return methods


def _of_group(records, measured, at, layer, heldout_features, prompts):
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
        leaked_prompts=sum(p.leaked for p in prompts), unresolved_prompts=sum(p.unresolved for p in prompts),
        unresolved_prompts_any=sum(p.unresolved_any for p in prompts),
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
            "leaked_prompts_any": sum(p.leaked_any for p in prompts)}
