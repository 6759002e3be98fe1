"""What the figures say of the rules, in words."""
from rotescope.evaluate.replication import clopper_pearson
from rotescope.evaluate.rules import parse_rules
from rotescope.evaluate.words import PROMPTS, name, percent, share

KEPT = 0.9  # share of the alignment that a mitigation must leave to be called the best


def judge(methods, rules, chance, copied=None, plan=None):
    """methods: {NAME: {GROUP: figures}}; chance: share of held-out pictures over the threshold, or None; copied: {NAME: ids of
    the training images that it copies}; plan: how the prompts were chosen, if not all of them were sampled alike
    -> {outcome, passed, headline, text, rule, rules, needed}.

    passed is None where n is too small for a headline; needed then tells how many images would do in each method and group.
    """
    rules = parse_rules(rules)
    outcomes = {rule: rule.outcome(methods, copied or {}) for rule in rules}
    outcome = next(o for o in ("failed", "undecided", "passed") if o in outcomes.values())
    gate = {m: methods[m] for m in dict.fromkeys(m for rule in rules for m in rule.scope(list(methods)))}
    cells = [cell for groups in gate.values() for cell in groups.values()]
    few, needs = min(cell["n"] for cell in cells), max(rule.needs for rule in rules)
    sentences = [*_found(gate), *_planned(plan, gate), *_mitigated(methods, gate), *_doubt(outcome, few, needs), *_chance(chance)]
    return {"outcome": outcome, "passed": {"failed": False, "passed": True}.get(outcome), "headline": _headline(outcome, cells),
            "text": " ".join(sentences), "rule": " or ".join(map(str, rules)),
            "rules": [{"rule": str(rule), "outcome": o} for rule, o in outcomes.items()],
            "needed": needs if outcome == "undecided" else None}


def _headline(outcome, cells):
    if outcome == "failed":
        return "The generated images reproduce training images."
    if outcome == "undecided":
        return "Not decided: too few images for a verdict."
    copied = any(cell["copies"] for cell in cells)
    return "Reproduction of training images stays within the limit." if copied else "No training image was reproduced."


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


def _doubt(outcome, few, needs):
    if outcome == "undecided":
        yield (f"With {few} images, even none copied leaves room for a copy rate of {percent(clopper_pearson(0, few)[1])}: "
               f"it takes {needs} images in each group, {needs - few} more, to decide.")


def _chance(chance):
    if chance is not None:
        yield f"By chance, {percent(chance)} of held-out pictures, which the model never saw, come as close."


def best(cells, plain=None):
    """{method: figures} -> the method with the lowest copy rate among those that keep KEPT of plain guidance's alignment, since
    mush copies nothing; among all, where none does or it is not known. Of equals, the best aligned."""
    least = KEPT * ((plain or {}).get("alignment") or 0)
    kept = {m: c for m, c in cells.items() if (c["alignment"] or 0) >= least} or cells
    return min(kept, key=lambda m: (kept[m]["copy_rate"], -(kept[m]["alignment"] or 0)))
