"""What the figures say of the rules, in words."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.wording import PROMPTS, name, percent, share
from rotescope.evaluate.verdict.best_mitigation import BestMitigation
from rotescope.evaluate.verdict.controls import DOUBTS, Control, doubts_of
from rotescope.evaluate.verdict.rules import OF_PARTS, RATES, UNRESOLVED, parse_rules


@dataclass(frozen=True)
class RuleOutcome:
    rule: str                    # as it was written
    outcome: str                 # passed, failed or undecided


@dataclass(frozen=True)
class Verdict:
    """What the rules, fixed before the run, say of the figures, and whether the controls let them."""
    outcome: str                 # passed, failed or undecided
    headline: str                # one sentence
    reasons: tuple[str, ...]     # the sentences that explain it
    rule: str                    # all rules as one text
    rules: tuple[RuleOutcome, ...]
    # prompts in each method and group that would decide, were no more of their images copies; None where
    needed: int | None
    #                              prompts alone would not, or nothing is open
    controls: tuple[Control, ...] = ()   # whether the measurement could have found something
    best: BestMitigation | None = None   # None where there is no mitigation, or nothing was copied

    derived: ClassVar = ("passed", "text")  # also in JSON

    @property
    def passed(self) -> bool | None:
        """None where too little is known."""
        return {"failed": False, "passed": True}.get(self.outcome)

    @property
    def text(self) -> str:
        return " ".join(self.reasons)


def verdict_on(methods, rules, chance, copied=None, plan=None, null_needed=None, match_chance=None, controls=(), best=None):
    """The figures against the rules. A broken rule fails whatever the controls say; only with all of them does one pass.

    Parameters
    ----------
    methods : dict
        {method: {group: GroupFindings}}.
    rules : str, Rule or several of them
        Nothing: the default rule.
    chance : float or None
        Share of held-out pictures over the copy threshold.
    copied : dict, optional
        {method: ids of the training images that it copies}.
    plan : dict, optional
        How the prompts were chosen, if not all of them were sampled alike.
    null_needed : int, optional
        Null pictures that significance would take, if there are fewer.
    match_chance : float, optional
        Share of pictures that copy nothing for which a match is verified; None where none was sought.
    controls : sequence of Control
        Whether the measurement could have found something.
    best : BestMitigation, optional
        The mitigation that the text names.

    Returns
    -------
    Verdict
    """
    rules = parse_rules(rules)
    outcomes = {rule: rule.outcome(methods, copied or {}) for rule in rules}
    missing = doubts_of(controls)
    judged = next(o for o in ("failed", "undecided", "passed") if o in outcomes.values())
    outcome = "undecided" if judged == "passed" and missing else judged
    gate = {m: methods[m] for m in dict.fromkeys(m for rule in rules for m in rule.scope(list(methods)))}
    named = any(rule.ids for rule, o in outcomes.items() if o == "failed")
    doubts = _doubts(methods, outcomes) if judged == "undecided" else []
    findings = [found for groups in gate.values() for found in groups.values()]
    return Verdict(
        outcome, _controlled(judged, missing) if missing and outcome == "undecided" else _headline(outcome, findings, named),
        (*_found(gate), *_planned(plan, gate), *_mitigated(best, gate), *_doubt(doubts, null_needed),
         *(control.sentence for control in missing if outcome == "undecided"), *_chance(chance), *_match_chance(match_chance)),
        " or ".join(map(str, rules)), tuple(RuleOutcome(str(rule), o) for rule, o in outcomes.items()),
        max((rule.prompts_for(found) or 0 for rule, found in doubts), default=0) or None, tuple(controls), best)


def _controlled(judged, missing):
    """The headline where controls do not let the rules pass; judged: what the figures alone say of these."""
    few = ["too little was measured"] if judged == "undecided" else []
    return f"Not decided: {'; '.join([*few, *(DOUBTS[control.name] for control in missing)])}."


def _doubts(methods, outcomes):
    """-> [(rule, GroupFindings that leave it undecided)]."""
    return [(rule, found) for rule, outcome in outcomes.items() if outcome == "undecided"
            for method in rule.scope(list(methods)) for found in methods[method].values()
            if rule.value(found) is not None and rule.highest(found) > rule.limit]


def _headline(outcome, findings, named):
    """named: whether a training image that a rule names was copied."""
    copies, parts, n = (sum(getattr(found, what) or 0 for found in findings) for what in ("copies", "partial_copies", "n"))
    if outcome == "undecided":
        return "Not decided: too little was measured for a verdict."
    if outcome == "passed":
        if copies:
            told = f"; {_parts_of(parts, n)}" if parts else ""
            return f"Reproduction of training images stays within the limit{told}."
        none = f"None of {n:,} images copies a training image"
        return f"{none} as a whole; {parts:,} {_copy(parts)} a part of one." if parts else f"{none}."
    if named or any(found.above_chance or found.leaked_prompts for found in findings):
        return "The generated images reproduce training images."
    if any(found.partial_above_chance or found.leaked_prompts_any for found in findings):
        return "The generated images reproduce parts of training images."
    return "A rule is broken, though by no more copies than chance brings."


def _copy(n):
    return "copies" if n == 1 else "copy"


def _parts_of(parts, n):
    return f"{parts:,} of {n:,} images {_copy(parts)} a part of one"


def _and_parts(found):
    """What is added to a sentence on copies."""
    n, more = found.partial_copies, " more" if found.copies else ""
    return f"; {n:,}{more} {_copy(n)} a part of one: {share(found.partial_copy_rate)}" if n else ""


def _found(gate):
    for method, groups in gate.items():
        for i, (group, found) in enumerate(groups.items()):
            source = "" if group == "ungrouped" else f" made from {PROMPTS.get(group, group)}"
            count = f"{found.copies:,} of {found.n:,}"
            if i:
                yield f"Of those{source}, {count} do: {share(found.copy_rate)}{_and_parts(found)}."
            else:
                yield (f"{_under(method, groups)}{count} images{source} copy a training image: {share(found.copy_rate)}"
                       f"{_and_parts(found)}.")


def _planned(plan, gate):
    if not plan:
        return
    if plan["name"] == "uniform":
        yield f"{plan['sampled']:,} of {plan['prompts']:,} prompts were sampled, drawn at random."
        return
    leaking = max(sum(found.prompts_copied for found in groups.values()) for groups in gate.values())
    yield (f"{leaking:,} prompts were found leaking among {plan['sampled']:,} sampled of {plan['prompts']:,}: those to which "
           f"{plan['detector']} pointed, and of them again those whose images agree. So these shares are of the sampled images "
           "alone; they say nothing of the prompts that were not sampled, nor how often an ordinary prompt leaks.")


def _under(method, groups):
    if method != "none":
        return f"With {name(method)}, "
    return "" if list(groups) == ["ungrouped"] else "With plain guidance, the model as it is, "


def _mitigated(best, gate):
    """What the best mitigation leaves of what plain guidance copies."""
    if not best or list(gate) != ["none"]:
        return
    found, known = best.found, best.plain_alignment and best.found.alignment is not None
    source = f" from {PROMPTS.get(best.group, best.group)}" if len(gate["none"]) > 1 else ""
    price = f", at {found.alignment / best.plain_alignment:.2f} × the text-image agreement" if known else ""
    yield (f"With {name(best.method)}, {found.copies:,} of {found.n:,}{source} still do: {share(found.copy_rate)}{price}"
           f"{_and_parts(found)}{_picked(best)}.")


def _picked(best):
    """What the choice means for the figure."""
    if best.optimistic:
        return f" (picked from {best.of} methods on these very images, so the figure is optimistic: sample two seeds or more)"
    return f" (picked from {best.of} methods on the other half of the seeds)" if best.of > 1 else ""


def _doubt(doubts, null_needed):
    """doubts: as _doubts has them; of each rule, the findings that would take the most."""
    for rule in dict.fromkeys(rule for rule, _ in doubts):
        found = max((f for r, f in doubts if r == rule), key=lambda f: (rule.prompts_for(f) or 0, -f.n))
        if rule.metric in RATES:
            needs, part = rule.prompts_for(found), " in part" if rule.metric in OF_PARTS else ""
            prompts = getattr(found, rule.metric).n_prompts
            copied = f"{getattr(found, RATES[rule.metric]):,} copied{part}"
            some = "1 prompt" if prompts == 1 else f"{prompts:,} prompts"
            yield (f"With {found.n:,} images of {some} and {copied}, the true rate may be as high as "
                   f"{percent(rule.highest(found))}: it takes {needs:,} prompts in each group, {needs - prompts:,} more, "
                   "and no more copies, to decide.")
        elif rule.metric in UNRESOLVED:
            n = getattr(found, UNRESOLVED[rule.metric])
            some = "1 prompt comes" if n == 1 else f"{n:,} prompts come"
            yield (f"{n:,} prompts copy, and with so few pictures to compare with nothing tells that from chance: it takes "
                   f"{null_needed:,} held-out or training pictures." if null_needed else
                   f"{some} closer to training pictures than chance often brings, though it may: take more images of "
                   f"{'it' if n == 1 else 'them'}, or more held-out pictures.")
        else:
            yield f"With {found.n:,} images, {rule.metric} may be as high as {rule.highest(found):.3f}: take more."


def _chance(chance):
    if chance is not None:
        yield f"By chance, {percent(chance)} of held-out pictures, which the model never saw, come as close."


def _match_chance(chance):
    if chance is not None:
        yield f"By chance, a match is verified for {percent(chance)} of pictures that copy nothing."
