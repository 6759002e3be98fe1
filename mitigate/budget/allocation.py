"""Where to spend images: on every prompt alike, or first where a detector points and then where a prompt's images agree. Pure.

    for jobs in ranked(scores, seeds, budget, agreement):   # [(prompt index, seed)]
        ...sample them...

A ranked sample is no random sample of the prompts: it finds prompts that leak, and its rates are of what was sampled.
"""
import math

import numpy as np

PLANS = ("uniform", "ranked")


def uniform(n, seeds, budget, seed=0):
    """n prompts -> at most `budget` jobs (prompt index, seed): one seed for all of them in an order drawn at random, then the
    next. So whatever the budget, it is a random sample of the prompts."""
    rng = np.random.default_rng(seed)
    return [(int(i), s) for s in seeds for i in rng.permutation(n)][:max(budget, 0)]


def widths(n, rounds, budget):
    """-> how many of n prompts get an image in each round: ⌊w / 2^k⌋ in round k = 0, 1, …, at most n, with the largest w for
    which they come to `budget` or less. Successive halving (Karnin et al., ICML 2013), begun as wide as the budget allows."""
    def tapered(w):
        return [min(n, w >> k) for k in range(rounds)]
    low, high = 0, n << rounds       # at `high` every round has all n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(tapered(middle)) <= budget else (low, middle - 1)
    return tapered(low)


def order_by_score(scores, among=None):
    """{prompt index: score} or a list of scores -> prompt indices (those in `among`), the highest first, ties in their order,
    those without a score (None) last."""
    among = range(len(scores)) if among is None else among
    return sorted(among, key=lambda i: math.inf if scores[i] is None else -scores[i])


def ranked(scores, seeds, budget, agreement):
    """Yields rounds of jobs [(prompt index, seed)], one seed a round, `budget` jobs or fewer in all, the most promising first.

    The first two rounds follow the scores (one a prompt, higher = more memorized). From the third on a prompt of the last round
    is known by two images or more, and agreement(prompt index), higher = more alike, decides which go on.
    """
    order = order_by_score(scores)
    for k, (seed, width) in enumerate(zip(seeds, widths(len(scores), len(seeds), budget), strict=True)):
        if k > 1:
            order = order_by_score({i: agreement(i) for i in order}, order)
        order = order[:width]
        if order:
            yield [(i, seed) for i in order]


def seeds_of(jobs):
    """Jobs -> {prompt index: its seeds}, both in the order of the jobs."""
    found = {}
    for i, seed in jobs:
        found.setdefault(i, []).append(seed)
    return found


def as_record(name, budget, n, rounds, scores=None, **about):
    """What a report says of a plan for n prompts: of each prompt its rank (from 1) and score where there are scores, and the
    images spent on it; about: the detector, and what its scores cost in images."""
    spent = seeds_of(job for jobs in rounds for job in jobs)
    order = range(n) if scores is None else order_by_score(scores)
    told = [{"prompt_index": i, **({} if scores is None else {"rank": rank, "score": scores[i]}), "images": len(spent.get(i, ()))}
            for rank, i in enumerate(order, 1)]
    return {"name": name, "budget": budget, **about, "images": sum(map(len, rounds)), "prompts": n, "sampled": len(spent),
            "rounds": [len(jobs) for jobs in rounds], "ranking": told}
