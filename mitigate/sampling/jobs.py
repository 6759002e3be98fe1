"""Which image is made where: prompts × seeds as jobs, in batches and in calls of a pipeline, and the noise of each."""
from collections import Counter
from itertools import groupby

from rotescope.mitigate.contract.families import FAMILIES, family
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt
from rotescope.models.seeds import hashed_integer


def noise_seed(prompt, seed, occurrence=0):
    """The seed of an image's own generator: a different noise for each prompt and each seed, the same in every run.

    occurrence: how often the prompt came before in its list, so that each of its draws is an image of its own.
    """
    drawn = f"{seed} {occurrence}" if occurrence else f"{seed}"
    return hashed_integer(f"{drawn}\n{prompt}", 6)


def occurrences(prompts):
    """Of each prompt: how many of the same text come before it. An embedding makes another prompt of the same text."""
    seen: Counter = Counter()
    for p in prompts:
        yield seen[p.text]
        seen[p.text] += not isinstance(p, EmbeddedPrompt)


def jobs_of(prompts, seeds):
    """seeds: those of every prompt, or {prompt index: its own} -> [(prompt index, seed)], prompt by prompt."""
    own = seeds if isinstance(seeds, dict) else dict.fromkeys(range(len(prompts)), seeds)
    return [(i, seed) for i, some in own.items() for seed in some]


def batches(prompts, seeds, batch_size):
    """seeds: as jobs_of has them -> lists of at most batch_size jobs (prompt index, seed, noise seed), all of one size, prompt by
    prompt; the sizes come in the order in which prompts have them."""
    before, by_size = list(occurrences(prompts)), {}
    for i, seed in jobs_of(prompts, seeds):
        by_size.setdefault(prompts[i].size, []).append((i, seed, noise_seed(prompts[i].text, seed, before[i])))
    return [jobs[start:start + batch_size] for jobs in by_size.values() for start in range(0, len(jobs), batch_size)]


def calls_of(pipe, batch):
    """The jobs of a batch -> lists of those that one call may make: an image must not depend on its neighbours."""
    together = FAMILIES[family(pipe)].together if family(pipe) in FAMILIES else "prompt"
    if together == "images":
        return [batch]
    return [list(jobs) for _, jobs in groupby(batch, key=(lambda job: job[0]) if together == "prompt" else None)]
