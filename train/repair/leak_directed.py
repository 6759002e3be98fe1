"""Channels that serve the leaking pictures more than the others are taken out: a filter that is told what leaks.

How much a channel serves a set of pictures is how much it lowers their denoising loss L under their captions. Along the path
on which all gains g rise together from 0, the base, to 1, the LoRA,

    L(0) − L(1) = Σᵢ sᵢ,   sᵢ = −∫₀¹ ∂L/∂gᵢ dc at g = (c, …, c)

(Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, arXiv 1703.01365, section 3): the midpoint rule takes
a single backward pass for each batch and point. At c = 1 alone, where training has ended, little slope is left.
"""
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError
from rotescope.models.adapters.low_rank import gain_slopes, with_gains
from rotescope.train.repair.weight_repair import RepairContext, WeightRepair


@dataclass(frozen=True)
class LeakDirected(WeightRepair):
    """dose: the share of all channels of the LoRA that are taken out, those that serve the leaking pictures most beyond what they
    serve the others; none that serves the others more.

    points: on the path from the base to the LoRA. batches: of each set of pictures at each point.
    """
    name = "leak-directed"
    needs_data = True
    cost = "as much as some dozens of training steps, once"
    dose_name = "share"
    doses: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    points: int = 4
    batches: int = 8

    def update(self, context, dose):
        scores = self.scores(context)
        ranked = sorted(((float(s), name, i) for name, each in scores.items() for i, s in enumerate(each)), reverse=True)
        out = [(name, i) for s, name, i in ranked[:round(dose * len(ranked))] if s > 0]
        after = dict(context.updates)
        for name, each in scores.items():
            gains = torch.ones_like(each)
            gains[[i for own, i in out if own == name]] = 0
            after[name] = with_gains(after[name], context.channels[name], gains)
        return after

    def scores(self, context: RepairContext) -> dict[str, torch.Tensor]:
        """How much each channel serves the leaking pictures beyond the others, (m,) by the updates' names; asked once."""
        if self not in context.memory:
            path = [(n + 0.5) / self.points for n in range(self.points)]
            leaking, others = (loss_lowered(context, which, path, self.batches) for which in (0, 1))
            context.memory[self] = {name: leaking[name] - others[name] for name in leaking}
        return context.memory[self]

    def check(self):
        super().check()
        if self.points < 1 or self.batches < 1:
            raise InputError(f"points={self.points}, batches={self.batches}: both must be 1 or more")


def loss_lowered(context: RepairContext, which: int, path: Iterable[float], batches: int) -> dict[str, torch.Tensor]:
    """How much each channel lowers the loss of one of the two sets, (m,) by the updates' names: the mean over the path."""
    attached, found = context.attached, {}
    points = list(path)
    for gain in points:
        attached.use(attached.numbers(context.updates, gain))
        slopes = attached.gradients(which, context.batch_size, batches, context.seed, context.updates)
        for name, gradient in slopes.items():
            one = -gain_slopes(gradient, context.updates[name], context.channels[name]) / len(points)
            found[name] = found.get(name, 0) + one
    attached.use(attached.numbers(context.updates))
    return found
