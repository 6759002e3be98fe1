"""What to ask a model for, beside the captions that it was trained on: sets of prompts, each a group of its own."""
from dataclasses import dataclass, replace
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.paraphrase import paraphrases
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.prompts.prompt import Prompt, at_most, caption_prompts, further_prompts, read_prompts, shuffled_prompts

FILE_SET = "file"


@dataclass(frozen=True)
class Sources:
    """What the sets are made of."""
    manifest: Manifest              # the training images
    heldout: Manifest | None = None
    file: str | Path | None = None  # of the user's own prompts
    paraphrases: int = 2            # of each caption, at most


def _captions(sources):
    """The first caption of each training image; of the duplicated and the control ones where the data have a plan. Where the
    trainer shuffles tags, the caption once shuffled, too."""
    return [replace(p, group=p.group or "captions") for p in _as_trained(sources.manifest)]


def _as_trained(manifest):
    return caption_prompts(manifest) + shuffled_prompts(manifest)


def _further(sources):
    """The captions after the first, of images that have several: each line of a caption file, where a trainer shows each."""
    return [replace(p, group=f"further {p.group}".rstrip()) for p in further_prompts(sources.manifest)]


def _paraphrases(sources):
    """Other words for the captions, apart by group; they belong to the same images, and no training image has them."""
    known = set(sources.manifest.captions())
    return [replace(p, text=text, group=f"paraphrase {p.group}".rstrip()) for p in caption_prompts(sources.manifest)
            for text in paraphrases(p.text, sources.paraphrases) if text not in known]


def _heldout(sources):
    """Each held-out caption once, without those that a training image has too."""
    if sources.heldout is None or not any(e.captions for e in sources.heldout):
        raise InputError("the prompt set heldout needs captions: name held-out data that have some with --heldout_data")
    known = set(sources.manifest.captions())
    return [Prompt(text, "heldout") for text in sources.heldout.captions() if text not in known]


def _empty(sources):
    """What the model makes when it is asked for nothing."""
    return [Prompt("", "empty")]


def _file(sources):
    """The user's own prompts; groups of theirs stay apart from one another and from the other sets."""
    return [replace(p, group=f"{FILE_SET} {p.group}".rstrip()) for p in read_prompts(sources.file)]


SETS = {  # name -> what makes its prompts of Sources
    "captions": _captions, "further_captions": _further, "paraphrases": _paraphrases, "heldout": _heldout, "empty": _empty}


def gather(names, sources, limit=None):
    """Names of SETS, and the user's file if there is one -> prompts, at most `limit` a group, the first ones;
    {group: {"prompts": how many there were, "sampled": how many are left}}.

    Captions without a group keep having none where they are the only set. InputError for an unknown or empty set, or none.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown or not (names or sources.file):
        raise InputError(f"no prompt set {unknown[0]!r}: take of {', '.join(SETS)}" if unknown else
                         f"there is nothing to ask the model for: name a prompt set, of {', '.join(SETS)}, or a file of prompts")
    made = {name: SETS[name](sources) for name in dict.fromkeys(names)} | ({FILE_SET: _file(sources)} if sources.file else {})
    bare = next((name for name, prompts in made.items() if not prompts), None)
    if bare:
        raise InputError(f"the prompt set {bare} holds no prompt: leave it out")
    if list(made) == ["captions"]:
        made = {"captions": _as_trained(sources.manifest)}
    prompts = [p for some in made.values() for p in some]
    kept = at_most(prompts, limit)
    return kept, {group or "ungrouped": {"prompts": n, "sampled": _sizes(kept)[group]} for group, n in _sizes(prompts).items()}


def _sizes(prompts):
    """-> {group: number of prompts}, in order of first use."""
    sizes = {}
    for p in prompts:
        sizes[p.group] = sizes.get(p.group, 0) + 1
    return sizes
