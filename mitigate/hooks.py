"""A policy on a classic diffusers pipeline, as a hook on its denoiser.

    with mitigated(pipe, "og-dtp") as run:
        images = pipe(prompts, guidance_scale=7.5, generator=generators).images
    run.transition_timesteps, run.prediction_gaps, run.denoiser_rows     # one entry an image

The pipeline sends the doubled batch [unconditional; conditional]. The hook computes only the rows that the policy needs,
combines the halves itself and returns the result in both, so that the pipeline's formula u + s·(c − u) leaves it as it is.
"""
from contextlib import contextmanager

import torch
from diffusers.hooks import HookRegistry, ModelHook

from rotescope.errors import InputError
from rotescope.mitigate.guidance import get_policy
from rotescope.mitigate.signals import eps_factor, prediction_gap

NAME = "rotescope_guidance"


class GuidanceHook(ModelHook):
    """Keeps one policy run and one record per pipeline call; a call is over after as many steps as its pipeline has."""

    def __init__(self, pipe, policy):
        super().__init__()
        self.pipe, self.policy, self.calls = pipe, policy, []

    def new_forward(self, module, sample, timestep, *args, **kwargs):
        self._refuse_what_cannot_work(sample)
        n, t = len(sample) // 2, int(torch.as_tensor(timestep).flatten()[0])
        call = self._call(n, t, sample.device)
        cond, uncond = call.run.branches(t)
        rows = torch.cat([uncond, cond])
        sample, timestep, *args = take_rows((sample, timestep, *args), rows)
        output = self.fn_ref.original_forward(sample, timestep, *args, **take_rows(kwargs, rows))
        first = output[0]
        both = first.new_zeros((2 * n, *first.shape[1:]))  # a branch that is not needed has weight 0 and stays 0
        both[rows] = first
        eps_uncond, eps_cond = both.chunk(2)
        gap = prediction_gap(eps_cond, eps_uncond, eps_factor(self.pipe.scheduler, t))
        gap = gap.masked_fill(~(cond & uncond), torch.nan)
        guided = call.run.guide(eps_cond, eps_uncond, t, gap)
        call.note(t, gap, rows)
        guided = torch.cat([guided, guided])
        return (guided, *output[1:]) if isinstance(output, tuple) else type(output)(sample=guided)

    def _call(self, n, timestep, device):
        done = self.calls and (self.calls[-1].steps >= self.pipe.num_timesteps or timestep > self.calls[-1].timesteps[-1])
        if not self.calls or done:
            self.calls.append(Call(self.policy.begin(n, self.pipe.guidance_scale, device), n, device))
        return self.calls[-1]

    def _refuse_what_cannot_work(self, sample):
        if not self.pipe.do_classifier_free_guidance:
            raise InputError(f"guidance_scale={self.pipe.guidance_scale} sends one branch only: give a scale above 1")
        if getattr(self.pipe, "guidance_rescale", 0):
            raise InputError("guidance_rescale cannot be combined with a mitigation: leave it at 0")
        if len(sample) % 2:
            raise InputError(f"the pipeline sent {len(sample)} rows, not a doubled batch: a hook cannot mitigate it")


class Call:
    """What one pipeline call did."""

    def __init__(self, run, n, device):
        self.run, self.steps, self.timesteps, self.gaps = run, 0, [], []
        self.rows = torch.zeros(n, dtype=torch.long, device=device)

    def note(self, timestep, gap, rows):
        self.steps += 1
        self.timesteps.append(timestep)
        self.gaps.append(gap)
        self.rows += rows.view(2, -1).sum(0)


class MitigatedRun:
    """Per image, in the order in which the pipeline made them, over all calls inside the `with`."""

    def __init__(self, hook):
        self._hook = hook

    @property
    def transition_timesteps(self):
        """The timestep at which each image's transition came; None where it never did."""
        return [None if t < 0 else t for call in self._hook.calls for t in call.run.transition_timesteps.tolist()]

    @property
    def prediction_gaps(self):
        """‖eps_cond − eps_uncond‖₂ at each step of each image, in ε; NaN where one branch was not computed."""
        return [row for call in self._hook.calls for row in torch.stack(call.gaps, 1).tolist()]

    @property
    def timesteps(self):
        """The timesteps of the last call."""
        return list(self._hook.calls[-1].timesteps) if self._hook.calls else []

    @property
    def denoiser_rows(self):
        """Rows of the denoiser's batch that each image cost; plain guidance costs two a step."""
        return [r for call in self._hook.calls for r in call.rows.tolist()]


def take_rows(value, rows):
    """Keep `rows` (bool, 2n) of every tensor in `value` whose batch is the doubled one; the rest is passed on as it is."""
    if rows.all():
        return value
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == len(rows) else value
    if isinstance(value, dict):
        return {k: take_rows(v, rows) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(v, rows) for v in value)
    return value


@contextmanager
def mitigated(pipe, policy):
    """Put a policy (an object or a name, as `get_policy` reads it) on `pipe` for the length of a `with`; yields a MitigatedRun.

    Outside, the pipeline is as it was. Raises InputError for a pipeline without a denoiser to hook, and for a second policy on
    the same pipeline.
    """
    policy = get_policy(policy) if isinstance(policy, str) else policy
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None:
        raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer: there is nothing to mitigate")
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(NAME):
        raise InputError("this pipeline already carries a mitigation: leave its `with` first")
    hook = GuidanceHook(pipe, policy)
    registry.register_hook(hook, NAME)
    try:
        yield MitigatedRun(hook)
    finally:
        registry.remove_hook(NAME, recurse=False)
