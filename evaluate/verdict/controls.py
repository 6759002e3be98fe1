"""Controls: whether the measurement could have found something. Without them a pass means nothing. Pure."""
import math
from dataclasses import dataclass

from rotescope.common.wording import exact_number, percent
from rotescope.evaluate.verdict.rules import UNRESOLVED

PASSED, UNDECIDED, ABSENT = "passed", "undecided", "absent"
CHANGED = 1e-3       # of the output's size: what a LoRA must change in it
DRAWN = 0.95         # share of the images that must show something
OWN_SET = 0.5        # share of the smaller set's pictures that both sets must have
KNOWS = 0.05         # p-value of "it knows these pictures no better than others", at most
FOUND = 0.5          # share of the planted copies that must be found
LEAST_PROMPTS = 20   # or as many as there are training pictures
LEAST_IMAGES = 59    # a share of 5 % shows itself in so many images in 95 of 100 runs: .95^59 < .05


@dataclass(frozen=True)
class Control:
    """One check on the measurement, as a line of the report.

    A broken rule stays failed whatever the controls say; a verdict passes only if no control is undecided.
    """
    name: str                 # attached, drawn, the right set, a planted copy is found, enough
    outcome: str              # passed, undecided, or absent: it cannot be asked of what was given
    figure: float | None      # the number that the sentence speaks of
    sentence: str


@dataclass(frozen=True)
class AdapterEffect:
    """What a LoRA changes in the output on one prompt and noise."""
    change: float             # ‖with − without‖ / ‖without‖ of the latents


@dataclass(frozen=True)
class SetEvidence:
    """Why the training set should be the one that the model has seen."""
    kind: str                 # manifest, recall, header, trusted, repaired, or nothing
    # manifest: pictures that both have; recall: training pictures that were looked at; header: pictures that it counts;
    # repaired: pictures of the set that the model copied before its repair
    known: int = 0
    # manifest: pictures of the smaller set; recall: held-out pictures that were looked at; header: training pictures
    of: int = 0
    better: float = 0.5       # recall: how often a training picture comes back better than a held-out one
    p: float = 1.0            # recall: that they come back no better
    said: float | None = None   # header: showings of an epoch that it counts, repeats included; None where it counts none
    shown: float = 0.0          # header: showings of an epoch of the training data

    @property
    def contradicts(self):
        """Whether a header counts other pictures than the training data hold."""
        return self.kind == "header" and self.known != self.of


# ----- is the model the right one, and what it drew

def attached_control(effect=None, equal=None, n=0):
    """effect: AdapterEffect of the LoRA, or None; equal: how many of n images are the base model's to the bit, or None where
    the base was not sampled -> Control."""
    if equal is not None and n and equal == n:
        return Control("attached", UNDECIDED, 0.0, f"All {n:,} images are the base model's to the bit: what was fine-tuned has "
                       "no part in them. See that the right model, and the right LoRA, was named.")
    if effect is not None:
        told = f"On one prompt and noise the LoRA changes the output by {percent(effect.change)} of its size"
        if not effect.change >= CHANGED:
            return Control("attached", UNDECIDED, effect.change, f"{told}: hardly at all. Its strength is near 0, or it was "
                           "merged into the model before.")
        return Control("attached", PASSED, effect.change, f"{told}.")
    if equal is not None and n:
        return Control("attached", PASSED, 1 - equal / n, f"{n - equal:,} of {n:,} images differ from the base model's.")
    return Control("attached", ABSENT, None, "No LoRA or base was there to compare with, so nothing shows that what was "
                   "fine-tuned has a part in these images.")


def drawn_control(empty, n, example=""):
    """empty: how many of n images show nothing, {flat: …, noise: …}; example: one of them -> Control."""
    nothing = sum(empty.values())
    share = 1 - nothing / n
    if share >= DRAWN:
        rest = f"; {nothing:,} {_show(nothing)} nothing" if nothing else ""
        return Control("drawn", PASSED, share, f"{n - nothing:,} of {n:,} images show something{rest}.")
    kinds = " and ".join(f"{count:,} {kind}" for kind, count in empty.items() if count)
    return Control("drawn", UNDECIDED, share, f"{nothing:,} of {n:,} images {_show(nothing)} nothing ({kinds}), for instance "
                   f"{example}: look at what the model draws; --dtype fp32 mends an overflow in half precision.")


def _show(n):
    return "shows" if n == 1 else "show"


# ----- is the training set the right one

def right_set_control(evidence=None, own=None, of=0, leaked=0):
    """Whether the training set is the one that the model has seen -> Control.

    evidence: SetEvidence, or None where nothing is known of the model. own: how many of the `of` training pictures that the
    images' records name are in the set, None where none is named. leaked: prompts whose copies chance does not explain.
    """
    name, ask = "the right set", "is it the right training set?"
    if leaked:
        return Control(name, PASSED, float(leaked), f"The images of {leaked:,} prompts copy pictures of this training set, so "
                       "the model has seen it.")
    if own is not None and own < OWN_SET * of:
        return Control(name, UNDECIDED, own / of, f"The images were made from captions of {of:,} training pictures, of which "
                       f"{own:,} are in these training data: {ask} Name the data that the model was trained on.")
    if evidence is None:
        return Control(name, ABSENT, None, "Nothing is known of the model that made these images, so nothing shows that "
                       "these are the pictures it was trained on.")
    return _by_evidence(name, ask, evidence)


def _by_evidence(name, ask, found):
    if found.kind == "trusted":
        return Control(name, PASSED, None, "That the model was trained on these data is taken on trust (--trust_train_data).")
    if found.kind == "repaired":
        return Control(name, PASSED, float(found.known), f"Before it was repaired, its images copied {found.known:,} pictures of "
                       "this training set, so it has seen it.")
    if found.kind == "manifest":
        share = found.known / max(found.of, 1)
        told = f"{found.known:,} of {found.of:,} pictures are in the manifest beside the model, too"
        if share >= OWN_SET:
            return Control(name, PASSED, share, f"{told}.")
        return Control(name, UNDECIDED, share, f"{told}: {ask} Name that manifest, or say --trust_train_data if the same "
                       "pictures are only encoded anew.")
    if found.kind == "header":
        told = f"The header of the LoRA counts {found.known:,} training pictures{_times(found.said)}, and these data hold " \
               f"{found.of:,}{_times(found.shown if found.said else None)}"
        if found.contradicts:
            return Control(name, UNDECIDED, float(found.known), f"{told}: {ask} If you know that it is, say --trust_train_data.")
        other = found.said is not None and abs(found.said - found.shown) > 1e-6 * found.shown
        more = ": the same pictures at another dose, so name the data as they were trained, with their repeats" if other else ""
        return Control(name, PASSED, float(found.known), f"{told}{more}.")
    if found.kind == "recall":
        told = (f"A noised training picture comes back better than a noised held-out one in {percent(found.better)} of the pairs "
                f"of {found.known:,} and {found.of:,} (p = {found.p:.2g})")
        if found.p <= KNOWS:
            return Control(name, PASSED, found.better, f"{told}, so the model has seen these pictures.")
        return Control(name, UNDECIDED, found.better, f"{told}, so this model knows these pictures no better than others: {ask} "
                       "If you know that it is, say --trust_train_data.")
    return Control(name, UNDECIDED, None, f"Nothing shows that the model was trained on these data: {ask} Name held-out "
                   "pictures with captions (--heldout_data), on which its memory can be tried, or say --trust_train_data.")


def _times(shown):
    return "" if shown is None else f" (shown {exact_number(shown)} times in an epoch)"


# ----- would a copy have been found, and was enough looked at

def planted_control(found, n, edits):
    """found: how many of n planted copies were found; edits: what was done to them -> Control."""
    told = (f"Of {n:,} training pictures planted among the images ({', '.join(edits)}) this audit finds {found:,} "
            f"({percent(found / n)})")
    if found >= FOUND * n:
        return Control("a planted copy is found", PASSED, found / n, f"{told}.")
    return Control("a planted copy is found", UNDECIDED, found / n, f"{told}: it would miss most copies of these pictures. Take "
                   "--verify true, another --descriptor, or training data without near-duplicates.")


@dataclass(frozen=True)
class Looked:
    """How much was looked at under one method."""
    prompts: int
    images: int
    named: bool = True        # whether it is known which images belong to one prompt


def enough_control(rules, looked, training_images, null_needed=None, null_n=0):
    """looked: {method that a rule is on: Looked}; training_images: how many there are; null_needed: null pictures it takes for a
    leak to be significant, if there are fewer, null_n -> Control."""
    least = min(LEAST_PROMPTS, training_images)
    few = min(looked.values(), key=lambda one: (one.prompts, one.images))
    whose = f" of {_counted(few.prompts, 'prompt')}" if few.named else ""
    told = f"{_counted(few.images, 'image')}{whose} {'was' if few.images == 1 else 'were'} looked at"
    missing = [*_more_prompts(few, least), *_more_images(few, least)]
    if null_needed and any(rule.metric in UNRESOLVED for rule in rules):
        missing.append(f"{null_needed - null_n:,} more held-out pictures, for among {null_n:,} no likeness is significant")
    if missing:
        return Control("enough", UNDECIDED, float(few.images), f"{told}. It takes {'; and '.join(missing)}.")
    return Control("enough", PASSED, float(few.images), f"{told}.")


def _more_prompts(few, least):
    if few.prompts < least and few.named:
        yield f"{_counted(least - few.prompts, 'more prompt')} (at least {least:,})"


def _more_images(few, least):
    """Images of one prompt are alike, so more seeds serve only where there are prompts enough."""
    if few.images < LEAST_IMAGES:
        prompts = max(few.prompts, least)
        yield (f"{_counted(LEAST_IMAGES - few.images, 'more image')} (at least {LEAST_IMAGES}; with {prompts:,} prompts that is "
               f"{math.ceil(LEAST_IMAGES / prompts):,} seeds), for among fewer a share of 5% may not show itself")


def _counted(n, what):
    return f"{n:,} {what}{'' if n == 1 else 's'}"


# ----- together

DOUBTS = {  # name -> what a headline says where it is undecided
    "attached": "the fine-tune has no part in the images",
    "drawn": "the images show nothing",
    "the right set": "these may not be the pictures that the model was trained on",
    "a planted copy is found": "most planted copies were missed",
    "enough": "too little was looked at"}


def doubts_of(controls):
    """-> the controls that leave a verdict undecided."""
    return [control for control in controls if control.outcome == UNDECIDED]
