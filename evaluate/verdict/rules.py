"""Rules that a release hangs on: fixed before the run, printed, judged on the figures alone."""
import re
from dataclasses import dataclass
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.wording import percent
from rotescope.evaluate.statistics.clusters import prompts_needed
from rotescope.evaluate.statistics.estimate import Estimate, clopper_pearson

DEFAULT_RULE = "leaked_prompts>0"  # chance does not break it
ANY_COPIES = "any_copies_of"
# metric -> what it counts
RATES = {"copy_rate": "copies", "own_copy_rate": "own_copies", "partial_copy_rate": "partial_copies"}
UNRESOLVED = {"leaked_prompts": "unresolved_prompts", "leaked_prompts_any": "unresolved_prompts_any"}  # and what may add to it
OF_PARTS = ("leaked_prompts_any", "partial_copies", "partial_copy_rate")  # these need verified matches
METRICS = (*UNRESOLVED, *RATES, "copies", "partial_copies", "sim95")
TAIL = 59  # prompts without which the highest of them need not reach their 95th percentile: .95^59 < .05


@dataclass(frozen=True)
class Rule:
    """[METHOD:]METRIC>LIMIT is broken if the metric exceeds the limit in any group of prompts, and holds if it must be below: a
    rate, and sim95, by the upper end of the 95% interval. [METHOD:]any_copies_of:ID,ID or :@FILE, one id a line, is broken if any
    of these training images is copied.

    Without METHOD it is on plain guidance where that was sampled, else on every method.
    """
    metric: str
    limit: float = 0.0
    method: str = ""
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text):
        """Text, or a Rule as it is. InputError if it cannot be read."""
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r"\s*(?:([\w.=+-]+):)?(\w+)\s*>\s*(\d*\.?\d+)\s*", str(text))
        if match and match[2] in METRICS:
            return cls(match[2], _limit(match[2], float(match[3])), match[1] or "")
        match = re.fullmatch(rf"\s*(?:([\w.=+-]+):)?{ANY_COPIES}:(.+)", str(text))
        if match:
            return cls(ANY_COPIES, method=match[1] or "", ids=_ids(match[2]))
        raise InputError(f"cannot read the rule {text!r}: write [METHOD:]METRIC>LIMIT, for instance {DEFAULT_RULE}, "
                         f"with one of {', '.join(METRICS)}; or [METHOD:]{ANY_COPIES}:ID,ID or :@FILE")

    def __str__(self):
        what = f"{ANY_COPIES}:{','.join(self.ids)}" if self.ids else f"{self.metric}>{self.limit:g}"
        return (f"{self.method}:" if self.method else "") + what

    def scope(self, methods):
        """The methods that it is on. InputError if it names one that was not sampled."""
        if self.method and self.method not in methods:
            raise InputError(f"the rule {self} is on a method that was not sampled: name one of {', '.join(methods)}")
        return [self.method] if self.method else ["none"] if "none" in methods else list(methods)

    @property
    def needs(self):
        """How many prompts a method and group must have for the rule to hold at all: images of one prompt are alike."""
        return prompts_needed(self.limit) if self.metric in RATES else TAIL if self.metric == "sim95" else 1

    def outcome(self, methods, copied):
        """methods: {NAME: {GROUP: GroupFindings}}; copied: {NAME: ids of the training images that it copies}
        -> failed, passed, or undecided where too little is known."""
        scope = self.scope(list(methods))
        if self.ids:
            return "failed" if any(set(self.ids) & copied.get(m, set()) for m in scope) else "passed"
        told = [found for m in scope for found in methods[m].values() if self.value(found) is not None]
        if not told:
            raise _unjudged(self)
        if max(self.value(found) for found in told) > self.limit:
            return "failed"
        return "undecided" if any(self.highest(found) > self.limit for found in told) else "passed"

    def value(self, found):
        """The metric in GroupFindings; None where it does not apply."""
        figure = getattr(found, self.metric)
        return figure.value if isinstance(figure, Estimate) else figure

    def highest(self, found):
        """What the metric may truly be, given the GroupFindings."""
        if self.metric in RATES:
            return getattr(found, self.metric).high
        if self.metric == "sim95":
            return found.sim95.high if found.n_prompts >= TAIL else 1
        return getattr(found, self.metric) + (getattr(found, UNRESOLVED[self.metric]) if self.metric in UNRESOLVED else 0)

    def prompts_for(self, found):
        """How many prompts would decide, were no more images copies; None where prompts alone would not."""
        return prompts_needed(self.limit, getattr(found, self.metric)) if self.metric in RATES else None

    def by_chance(self, quantile, images=1):
        """Whether pictures that copy nothing break it about as often as not: 1 - quantile of them count as copies."""
        return {"copy_rate": self.limit, "copies": self.limit / max(images, 1)}.get(self.metric, 1) <= (1 - quantile) * (1 + 1e-9)


def parse_rules(rules):
    """A text, a Rule, several of them, or nothing, which is the default -> tuple of Rule."""
    several = (rules,) if isinstance(rules, str | Rule) else tuple(rules or ())
    return tuple(Rule.parse(rule) for rule in several) or (Rule.parse(DEFAULT_RULE),)


def _limit(metric, limit):
    if metric in (*RATES, "sim95") and limit >= 1:
        raise InputError(f"the rule {metric}>{limit:g} can never be broken: write a share, 0.05 for 5%")
    if metric in RATES and limit == 0:
        raise InputError(f"no number of images could show that {metric}>0 holds: write leaked_prompts>0 or copies>0")
    return limit


def _ids(text):
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{text[1:]} cannot be read ({error}): name a file with one image id a line") from error
    found = tuple(word for word in re.split(r"[\s,]+", text) if word)
    if not found:
        raise InputError(f"a rule {ANY_COPIES} needs ids: write {ANY_COPIES}:ID,ID or :@FILE")
    return found


def check_ids(rules, known):
    """InputError if a rule is on an image that is not among the training images."""
    gone = [i for rule in rules for i in rule.ids if i not in known]
    if gone:
        raise InputError(f"{gone[0]} is no image_id of the training images: take them from a manifest or a report's `nearest`")


def check_own(rules, manifest, asked):
    """InputError if a rule is on copies of the prompts' own images, and none of these, `asked`, is a training image."""
    rule = next((rule for rule in rules if rule.metric == "own_copy_rate"), None)
    if rule and not any(e.image_id in asked for e in manifest):
        raise _unjudged(rule)


def check_verified(rules, verify):
    """InputError if a rule is on copies of a part, and none are sought."""
    rule = next((rule for rule in rules if rule.metric in OF_PARTS), None)
    if rule and not verify:
        raise _unjudged(rule)


def _unjudged(rule):
    if rule.metric in OF_PARTS:
        return InputError(f"the rule {rule} cannot be judged, since no match was sought by geometry: pass --verify true, and "
                          "two different training images at least")
    return InputError(f"the rule {rule} cannot be judged, since no prompt names its training image: use copy_rate")


def check_power(rules, sizes):
    """sizes: {(method, group): number of prompts}. InputError, before anything expensive, if not even 0 copies could show that
    a rule holds."""
    for rule in rules:
        scope = rule.scope(list(dict.fromkeys(method for method, _ in sizes)))
        n = min(n for (method, _), n in sizes.items() if method in scope)
        if n < rule.needs:
            why = "" if rule.metric == "sim95" else \
                f" with no copy among their images the interval still reaches {percent(clopper_pearson(0, n)[1])};"
            few = "1 prompt is" if n == 1 else f"{n} prompts are"
            raise InputError(f"{few} too few for the rule {rule}:{why} take {rule.needs} in each method and group"
                             + (", or a higher limit" if why else ""))
