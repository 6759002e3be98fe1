"""Which images are to be brought back, and by which words."""
from dataclasses import dataclass

import numpy as np

from rotescope.common.errors import InputError
from rotescope.datasets.captions.paraphrase import paraphrases
from rotescope.datasets.manifest import Example
from rotescope.mitigate.prompts.prompt import HELDOUT, Prompt, caption_prompts


@dataclass(frozen=True)
class Target:
    """An image to bring back."""
    example: Example
    group: str   # "duplicated", "control", "training" where there is no plan, or HELDOUT

    @property
    def prompt(self):
        return self._named(self.example.captions[0])

    def captions(self, limit):
        """Prompts of its own captions."""
        return [self._named(text) for text in self.example.captions[:limit]]

    def paraphrases(self, limit):
        """Prompts that say its first caption in other words."""
        return [self._named(t) for t in paraphrases(self.example.captions[0]) if t not in self.example.captions][:limit]

    def _named(self, text):
        return Prompt(text, self.group, self.example.image_id)


def choose_targets(manifest, heldout=(), image_ids=(), groups=("duplicated", "control"), limit=8):
    """-> Targets: the named training images, or the first of each group; then, evenly taken, held-out ones, at most `limit`.

    Held-out pictures do not count that have no caption, are training images, or bear a caption of an image that was duplicated or
    is itself a target: a search from such a caption starts beside another image. InputError for an unknown id, or if none is
    left.
    """
    examples = {e.image_id: e for e in manifest}
    unknown = [i for i in image_ids if i not in examples]
    if unknown:
        raise InputError(f"no training image is called {unknown[0]!r}: take an image_id of the manifest, or of an audit's report")
    ids = dict.fromkeys(image_ids or (p.image_id for p in caption_prompts(manifest, groups, limit)))
    known, taken = {e.sha256 for e in manifest}, {c for e in manifest if e.group == "duplicated" or e.image_id in ids
                                                  for c in e.captions}
    fresh = [e for e in heldout if e.captions and e.sha256 not in known and not taken & set(e.captions)]
    if len(heldout) and not fresh:
        raise InputError("every held-out picture is a training image, bears a training caption or has none: name others")
    even = np.unique(np.linspace(0, len(fresh) - 1, min(limit, len(fresh))).astype(int)) if fresh else ()
    return [*(Target(examples[i], examples[i].group or "training") for i in ids), *(Target(fresh[i], HELDOUT) for i in even)]
