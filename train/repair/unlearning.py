"""An unlearning fine-tune of the LoRA: for leaking captions it learns the base's prediction, for others it keeps its own.

    L = ‖ε(x_t, c) − ε_base(x_t, c)‖² over leaking pictures + ‖ε(x_t, c) − ε_LoRA(x_t, c)‖² over others

As the distillation of ESD (Gandikota et al., ICCV 2023, arXiv 2303.07345) with the base for a teacher. Only `up` is trained, so
that the file keeps its format, ranks and `down`.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from rotescope.common.errors import InputError, RunError
from rotescope.train.repair.weight_repair import WeightRepair


@dataclass(frozen=True)
class Unlearning(WeightRepair):
    """dose: training steps; each shows the batch size twice, leaking pictures and others."""
    name = "unlearn"
    needs_data = True
    cost = "two to three times as many training steps as its dose says"
    dose_name = "steps"
    doses: tuple[float, ...] = (300,)
    learning_rate: float = 1e-4

    def update(self, context, dose):
        attached, size = context.attached, context.batch_size
        originals, base = (attached.numbers(context.updates, gain) for gain in (1.0, 0.0))
        own = [numbers.clone() for numbers in originals]
        teachers = (base, originals)
        optimizer = torch.optim.AdamW(attached.ups, lr=self.learning_rate, weight_decay=0)
        draws = [attached.batches(which, size, context.seed) for which in (0, 1)]
        for _ in range(int(dose)):
            optimizer.zero_grad(set_to_none=True)
            for which, teacher in enumerate(teachers):
                asked, _ = attached.losses[which].asked(next(draws[which]))
                attached.use(teacher)
                with torch.no_grad():
                    wanted = attached.predictor(*asked)
                attached.use(own)
                loss = F.mse_loss(attached.predictor(*asked).float(), wanted.float())
                if not loss.isfinite():
                    raise RunError("unlearning diverged: take a lower --unlearn_rate")
                loss.backward()
            optimizer.step()
        found = attached.whole(own, context.updates)
        attached.use(originals)
        return context.updates | {name: replace(context.updates[name], up=up) for name, up in found.items()}

    def check(self):
        if not self.doses or not all(dose >= 1 and dose == int(dose) for dose in self.doses) or not self.learning_rate > 0:
            raise InputError("unlearn: steps must be whole numbers from 1 on, and the learning rate above 0")
