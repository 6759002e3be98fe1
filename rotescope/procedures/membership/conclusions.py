"""What the signals of a set and of held-out pictures say, in numbers and in words."""
from rotescope.evaluate.statistics.set_inference import FEWEST, SetInference, infer_use
from rotescope.mitigate.detectors.loss_profile import SHARES

LEVEL_OF_USE = 0.05
TELLING = 0.7   # an AUC of the errors without a caption above which the pictures may differ by themselves


def told_of_set(of_set, of_heldout, seed=0):
    """Signals of the set and of held-out pictures, those with the caption first -> outcome, p, auc, numbers and conclusions."""
    found = infer_use(of_set, of_heldout, seed)
    alone = infer_use(of_set[:, len(SHARES):], of_heldout[:, len(SHARES):], seed)
    outcome = "undecided" if found is None else "used" if found.p <= LEVEL_OF_USE else "not shown"
    numbers = {"p": found.p, "auc": found.auc, "n_set": found.n_set, "n_heldout": found.n_heldout} if found else {
        "p": None, "auc": None, "n_set": len(of_set), "n_heldout": len(of_heldout)}
    return {"outcome": outcome, **numbers, "level": LEVEL_OF_USE, "auc_without_captions": alone and alone.auc,
            "conclusions": [_conclusion(outcome, found), *_hint(alone)]}


def _conclusion(outcome, found: SetInference | None):
    if found is None:
        return (f"undecided: too few pictures gave numbers, and {FEWEST} of the set and {FEWEST} held-out ones are the fewest "
                "that can tell")
    figures = (f"p = {found.p:.2g}; a picture of the set scores above a held-out one in {100 * found.auc:.0f} % of pairs, 50 % "
               f"being chance; {found.n_set} pictures of the set, {found.n_heldout} held-out ones")
    if outcome == "used":
        return f"the set was used in training, provided that the held-out pictures are of its kind and were not ({figures})"
    return f"nothing shows that the set was used in training, which does not show that it was not ({figures})"


def _hint(alone: SetInference | None):
    if alone and alone.auc > TELLING:
        yield (f"hint: the errors without a caption tell the two apart alone (AUC {alone.auc:.2f}): the pictures differ by "
               "themselves, or the model knows the set whatever it is asked; make sure that both are of one source, size and "
               "format")
