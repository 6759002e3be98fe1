"""The statistics of published tables, by name, out of one run. Pure.

Numbers of different descriptors do not compare: each entry says which descriptor its paper used, and whether this run did.
"""
import numpy as np

DCR = ("Somepalli et al. 2023", "sscd-disc-large-256-224-half")
MEMBENCH = ("Hong et al. 2024", "sscd-disc-large-288-imagenet")


def dcr(top1):
    """Similarity to the nearest training image (n,): mean, standard deviation, percentiles, share above .5."""
    top1 = np.asarray(top1, np.float64)
    if not len(top1):
        return None
    return {"mean": float(top1.mean()), "std": float(top1.std()), "share_over_0.5": float((top1 > 0.5).mean())} | {
        f"p{p}": float(np.percentile(top1, p)) for p in (75, 90, 95)}


def membench(similarity, prompt):
    """Similarity of images (n,) to their prompt's training image, prompt (n,): the best of each prompt and the mean of its best
    three, both averaged over prompts, and the share of images above .5."""
    similarity, (_, cluster) = np.asarray(similarity, np.float64), np.unique(np.asarray(prompt), return_inverse=True)
    best = [np.sort(similarity[cluster == c])[::-1] for c in range(cluster.max() + 1)]
    return {"max": float(np.mean([b[0] for b in best])), "top3": float(np.mean([b[:3].mean() for b in best])),
            "share_over_0.5": float((similarity > 0.5).mean()), "n_prompts": len(best)}


def conventions(samples, measured, layer):
    """-> {"dcr": {paper, descriptor, comparable, train_to_train, methods: {method: {group: …}}}, "membench": …}.

    MemBench's similarity is to the prompt's own training image; where no prompt names one, to the nearest.
    """
    used, found = layer.index.descriptor.name, {"dcr": {}, "membench": {}}
    for (method, group), at in samples.cells.items():
        prompts = [r.image if r.prompt_index is None else r.prompt_index for r in (samples.records[i] for i in at)]
        own, top1 = measured.near.own[at], measured.near.top1[at]
        found["dcr"].setdefault(method, {})[group] = dcr(top1)
        found["membench"].setdefault(method, {})[group] = membench(np.where(np.isnan(own), top1, own), prompts)
    about = {name: {"paper": paper, "descriptor": descriptor, "comparable": used.startswith(descriptor), "methods": found[name]}
             for name, (paper, descriptor) in (("dcr", DCR), ("membench", MEMBENCH))}
    about["dcr"]["train_to_train"] = dcr(layer.nulls["train"])
    return about
