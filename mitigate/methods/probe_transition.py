"""The released variant of opposite guidance with a dynamic transition: a probe finds the transition beforehand. For comparison.

Read in the authors' code (Jain et al., CVPR 2025, arXiv 2411.16738): all steps are run once under opposite guidance, then
c[k] = 1 − cos(x_{k+1}, x_k) of the successive latents is searched for its first strict minimum. As released it then switches to a
grid of 200 steps, flips the sign of the scale at every step and leaves before an image is saved; none of that is repeated here.
"""
from dataclasses import dataclass

import torch

from rotescope.mitigate.contract.mitigation import NOT_NEGATIVE, Mitigation, check_ranges
from rotescope.mitigate.methods.local_minimum import local_minima
from rotescope.mitigate.methods.transition import ScaleRun, TransitionGuidance, TransitionRun


@dataclass(frozen=True)
class ProbeTransition(Mitigation):
    """Scale `before` until step k, the pipeline's guidance_scale from it on; k from a probe of as many steps as the run has.

    before: scale of the probe, too. fallback_index: k where c has no minimum.
    """
    before: float = -7.5
    fallback_index: int = 5

    def __post_init__(self):
        check_ranges(self, fallback_index=NOT_NEGATIVE)

    def survey(self, call):
        hook, latents = call.probe(_Probe(self.before))
        curves, timesteps = hook.run.curves(latents), hook.timesteps
        call.memory[self] = torch.tensor([timesteps[min(self._index(c), len(timesteps) - 1)] for c in curves.tolist()],
                                         dtype=torch.float64)

    def begin(self, n, guidance_scale, device):
        return _ProbedRun(TransitionGuidance(self.before), self, n, guidance_scale)

    def _index(self, curve):
        """As released: a first minimum at 1 gives way to the second, if there is one."""
        found = local_minima(curve)
        return self.fallback_index if not found else found[1] if found[0] == 1 and len(found) > 1 else found[0]


class _ProbedRun(TransitionRun):
    def __init__(self, policy, probed, n, after):
        super().__init__(policy, n, after)
        self.probed = probed

    def limit(self):
        return self.call.memory[self.probed]


@dataclass(frozen=True)
class _Probe(Mitigation):
    scale: float

    def begin(self, n, guidance_scale, device):
        return _ProbeRun(self.scale, n)


class _ProbeRun(ScaleRun):
    """One scale for all; remembers how far each latent turned since the one before."""

    def __init__(self, scale, n):
        super().__init__(n)
        self.constant, self.turns, self.last = torch.full((n,), scale, dtype=torch.float64), [], None

    def scale(self, timestep):
        return self.constant

    def guide(self, step):
        if not step.repeated:
            self._look(step.sample)
        return super().guide(step)

    def curves(self, latents):
        """Final latents -> c (n, steps); scaling a latent, as some schedulers do, does not change its angle."""
        self._look(latents)
        return torch.stack(self.turns, 1)

    def _look(self, latents):
        flat = latents.float().flatten(1)
        if self.last is not None:
            self.turns.append(1 - torch.cosine_similarity(flat, self.last, dim=1).cpu())
        self.last = flat
