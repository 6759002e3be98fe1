"""What the figures say of the rules, in words."""
from rotescope.common.wording import PROMPTS, name, percent, share
from rotescope.evaluate.verdict.rules import RATES, parse_rules

KEPT = 0.9  # share of the alignment that a mitigation must leave to be called the best


def judge(methods, rules, chance, copied=None, plan=None, null_needed=None):
    """methods: {NAME: {GROUP: figures}}; chance: share of held-out pictures over the threshold, or None; copied: {NAME: ids of
    the training images that it copies}; plan: how the prompts were chosen, if not all of them were sampled alike; null_needed:
    null pictures that significance would take, if there are fewer -> {outcome, passed, headline, text, rule, rules, needed}.

    passed is None where too little is known for a headline; needed then tells how many images would do in each method and
    group, were no more of them copies, or is None where images alone would not.
    """
    rules = parse_rules(rules)
    outcomes = {rule: rule.outcome(methods, copied or {}) for rule in rules}
    outcome = next(o for o in ("failed", "undecided", "passed") if o in outcomes.values())
    gate = {m: methods[m] for m in dict.fromkeys(m for rule in rules for m in rule.scope(list(methods)))}
    cells = [cell for groups in gate.values() for cell in groups.values()]
    doubts = [] if outcome != "undecided" else [
        (rule, cell) for rule, o in outcomes.items() if o == outcome for method in rule.scope(list(methods))
        for cell in methods[method].values() if cell[rule.metric] is not None and rule.highest(cell) > rule.limit]
    sentences = [*_found(gate), *_planned(plan, gate), *_mitigated(methods, gate), *_doubt(doubts, null_needed), *_chance(chance)]
    return {"outcome": outcome, "passed": {"failed": False, "passed": True}.get(outcome),
            "headline": _headline(outcome, cells, any(rule.ids for rule, o in outcomes.items() if o == "failed")),
            "text": " ".join(sentences), "rule": " or ".join(map(str, rules)),
            "rules": [{"rule": str(rule), "outcome": o} for rule, o in outcomes.items()],
            "needed": max((rule.images_for(cell) or 0 for rule, cell in doubts), default=0) or None}


def _headline(outcome, cells, named):
    """named: whether a training image that a rule names was copied."""
    copies, n = (sum(cell[key] for cell in cells) for key in ("copies", "n"))
    if outcome == "undecided":
        return "Not decided: too little was measured for a verdict."
    if outcome == "passed":
        within = "Reproduction of training images stays within the limit."
        return within if copies else f"None of {n:,} images copies a training image."
    if named or any(cell["above_chance"] or cell["leaked_prompts"] for cell in cells):
        return "The generated images reproduce training images."
    return "A rule is broken, though by no more copies than chance brings."


def _found(gate):
    for method, groups in gate.items():
        for i, (group, cell) in enumerate(groups.items()):
            source = "" if group == "ungrouped" else f" made from {PROMPTS.get(group, group)}"
            count = f"{cell['copies']:,} of {cell['n']:,}"
            if i:
                yield f"Of those{source}, {count} do: {share(cell)}."
            else:
                yield f"{_under(method, groups)}{count} images{source} copy a training image: {share(cell)}."


def _planned(plan, gate):
    if not plan:
        return
    if plan["name"] == "uniform":
        yield f"{plan['sampled']:,} of {plan['prompts']:,} prompts were sampled, drawn at random."
        return
    leaking = max(sum(cell["prompts_copied"] for cell in groups.values()) for groups in gate.values())
    yield (f"{leaking:,} prompts were found leaking among {plan['sampled']:,} sampled of {plan['prompts']:,}: those to which "
           f"{plan['detector']} pointed, and of them again those whose images agree. So these shares are of the sampled images "
           "alone; they say nothing of the prompts that were not sampled, nor how often an ordinary prompt leaks.")


def _under(method, groups):
    if method != "none":
        return f"With {name(method)}, "
    return "" if list(groups) == ["ungrouped"] else "With plain guidance, the model as it is, "


def _mitigated(methods, gate):
    """The method with the fewest copies, where plain guidance has the most."""
    if list(gate) != ["none"]:
        return
    group = max(gate["none"], key=lambda g: gate["none"][g]["copy_rate"])
    plain, others = gate["none"][group], {m: groups[group] for m, groups in methods.items() if m != "none" and group in groups}
    if plain["copies"] and others:
        method = best(others, plain)
        cell = others[method]
        source = f" from {PROMPTS.get(group, group)}" if len(gate["none"]) > 1 else ""
        known = plain["alignment"] and cell["alignment"] is not None
        price = f", at {cell['alignment'] / plain['alignment']:.2f} × the text-image agreement" if known else ""
        yield f"With {name(method)}, {cell['copies']:,} of {cell['n']:,}{source} still do: {share(cell)}{price}."


def _doubt(doubts, null_needed):
    """doubts: (rule, figures of a method and group) that are undecided; of each rule, that which would take the most."""
    for rule in dict.fromkeys(rule for rule, _ in doubts):
        cell = max((c for r, c in doubts if r == rule), key=lambda c: (rule.images_for(c) or 0, -c["n"]))
        if rule.metric in RATES:
            needs = rule.images_for(cell)
            yield (f"With {cell['n']:,} images and {cell[RATES[rule.metric]]:,} copied, the true rate may be as high as "
                   f"{percent(rule.highest(cell))}: it takes {needs:,} images in each group, {needs - cell['n']:,} more, and no "
                   "more copies, to decide.")
        elif rule.metric == "leaked_prompts":
            yield (f"{cell['unresolved_prompts']:,} prompts copy, and with so few pictures to compare with nothing tells that "
                   f"from chance: it takes {null_needed or 0:,} held-out or training pictures.")
        else:
            yield f"With {cell['n']:,} images, {rule.metric} may be as high as {rule.highest(cell):.3f}: take more."


def _chance(chance):
    if chance is not None:
        yield f"By chance, {percent(chance)} of held-out pictures, which the model never saw, come as close."


def best(cells, plain=None):
    """{method: figures} -> the method with the lowest copy rate among those that keep KEPT of plain guidance's alignment, since
    mush copies nothing; among all, where none does or it is not known. Of equals, the best aligned."""
    least = KEPT * ((plain or {}).get("alignment") or 0)
    kept = {m: c for m, c in cells.items() if (c["alignment"] or 0) >= least} or cells
    return min(kept, key=lambda m: (kept[m]["copy_rate"], -(kept[m]["alignment"] or 0)))
