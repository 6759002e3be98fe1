"""One repair tried and audited, and the search for the mildest dose of a way at which no rule is broken."""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rotescope.evaluate.report.report import Report
from rotescope.evaluate.statistics.clusters import clustered_share
from rotescope.evaluate.statistics.estimate import INTERVAL, Estimate
from rotescope.procedures.repair.proof import RepairProof
from rotescope.train.repair.weight_repair import WeightRepair

FAILED = "failed"


@dataclass(frozen=True)
class Figures:
    """What an audit found, over all groups of prompts."""
    outcome: str                    # of the audit: passed, failed or undecided
    headline: str
    images: int
    copies: int
    copy_rate: Estimate = field(metadata=INTERVAL)
    leaked_prompts: int
    partial_copies: int | None
    sim95: float                    # the highest of the groups'
    alignment: float | None         # mean over images
    kid: float | None               # of the group with most images; lower is closer to the held-out pictures
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, report: Report) -> "Figures":
        groups = list(report["none"].groups.values())
        pairs = [p for p in report.pairs if p.method == "none"]
        rate = clustered_share([p.is_copy for p in pairs], [str((p.group, p.prompt_index, p.prompt)) for p in pairs])
        aligned = [(g.alignment, g.n) for g in groups if g.alignment is not None]
        largest = max(groups, key=lambda g: g.n)
        return cls(report.verdict.outcome, report.verdict.headline, len(pairs), sum(p.is_copy for p in pairs), rate,
                   sum(g.leaked_prompts for g in groups),
                   None if report.verification is None else sum(g.partial_copies or 0 for g in groups),
                   max(g.sim95.value for g in groups),
                   sum(a * n for a, n in aligned) / sum(n for _, n in aligned) if aligned else None,
                   largest.fidelity.kid if largest.fidelity else None, tuple(report.seeds))


@dataclass(frozen=True)
class Trial:
    """One way at one dose; figures is None where nothing could be audited."""
    way: str
    dose: float
    dose_name: str
    kept: float            # ‖ΔW'‖² / ‖ΔW‖² over all layers
    file: str              # name of the repaired LoRA
    plain_layers: int      # layers that became plain LoRAs, since their own format holds no filtered update
    seconds: float         # of the repair alone
    figures: Figures | None

    @property
    def holds(self) -> bool:
        """Whether no rule is broken."""
        return self.figures is not None and self.figures.outcome != FAILED

    @property
    def label(self) -> str:
        return f"{self.way} {self.dose:g}" if self.way == self.dose_name else f"{self.way}, {self.dose_name} {self.dose:g}"


@dataclass(frozen=True, kw_only=True)
class RepairFindings:
    """What a repair did.

    Attributes
    ----------
    before, after : Figures, optional
        Of the audits of the LoRA, and of the repaired one on other seeds than those that it was chosen on.
    report : Report, optional
        Of the last audit: after the repair, or before it where there is none.
    chosen : Trial, optional
        What was kept; None where nothing leaked, nothing passed, or nothing could be judged.
    trials : tuple of Trial
    file : str
        The repaired LoRA, by its name in the output; "" where there is none.
    notes : tuple of str
    leaked : int
        Training pictures that were copied before the repair.
    proofs : int
        Repaired LoRAs that were audited on other seeds; the last of them is the one that is left.
    proof : RepairProof, optional
        Which of them come back, where they were sought again.
    """
    before: Figures | None = None
    after: Figures | None = None
    report: Report | None = None
    chosen: Trial | None = None
    trials: tuple[Trial, ...] = ()
    file: str = ""
    notes: tuple[str, ...] = ()
    leaked: int = 0
    proofs: int = 0
    proof: RepairProof | None = None

    @property
    def holds(self) -> bool:
        """Whether a repaired LoRA broke no rule on other seeds."""
        return self.after is not None and self.after.outcome != FAILED

    @property
    def outcome(self) -> str:
        """As an audit has it, of the repaired LoRA; without data nothing is decided."""
        return self.report.verdict.outcome if self.report else "undecided"


def search_doses(way: WeightRepair, attempt: Callable[[WeightRepair, float], Trial], every: bool = False) -> Iterator[Trial]:
    """Try a way from its mildest dose on, and once one holds, the middle between it and the one before. Yields the trials.

    every: go on behind the one that holds.
    """
    trials: list[Trial] = []
    for dose in way.doses:
        trials.append(attempt(way, dose))
        yield trials[-1]
        if trials[-1].holds and not every:
            break
    held = next((i for i, trial in enumerate(trials) if trial.holds), None)
    if held is not None:
        milder = trials[held - 1].dose if held else way.identity
        middle = (milder + trials[held].dose) / 2
        middle = round(middle) if way.dose_name == "steps" else middle
        if middle not in (milder, trials[held].dose):
            yield attempt(way, middle)


def by_way(trials: Iterable[Trial]) -> Iterator[tuple[str, list[Trial]]]:
    """Yields each way with its trials, from the one that keeps most on: the points of its curve."""
    trials = list(trials)
    for way in dict.fromkeys(trial.way for trial in trials):
        yield way, sorted((t for t in trials if t.way == way), key=lambda t: -t.kept)


def from_mildest(trials: Iterable[Trial]) -> list[Trial]:
    """Those that hold, way by way, the ones that keep most of the LoRA first."""
    return [trial for _, own in by_way(trials) for trial in own if trial.holds]
