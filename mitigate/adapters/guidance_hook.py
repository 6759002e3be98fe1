"""The hook that combines the two predictions inside a denoiser, computes the rows that are needed, and notes what happened.

Many pipelines send a doubled batch: the guided prediction goes back in both halves, so that the pipeline's formula u + s·(c − u)
leaves it as it is. Others call their denoiser twice: there it replaces both outputs at the second call. contract/families.py says
which do which. Under plain guidance nothing is replaced.
"""
import inspect
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from rotescope.common.errors import InputError
from rotescope.common.outputs import whole
from rotescope.mitigate.adapters.batch_rows import own_lists, splittable, take_rows
from rotescope.mitigate.contract.families import SAMPLE_NAMES, TIME_NAMES, denoiser_of
from rotescope.mitigate.contract.mitigation import Step, same_timestep
from rotescope.mitigate.contract.prediction import combine, differs, latent_part, noise_part, prediction_gap
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.models.prediction import slope_at

NAME = "rotescope"  # of the hook in diffusers' registry


def hook_for(pipe, call, mitigation):
    """The hook that fits a call; plain guidance may be off, or how it works be unknown."""
    if mitigation == PLAIN and (call.row is None or not call.guided):
        return OneBranchHook(pipe, call, mitigation)
    return (TwoCallHook if call.row.calls == "two" else DoubledHook)(pipe, call, mitigation)


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
        self.pipe, self.call, self.row, self.mitigation = pipe, call, call.row, mitigation
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
        """Combine, and note the step -> guided prediction (n, …), or None where both are to stay as they are: plain guidance is
        the pipeline's own. A mitigation sees the predictions with the sign that the scheduler sees."""
        sample, sign = latent_part(sample, cond), self.row.sign
        cond, uncond = (cond, uncond) if sign > 0 else (-cond, -uncond)
        gap = prediction_gap(noise_part(cond, sample), noise_part(uncond, sample), abs(slope_at(self.pipe.scheduler, timestep)))
        both = needs[0] & needs[1]
        gap = gap if both.all() else gap.masked_fill(~both.to(gap.device), torch.nan)
        if not repeated:
            self.timesteps.append(timestep)
            self.gaps.append(gap)
        self.rows = self.rows + needs[0].long() + needs[1].long()
        self.calls = self.calls + (needs[0] | needs[1]).long()
        step = Step(timestep, len(self.timesteps) - 1, repeated, sample, cond, uncond, gap, self.call,
                    denoise if sign > 0 else lambda *given, **changed: -denoise(*given, **changed))
        guided = self.run.guide(step)
        if self.mitigation == PLAIN:
            return None
        self._note_effect(guided, cond, uncond, both)
        return sign * self._finished(guided, cond, needs[0])

    def _finished(self, guided, cond, known):
        """What the pipeline does to the guided prediction, where the conditional one, which sets its measure, is known."""
        if self.row.after is None or not known.any():
            return guided
        done = self.row.after(guided, cond, self.call)
        return done if known.all() else torch.where(known.to(done.device).view(-1, *[1] * (done.dim() - 1)), done, guided)

    def _note_effect(self, guided, cond, uncond, both):
        """Which images this step guides otherwise than the pipeline would by itself. Nothing waits for the device."""
        plain = combine(cond, uncond, torch.full((self.call.n,), float(self.call.guidance_scale)))
        new = ~both.to(guided.device) | differs(guided, plain)
        self.guided_otherwise = self.guided_otherwise.to(guided.device) | new

    @property
    def transitions(self):
        """Of each image: the timestep at which guidance set in, or None."""
        found = self.run and self.run.transition_timesteps
        return [None if t < 0 else whole(t) for t in ([-1] * self.call.n if found is None else found.tolist())]

    @property
    def active(self):
        """(n,) whether the mitigation changed anything of an image: a prediction, or what went into it."""
        return self.guided_otherwise.cpu() | self.call.changed

    def _forward(self, rows, arguments):
        """The denoiser on some rows of its batch -> its output, with zeros for the others; and a function that packs it up."""
        if not rows.any():
            sample = _sample_of(arguments)
            output = (sample.new_zeros(sample.shape),)
        else:
            output = self.fn_ref.original_forward(**own_lists(take_rows(arguments, rows)))
        first = torch.stack(output[0]) if isinstance(output[0], list) else output[0]
        rows, as_list = rows.to(first.device), isinstance(output[0], list) or isinstance(arguments.get("x"), list)
        full = first if len(first) == len(rows) else first.new_zeros((len(rows), *first.shape[1:])).index_put_((rows,), first)

        def pack(x):
            x = list(x) if as_list else x
            return (x, *output[1:]) if isinstance(output, tuple) else type(output)(sample=x)
        return full, pack

    def _extra(self, arguments, half, images=None, **changed):
        """One more call of n rows, the `half` of arguments with some changed, for `images`, a bool (n,), or all; counted."""
        images = torch.ones(self.call.n, dtype=torch.bool) if images is None else images.cpu()
        self.rows = self.rows + images.long()
        return self._forward(images, {**take_rows(arguments, half), **changed})[0]

    def _timestep(self, arguments):
        """The pipeline's own, where it keeps one: what a denoiser is told may be a share of it, too coarse in bfloat16."""
        exact = getattr(self.pipe, "_current_timestep", None)
        if exact is not None:
            return _scalar(exact)
        told = torch.as_tensor(_named_first(arguments, TIME_NAMES)).flatten()[0].double().item()
        own = self.row.timestep(told, self.pipe.scheduler.config.num_train_timesteps)
        return whole(own if self.row.clock == "timestep" else self._nearest(own))

    def _nearest(self, timestep):
        """The scheduler's timestep that is nearest to a rounded one."""
        own = self.pipe.scheduler.timesteps.double().flatten()
        return own[(own - timestep).abs().argmin()].item()

    def _named(self, args, kwargs):
        """Positional arguments by their names, which torch.compile hides."""
        compiled = getattr(denoiser_of(self.pipe), "_orig_mod", None)
        forward = self.fn_ref.original_forward if compiled is None else compiled.forward
        return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


class DoubledHook(GuidanceHook):
    """Both halves at once, [unconditional; conditional] or the other way round: the guided prediction goes back in both."""

    def new_forward(self, module, *args, **kwargs):
        arguments, n = self._named(args, kwargs), self.call.n
        sample = _sample_of(arguments)
        if len(sample) != 2 * n:
            raise InputError(f"the pipeline sent {len(sample)} rows for {n} images, not a doubled batch: it cannot be mitigated")
        timestep = self._timestep(arguments)
        repeated, needs = self._needs(timestep, arguments, sample.device)
        halves = (slice(0, n), slice(n, 2 * n))
        cond, uncond = halves if self.row.cond_first else halves[::-1]
        wanted = torch.empty(2 * n, dtype=torch.bool)
        wanted[cond], wanted[uncond] = needs
        both, pack = self._forward(wanted, arguments)
        half = torch.zeros(2 * n, dtype=torch.bool)
        half[cond] = True
        guided = self._guide(timestep, repeated, sample[cond], both[cond], both[uncond], needs,
                             partial(self._extra, arguments, half))
        return pack(both if guided is None else torch.cat([guided, guided]))


class TwoCallHook(GuidanceHook):
    """A conditional call c, then an unconditional one u, then u + s·(c − u) in the pipeline, or s·c + (1 − s)·u, or the like.

    The guided prediction G takes the place of both: u by being returned, c by being written into the tensor that the pipeline
    holds. G + s·(G − G) is G, exactly.
    """
    pending: Any = None

    def new_forward(self, module, *args, **kwargs):
        arguments = self._named(args, kwargs)
        sample = _sample_of(arguments)
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
        if guided is None:
            return pack(uncond)
        held.copy_(guided)
        return pack(guided)


class OneBranchHook(GuidanceHook):
    """Plain sampling where no two branches are known: nothing is changed, and what the denoiser computes is counted."""

    def new_forward(self, module, *args, **kwargs):
        arguments = self._named(args, kwargs)
        rows, timestep = self._rows_of(arguments), self._timestep(arguments)
        again = bool(self.timesteps) and same_timestep(self.timesteps[-1], timestep)
        if not again:
            self.timesteps.append(timestep)
            self.gaps.append(torch.full((self.call.n,), torch.nan))
        self.rows = self.rows + max(1, rows // self.call.n)
        self.calls = self.calls + (not again)
        return self.fn_ref.original_forward(*args, **kwargs)

    def _rows_of(self, arguments):
        """Of the first tensor, or the first list of them: what a denoiser of no known family calls its latents is not known."""
        batches = (v for v in arguments.values() if isinstance(v, torch.Tensor) and v.dim() or v and isinstance(v, list))
        return next((len(batch) for batch in batches), self.call.n)

    def _timestep(self, arguments):
        """As the family tells it; elsewhere the scheduler's own of this step."""
        if self.row or getattr(self.pipe, "_current_timestep", None) is not None:
            return super()._timestep(arguments)
        own = self.pipe.scheduler.timesteps.flatten()
        step = getattr(self.pipe.scheduler, "step_index", None)
        return _scalar(own[min(len(self.timesteps) if step is None else step, len(own) - 1)])


def _named_first(arguments, names):
    """The first of these arguments that is given."""
    return next(arguments[name] for name in names if arguments.get(name) is not None)


def _sample_of(arguments):
    """The latents that a denoiser is given, a row each (rows, …); Z-Image has a list of them."""
    sample = _named_first(arguments, SAMPLE_NAMES)
    return torch.stack(sample) if isinstance(sample, list) else sample


def _scalar(timestep):
    """A timestep, or one a row -> int where it is whole, else float."""
    return whole(torch.as_tensor(timestep).flatten()[0].item())
