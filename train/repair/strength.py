"""The plainest way: the LoRA weaker, the largest strength at which nothing leaks."""
from dataclasses import dataclass, replace

from rotescope.common.errors import InputError
from rotescope.train.repair.weight_repair import WeightRepair


@dataclass(frozen=True)
class Strength(WeightRepair):
    """Every update times one number. A DoRA's magnitudes stay."""
    name = "strength"
    needs_data = False
    cost = "nothing"
    dose_name = "strength"
    identity = 1
    doses: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2)

    def update(self, context, dose):
        if dose == self.identity:
            return dict(context.updates)
        return {name: replace(update, scale=dose * update.scale) for name, update in context.updates.items()}

    def check(self):
        super().check()
        if list(self.doses) != sorted(self.doses, reverse=True) or min(self.doses) == 0:
            raise InputError("strengths must fall, and stay above 0: 0.8 0.6 0.4")
