"""What `rotescope repair` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.models.model_files import find_lora, lora_names
from rotescope.options.audit import AuditConfig

WAY_NAMES = ("strength", "base-anchored", "leak-directed", "unlearn")  # of train/repair/registry.py, from the cheapest on
WITHOUT_DATA = ("base-anchored",)                                      # whose files are written where nothing can be judged
LEAST_SOUGHT = 4   # of 4 and 4, all against none: p = 1/70, times three routes is below .05; of 3 and 3 it never is


@dataclass(frozen=True, kw_only=True)
class RepairConfig(AuditConfig):
    HEADINGS: ClassVar = {"ways": "ways of repairing", "train_data": "data and output", "retrigger": "suppressed or erased"}
    train_data: str = ""
    """what the LoRA was trained on, with captions; without it files of ways that need none are written, nothing is judged"""
    output_dir: str
    """the repaired LoRA, repair.html, repair.json and model_card.md go here, with the audits before and after"""
    ways: tuple[str, ...] = WAY_NAMES
    """one or several of strength, base-anchored, leak-directed and unlearn; they are tried in this order, the cheapest first"""
    all: bool = False
    """go on after the first repair that passes, and draw the curves of all ways; the first that passes is kept all the same"""
    strengths: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2)
    """strengths to try, falling; once one passes, the middle between it and the one before is tried, too"""
    quantiles: tuple[float, ...] = (0.25, 0.5, 0.75)
    """base-anchored: the shares of each layer's channels to take out, those that align least with the base, rising"""
    base_rank: int | None = None
    """base-anchored: dimensions of the base's principal subspace; a quarter of the smaller side of each weight unless given"""
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """leak-directed: the shares of all channels to take out, those that serve the leaking pictures most, rising"""
    unlearn_steps: tuple[int, ...] = (300,)
    """unlearn: how many steps to train, rising"""
    unlearn_rate: float = 1e-4
    """unlearn: learning rate"""
    train_batch_size: int = 4
    """leak-directed and unlearn: pictures at a time"""
    retrigger: int = 0
    """so many leaking pictures, and as many of heldout_data, are sought again before the repair and after it, by own captions,
    paraphrases and found embeddings; 0 leaves it out"""

    def check(self):
        super().check()
        if len(lora_names(self.lora)) != 1:
            raise InputError("--lora must name one LoRA, the one to repair")
        find_lora(lora_names(self.lora)[0])
        if tuple(self.mitigation) != ("none",):
            raise InputError("repair judges the weights alone: leave --mitigation out, and audit the repaired LoRA under it")
        if self.plan != "uniform" or self.redact or self.junit_xml:
            raise InputError("repair has no --plan ranked, --redact or --junit_xml: audit the repaired LoRA so")
        if self.retrigger and self.retrigger < LEAST_SOUGHT:
            raise InputError(f"--retrigger {self.retrigger}: take 0, or {LEAST_SOUGHT} or more: fewer pictures prove nothing")
        if self.retrigger and not (self.train_data and self.heldout_data):
            raise InputError("--retrigger compares leaking pictures with ones that the model never saw: name both, --train_data "
                             "and --heldout_data")
        unknown = next((way for way in self.ways if way not in WAY_NAMES), None)
        if unknown or not self.ways or len(set(self.ways)) < len(self.ways):
            raise InputError(f"--ways {' '.join(self.ways)}: take one or several of {', '.join(WAY_NAMES)}, each once")
        for option in ("quantiles", "shares", "unlearn_steps"):
            given = getattr(self, option)
            if list(given) != sorted(set(given)):
                raise InputError(f"--{option} {' '.join(map(str, given))}: give rising numbers, from the mildest on")
        if self.train_batch_size < 1:
            raise InputError(f"train_batch_size={self.train_batch_size}: take 1 picture or more")
