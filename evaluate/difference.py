"""Base against fine-tune: which prompts became memorized by this fine-tune, by similarity and by the prediction gap."""
import numpy as np
from scipy.stats import wilcoxon

from rotescope.errors import InputError


def against_base(samples, measured, base, base_measured, prompts):
    """samples and base: the same prompts and seeds; prompts: what measure.prompts_of says of `samples`
    -> {method, n, copies, base_copies, became_memorized, p, prompts: […]} for plain guidance, or the first method.

    A prompt became memorized by the fine-tune if its images copy a training image with significance, and none of the base
    model's on the same noise does. p: Wilcoxon's signed-rank test that similarity rose, over prompts.
    """
    method = "none" if any(r.method == "none" for r in samples.records) else samples.records[0].method
    mate = {_key(r): i for i, r in enumerate(base.records)}
    told = {p["prompt_index"]: p for p in prompts if p["method"] == method}
    found = []
    for index, at in _positions(samples.records, method).items():
        lost = [samples.records[i] for i in at if _key(samples.records[i]) not in mate]
        if lost:
            raise InputError(f"the base model's samples have no image of prompt {lost[0].prompt_index}, seed {lost[0].seed}: "
                             "sample the same prompts and seeds")
        pair = [mate[_key(samples.records[i])] for i in at]
        found.append(_prompt(samples, measured, at, told[index]) | _base(base, base_measured, pair))
    for p in found:
        p["difference"] = p["similarity"] - p["base_similarity"]
        p["became_memorized"] = bool(p["copies"] and p["significant"] and not p["base_copies"])
    found.sort(key=lambda p: (-p["became_memorized"], -p["difference"]))
    return {"method": method, "n": len(found), "copies": sum(p["copies"] for p in found),
            "base_copies": sum(p["base_copies"] for p in found), "became_memorized": sum(p["became_memorized"] for p in found),
            "p": _rise([p["difference"] for p in found]), "prompts": found}


def _key(record):
    return record.prompt_index, record.prompt, record.seed


def _positions(records, method):
    found = {}
    for i, r in enumerate(records):
        if r.method == method:
            found.setdefault(r.prompt_index, []).append(i)
    return found


def _prompt(samples, measured, at, told):
    kept = ("group", "prompt_index", "prompt", "expected", "q", "significant")
    return {k: told[k] for k in kept} | {
        "copies": int(measured.copied[at].sum()), "similarity": float(measured.near.top1[at].mean()),
        "first_gap": _first_gap(samples.records[i] for i in at)}


def _base(base, measured, at):
    return {"base_copies": int(measured.copied[at].sum()), "base_similarity": float(measured.near.top1[at].mean()),
            "base_first_gap": _first_gap(base.records[i] for i in at)}


def _first_gap(records):
    """Mean prediction gap of the first step that has one, over images; None without."""
    gaps = [next((g for g in r.prediction_gaps if not np.isnan(g)), np.nan) for r in records]
    return float(np.nanmean(gaps)) if not np.isnan(gaps).all() else None


def _rise(differences):
    differences = np.asarray(differences, np.float64)
    return float(wilcoxon(differences, alternative="greater").pvalue) if (differences != 0).any() else 1.0
