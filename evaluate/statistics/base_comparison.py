"""Base against fine-tune: which prompts became memorized by this fine-tune, by similarity and by the prediction gap."""
import numpy as np
from scipy.stats import wilcoxon

from rotescope.common.errors import InputError


def against_base(samples, measured, base, base_measured, prompts):
    """samples and base: the same prompts and seeds; prompts: what measure.prompts_of says of `samples`
    -> {method, n, copies, base_copies, became_memorized, p, prompts: […]} for plain guidance, or the first method.

    A prompt became memorized by the fine-tune if it leaks (measure.prompts_of), and none of the base model's images on the same
    noise copies. p: Wilcoxon's signed-rank test that similarity rose, over prompts.
    """
    method = "none" if any(r.method == "none" for r in samples.records) else samples.records[0].method
    mate = {_key(r): i for i, r in enumerate(base.records)}
    told = {_prompt_key(p["prompt_index"], p["image"]): p for p in prompts if p["method"] == method}
    found = []
    for index, at in _positions(samples.records, method).items():
        lost = [samples.records[i] for i in at if _key(samples.records[i]) not in mate]
        if lost:
            what = lost[0].image if lost[0].prompt_index is None else f"of prompt {lost[0].prompt_index}, seed {lost[0].seed}"
            raise InputError(f"the base model's samples have no image {what}: sample the same prompts and seeds, under the same "
                             "names where there are no records")
        pair = [mate[_key(samples.records[i])] for i in at]
        found.append(_prompt(samples, measured, at, told[index]) | _base(base, base_measured, pair))
    for p in found:
        p["difference"] = p["similarity"] - p["base_similarity"]
        p["became_memorized"] = bool(p["leaked"] and not p["base_copies"])
    found.sort(key=lambda p: (-p["became_memorized"], -p["difference"]))
    return {"method": method, "n": len(found), "copies": sum(p["copies"] for p in found),
            "base_copies": sum(p["base_copies"] for p in found), "became_memorized": sum(p["became_memorized"] for p in found),
            "p": _rise([p["difference"] for p in found]), "prompts": found}


def _key(record):
    """What an image and its mate of the base model have alike."""
    return _prompt_key(record.prompt_index, record.image), record.prompt, record.seed


def _prompt_key(index, image):
    return image if index is None else index


def _positions(records, method):
    found = {}
    for i, r in enumerate(records):
        if r.method == method:
            found.setdefault(_prompt_key(r.prompt_index, r.image), []).append(i)
    return found


def _prompt(samples, measured, at, told):
    kept = ("group", "prompt_index", "prompt", "expected", "q", "significant", "leaked")
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
