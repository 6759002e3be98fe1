"""What rotescope dose has to do: one fine-tune for each training seed and training mitigation, each with its plan of canaries."""
from dataclasses import dataclass, field, replace
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.settings import parse
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan, check_served
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.sampling.options import named_policies
from rotescope.train.engine.run_state import total_steps
from rotescope.train.objective.training_mitigations import named_mitigation
from rotescope.train.options.finetune_options import EMBEDDED, RECIPE, FinetuneConfig
from rotescope.train.options.limits import check_values

OF_THE_DATA: dict[str, dict] = {  # name -> fields of an Arm
    "several_captions": {"captions": "several"}, "deduplication": {"deduplicated": True}}


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune."""
    name: str
    changes: dict = field(default_factory=dict)   # to the recipe
    captions: str = "same"                        # of the copies
    deduplicated: bool = False                    # train on one copy of each image
    methods: dict = field(default_factory=lambda: {"none": PLAIN})

    def curve(self, method):
        """What the curve of a method is called."""
        return f"train:{self.name}" if self.name else method


@dataclass(frozen=True)
class DoseRun:
    """One fine-tune and what is sampled from it."""
    arm: Arm
    config: FinetuneConfig
    plan: Manifest
    folder: Path    # relative

    @property
    def about(self):
        return {"folder": str(self.folder), "train_mitigation": self.arm.name, "train_seed": self.config.seed,
                "plan": self.plan.hash}

    @property
    def manifest(self):
        """What it is trained on."""
        return Manifest(tuple(replace(e, copies=1) for e in self.plan)) if self.arm.deduplicated else self.plan


def arms(config):
    """The plain fine-tune, sampled under every mitigation, and one for each training mitigation."""
    found = [Arm("", methods=named_policies(config.mitigation))] if config.mitigation else []
    for text in config.train_mitigation:
        of_data = OF_THE_DATA.get(text)
        found.append(Arm(text, **of_data) if of_data else Arm(text, named_mitigation(text)))
    if not found:
        raise InputError("there is no curve to draw: name a --mitigation, none among them, or a --train_mitigation")
    if len({arm.name for arm in found}) < len(found):
        raise InputError(f"a training mitigation is named twice: {' '.join(config.train_mitigation)}")
    return found


def recipe_of(config):
    """How to train, whatever the plan, the seed and the mitigation."""
    own = any(getattr(config, name) != str(value) for name, value in EMBEDDED.items())
    recipe = config.recipe or (None if own else RECIPE)
    given = parse(FinetuneConfig, [], prog="rotescope dose --recipe", description="", config=recipe)
    if config.max_train_steps:
        given = replace(given, max_train_steps=config.max_train_steps, num_train_epochs=None)
    return replace(given, pretrained_model_name_or_path=config.pretrained_model_name_or_path, duplicated=0, copies=1, controls=0,
                   caption_style="same", exclusive=False, overwrite=False, resume_from_checkpoint="latest", push_to_hub=False)


def dose_runs(config, data):
    """Manifest of all images -> list of DoseRun. InputError on a plan that the data or the steps cannot serve."""
    recipe, found = recipe_of(config), []
    for number, arm in enumerate(arms(config)):
        for seed in config.train_seeds:
            canaries = DuplicationPlan(config.images, captions=arm.captions, doses=config.doses, matched=1, seed=seed)
            plan = apply_plan(data, canaries)
            finetuning = replace(recipe, seed=seed, **arm.changes)
            check_values(finetuning)
            if finetuning.aspect_buckets:   # whose epochs are as many steps as the shapes of the pictures ask for
                raise InputError("--recipe has aspect_buckets, and a dose is trained on squares: leave it out there")
            size = finetuning.train_batch_size * finetuning.gradient_accumulation_steps
            steps = total_steps(finetuning, plan, size)  # of every arm, though an epoch of one copy each is shorter
            check_served(plan, steps * size)
            finetuning = replace(finetuning, max_train_steps=steps, num_train_epochs=None)
            found.append(DoseRun(arm, finetuning, plan, Path(f"arm-{number}-seed-{seed}")))
    return found
