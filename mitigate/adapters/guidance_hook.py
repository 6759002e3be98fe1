"""The hook that combines the two predictions inside a denoiser, computes the rows that are needed, and notes what happened.

Most pipelines send the doubled batch [unconditional; conditional]: the guided prediction goes back in both halves, so that the
pipeline's formula u + s·(c − u) leaves it as it is. FLUX calls its transformer twice, conditional, then unconditional: there it
replaces both outputs at the second call.
"""
import inspect
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from rotescope.common.errors import InputError
from rotescope.common.outputs import whole
from rotescope.mitigate.adapters.batch_rows import splittable, take_rows
from rotescope.mitigate.contract.families import denoiser_of
from rotescope.mitigate.contract.mitigation import Step, same_timestep
from rotescope.mitigate.contract.prediction import combine, differs, latent_part, noise_part, prediction_gap
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.models.prediction import slope_at

NAME = "rotescope"  # of the hook in diffusers' registry


def hook_for(pipe, call, mitigation):
    return (TwoCallHook if call.family == "flux" else DoubledHook)(pipe, call, mitigation)


@contextmanager
def hooked(denoiser, hook):
    """`hook` on the denoiser, and afterwards nothing that was not there before."""
    homes = {"forward": denoiser, "_diffusers_hook": getattr(denoiser, "_orig_mod", denoiser)}  # the latter where it is compiled
    new = [(vars(home), name) for name, home in homes.items() if vars(home).get(name) is None]
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    registry.register_hook(hook, NAME)
    try:
        yield
    finally:
        registry.remove_hook(NAME, recurse=False)
        for attributes, name in new:
            attributes.pop(name, None)


class GuidanceHook(ModelHook):
    """What one pipeline call does in the denoiser, and the record of it."""

    def __init__(self, pipe, call, mitigation):
        super().__init__()
        self.pipe, self.call, self.mitigation = pipe, call, mitigation
        self.timesteps, self.gaps = [], []
        self.run: Any = None
        self.rows = self.calls = torch.zeros(call.n, dtype=torch.long)
        self.guided_otherwise = torch.zeros(call.n, dtype=torch.bool)

    def _needs(self, timestep, arguments, device):
        """-> was this timestep the one before, too? And which predictions are computed: (cond, uncond), each a bool (n,)."""
        if self.run is None:
            self.run = self.mitigation.begin(self.call.n, self.call.guidance_scale, device)
            self.run.call = self.call
        repeated = bool(self.timesteps) and same_timestep(self.timesteps[-1], timestep)
        needs = [which.cpu() for which in self.run.branches(timestep)]
        return repeated, needs if splittable(arguments) else [torch.ones_like(which) for which in needs]

    def _guide(self, timestep, repeated, sample, cond, uncond, needs, denoise):
        """Combine, and note the step -> guided prediction (n, …)."""
        sample = latent_part(sample, cond)
        gap = prediction_gap(noise_part(cond, sample), noise_part(uncond, sample), abs(slope_at(self.pipe.scheduler, timestep)))
        both = needs[0] & needs[1]
        gap = gap if both.all() else gap.masked_fill(~both.to(gap.device), torch.nan)
        if not repeated:
            self.timesteps.append(timestep)
            self.gaps.append(gap)
        self.rows = self.rows + needs[0].long() + needs[1].long()
        self.calls = self.calls + (needs[0] | needs[1]).long()
        step = Step(timestep, len(self.timesteps) - 1, repeated, sample, cond, uncond, gap, self.call, denoise)
        guided = self.run.guide(step)
        if self.mitigation != PLAIN:
            self._note_effect(guided, cond, uncond, both)
        return guided

    def _note_effect(self, guided, cond, uncond, both):
        """Which images this step guides otherwise than the pipeline would by itself. Nothing waits for the device."""
        plain = combine(cond, uncond, torch.full((self.call.n,), float(self.call.guidance_scale)))
        new = ~both.to(guided.device) | differs(guided, plain)
        self.guided_otherwise = self.guided_otherwise.to(guided.device) | new

    @property
    def transitions(self):
        """Of each image: the timestep at which guidance set in, or None."""
        found = self.run.transition_timesteps
        return [None if t < 0 else whole(t) for t in ([-1] * self.call.n if found is None else found.tolist())]

    @property
    def active(self):
        """(n,) whether the mitigation changed anything of an image: a prediction, or what went into it."""
        return self.guided_otherwise.cpu() | self.call.changed

    def _forward(self, rows, arguments):
        """The denoiser on some rows of its batch -> its output, with zeros for the others; and a function that packs it up."""
        if not rows.any():
            sample = arguments.get("hidden_states", arguments.get("sample"))
            output = (sample.new_zeros(sample.shape),)
        else:
            output = self.fn_ref.original_forward(**take_rows(arguments, rows))
        first, rows = output[0], rows.to(output[0].device)
        full = first if len(first) == len(rows) else first.new_zeros((len(rows), *first.shape[1:])).index_put_((rows,), first)
        return full, lambda x: (x, *output[1:]) if isinstance(output, tuple) else type(output)(sample=x)

    def _extra(self, arguments, half, images=None, **changed):
        """One more call of n rows, the `half` of arguments with some changed, for `images`, a bool (n,), or all; counted."""
        images = torch.ones(self.call.n, dtype=torch.bool) if images is None else images.cpu()
        self.rows = self.rows + images.long()
        return self._forward(images, {**take_rows(arguments, half), **changed})[0]

    def _named(self, args, kwargs):
        """Positional arguments by their names, which torch.compile hides."""
        compiled = getattr(denoiser_of(self.pipe), "_orig_mod", None)
        forward = self.fn_ref.original_forward if compiled is None else compiled.forward
        return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


class DoubledHook(GuidanceHook):
    """Stable Diffusion 1, 2, XL, 3, PixArt and whatever else sends [unconditional; conditional] at once."""

    def new_forward(self, module, *args, **kwargs):
        arguments, n = self._named(args, kwargs), self.call.n
        sample, timestep = arguments.get("hidden_states", arguments.get("sample")), _scalar(arguments["timestep"])
        if len(sample) != 2 * n:
            raise InputError(f"the pipeline sent {len(sample)} rows for {n} images, not a doubled batch: it cannot be mitigated")
        repeated, needs = self._needs(timestep, arguments, sample.device)
        both, pack = self._forward(torch.cat([needs[1], needs[0]]), arguments)
        last = torch.arange(2 * n) >= n
        guided = self._guide(timestep, repeated, sample[n:], both[n:], both[:n], needs, partial(self._extra, arguments, last))
        return pack(torch.cat([guided, guided]))


class TwoCallHook(GuidanceHook):
    """FLUX under true guidance: conditional call c, then unconditional u, then u + s·(c − u) in the pipeline.

    The guided prediction G takes the place of both: u by being returned, c by being written into the tensor that the pipeline
    holds. G + s·(G − G) is G, exactly.
    """
    pending: Any = None

    def new_forward(self, module, *args, **kwargs):
        arguments = self._named(args, kwargs)
        sample = arguments["hidden_states"]
        if len(sample) != self.call.n:
            raise InputError(f"the pipeline sent {len(sample)} rows for {self.call.n} images: it cannot be mitigated")
        if self.pending is None:
            timestep = self._timestep(arguments)
            repeated, needs = self._needs(timestep, arguments, sample.device)
            held, pack = self._forward(needs[0], arguments)
            self.pending = timestep, repeated, needs, held, arguments
            return pack(held)
        (timestep, repeated, needs, held, conditional), self.pending = self.pending, None
        uncond, pack = self._forward(needs[1], arguments)
        every = torch.ones(self.call.n, dtype=torch.bool)
        guided = self._guide(timestep, repeated, sample, held.clone(), uncond, needs, partial(self._extra, conditional, every))
        held.copy_(guided)
        return pack(guided)

    def _timestep(self, arguments):
        """The pipeline passes t / 1000 in its own precision, too coarse in bfloat16: its own t is exact, where it keeps one."""
        exact = getattr(self.pipe, "_current_timestep", None)
        return _scalar(torch.round(arguments["timestep"] * 1000, decimals=2) if exact is None else exact)


def _scalar(timestep):
    """A timestep, or one a row -> int where it is whole, else float."""
    return whole(torch.as_tensor(timestep).flatten()[0].item())
