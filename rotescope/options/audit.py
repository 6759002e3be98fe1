"""What `rotescope audit` lets a user choose."""
from dataclasses import dataclass, field
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.evaluate.options import MeasureConfig
from rotescope.evaluate.verdict.rules import parse_rules
from rotescope.mitigate.contract.catalogue import check_text
from rotescope.mitigate.detectors.registry import DETECTORS
from rotescope.mitigate.sampling.options import SamplingOptions, check_names, check_number_of_prompts

PLANS = ("uniform", "ranked")


@dataclass(frozen=True, kw_only=True)
class AuditConfig(MeasureConfig, SamplingOptions):
    HEADINGS: ClassVar = {"base": "which prompts, under which mitigations", "plan": "how the images are spent",
                          "retrigger": "suppressed or erased"}
    model: str = field()
    """model folder in diffusers' layout, or its name on the hub"""
    base: str | None = None
    """the base model, to tell what this fine-tune memorized: a folder, a name, or auto: the LoRA's adapter off, or the base that
    the checkpoint's rotescope.json names; sampled plainly on the same prompts and seeds"""
    mitigation: tuple[str, ...] = ("none",)
    """one or several of what rotescope mitigations lists, each perhaps with settings: og-stp:before=-3,transition=700; one that
    needs training images gets train_data"""
    max_prompts: int | None = None
    """sample only so many prompts of each group, the first ones"""
    prompt_sets: tuple[str, ...] = ("captions",)
    """one or several of captions (the first of each training image), further_captions (its others), paraphrases (of the first),
    heldout (captions of heldout_data that no training image has), empty"""
    paraphrases: int = 2
    """of each caption, at most, in the set paraphrases"""
    prompts: str | None = None
    """also sample the prompts of this file: .txt, one a line, or .csv, .jsonl or .parquet with `prompt` or `caption`"""
    empty_images: int = 100
    """images of the empty prompt, which is one prompt only, where there is no budget"""
    plan: str = "uniform"
    """uniform: every prompt and seed, or with a budget a random sample; ranked: where the detector points, then where a prompt's
    images agree"""
    budget: int | None = None
    """images that each mitigation may sample; under ranked the price of the scores is part of it"""
    detector: str = "recall"
    """what ranks the prompts: recall (how well a noised training image comes back under its caption; prompts of no training image
    come last), or one of those of rotescope detect; perhaps with settings: magnitude:n=4"""
    retrigger: int = 0
    """so many of the most copied images are sought again, by paraphrases and by found embeddings, without and under each
    mitigation, beside as many of heldout_data; rotescope retrigger has more options"""

    def check(self):
        super().check()
        check_names(self.mitigation)
        check_number_of_prompts(self)
        parse_rules(self.fail_on)
        check_text(self.detector, DETECTORS, "detector")
        if self.plan not in PLANS:
            raise InputError(f"no plan {self.plan!r}: take {' or '.join(PLANS)}")
