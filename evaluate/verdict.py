"""The rule that is fixed before the run, and what the figures say of it, in words."""
import re
from dataclasses import dataclass

from rotescope.errors import InputError
from rotescope.evaluate.replication import clopper_pearson, images_needed

DEFAULT_RULE = "copy_rate>0.05"
METRICS = ("copy_rate", "own_copy_rate", "copies", "sim95")
NAMES = {"none": "plain guidance", "stp": "STP", "og-stp": "OG + STP", "dtp": "DTP", "og-dtp": "OG + DTP"}
PROMPTS = {"duplicated": "captions of duplicated images", "control": "captions of control images", "ungrouped": "all prompts"}


@dataclass(frozen=True)
class Rule:
    """[METHOD:]METRIC>LIMIT is broken if the metric exceeds the limit in any group of prompts.

    Without METHOD it is on plain guidance where that was sampled, else on every method.
    """
    metric: str
    limit: float
    method: str = ""

    @classmethod
    def parse(cls, text):
        """Text, or a Rule as it is. InputError if it cannot be read."""
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r"\s*(?:([\w.=+-]+):)?(\w+)\s*>\s*(\d*\.?\d+)\s*", str(text))
        if not match or match[2] not in METRICS:
            raise InputError(f"cannot read the rule {text!r}: write [METHOD:]METRIC>LIMIT, for instance {DEFAULT_RULE}, "
                             f"with one of {', '.join(METRICS)}")
        return cls(match[2], float(match[3]), match[1] or "")

    def __str__(self):
        return (f"{self.method}:" if self.method else "") + f"{self.metric}>{self.limit:g}"

    def scope(self, methods):
        """The methods that it is on. InputError if it names one that was not sampled."""
        if self.method and self.method not in methods:
            raise InputError(f"the rule {self} is on a method that was not sampled: name one of {', '.join(methods)}")
        return [self.method] if self.method else ["none"] if "none" in methods else list(methods)

    @property
    def needs(self):
        """How many images a method and group must have for the 95% interval to fall below the limit at all."""
        return images_needed(self.limit) if self.metric in ("copy_rate", "own_copy_rate") else 1


def check_power(rule, sizes):
    """sizes: {(method, group): n}. InputError, before anything expensive, if not even 0 copies could show that the rule holds."""
    scope = rule.scope(list(dict.fromkeys(method for method, _ in sizes)))
    n = min(n for (method, _), n in sizes.items() if method in scope)
    if n < rule.needs:
        raise InputError(f"{n} images are too few for the rule {rule}: with no copy among them the 95% interval still reaches "
                         f"{percent(clopper_pearson(0, n)[1])}; take {rule.needs} in each method and group, or a higher limit")


def judge(methods, rule, chance):
    """methods: {NAME: {GROUP: figures}}; chance: share of held-out pictures over the threshold, or None
    -> {outcome, passed, headline, text, rule, needed}. passed is None where n is too small for a headline."""
    gate = {method: methods[method] for method in rule.scope(list(methods))}
    cells = [cell for groups in gate.values() for cell in groups.values() if cell[rule.metric] is not None]
    if not cells:
        raise InputError(f"the rule {rule} cannot be judged, since no prompt names its training image: use copy_rate")
    few, broken = min(cell["n"] for cell in cells), max(cell[rule.metric] for cell in cells) > rule.limit
    outcome = "failed" if broken else "undecided" if few < rule.needs else "passed"
    sentences = [*_found(gate), *_mitigated(methods, gate), *_doubt(outcome, few, rule), *_chance(chance)]
    return {"outcome": outcome, "passed": {"failed": False, "passed": True}.get(outcome), "headline": _headline(outcome, cells),
            "text": " ".join(sentences), "rule": str(rule), "needed": rule.needs if outcome == "undecided" else None}


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
        method = best(others)
        cell = others[method]
        source = f" from {PROMPTS.get(group, group)}" if len(gate["none"]) > 1 else ""
        known = plain["alignment"] and cell["alignment"] is not None
        price = f", at {cell['alignment'] / plain['alignment']:.2f} × the text-image agreement" if known else ""
        yield f"With {name(method)}, {cell['copies']:,} of {cell['n']:,}{source} still do: {share(cell)}{price}."


def _doubt(outcome, few, rule):
    if outcome == "undecided":
        yield (f"With {few} images, even none copied leaves room for a copy rate of {percent(clopper_pearson(0, few)[1])}: "
               f"it takes {rule.needs} images in each group to decide on {rule}.")


def _chance(chance):
    if chance is not None:
        yield f"By chance, {percent(chance)} of held-out pictures, which the model never saw, come as close."


# ----- words

def best(cells):
    """{method: figures} -> the method with the lowest copy rate; of equals, the best aligned."""
    return min(cells, key=lambda m: (cells[m]["copy_rate"], -(cells[m]["alignment"] or 0)))


def name(method):
    return NAMES.get(method, method)


def share(cell):
    """95% (88–98%): the copy rate and its interval."""
    low, high = (percent(v) for v in cell["copy_rate_interval"])
    return f"{percent(cell['copy_rate'])} ({low.removesuffix('%')}–{high})"


def percent(part):
    """0.931 -> 93%, 0.0104 -> 1.0%; never 0% or 100% for what is not."""
    if part is None:
        return "–"
    value = 100 * part
    if 0 < value < 0.05 or 99.95 < value < 100:
        return "<0.1%" if value < 1 else ">99.9%"
    return f"{value:.0f}%" if value in (0, 100) or 9.95 <= value < 99.5 else f"{value:.1f}%"
