"""Mitigations on a diffusers pipeline, for the length of a `with`.

    with mitigated(pipe, "og-dtp") as run:
        images = pipe(prompts, guidance_scale=7.5, generator=generators).images
    run.transition_timesteps, run.prediction_gaps, run.denoiser_calls     # one entry an image

Each pipe(...) is met twice. Around it, its arguments are read, and changed where a mitigation works on prompts, embeddings or
initial noise. Inside it, a hook on the denoiser computes only the rows that are needed and combines the two predictions itself.
Most pipelines send the doubled batch [unconditional; conditional]: the result goes back in both halves, so that the pipeline's
formula u + s·(c − u) leaves it as it is. FLUX calls its transformer twice, conditional, then unconditional: there the result
replaces both outputs at the second call.
"""
import inspect
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from rotescope.common.errors import InputError
from rotescope.common.outputs import whole
from rotescope.common.prediction import slope_at
from rotescope.mitigate.adapters.batch_rows import splittable, take_rows
from rotescope.mitigate.adapters.compatibility import check_served
from rotescope.mitigate.adapters.run_record import MitigatedRun
from rotescope.mitigate.contract.families import denoiser_of
from rotescope.mitigate.contract.mitigation import Mitigation, Step, same_timestep
from rotescope.mitigate.contract.pipeline_call import PipelineCall
from rotescope.mitigate.contract.prediction import latent_part, noise_part, prediction_gap
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.methods.transition import PLAIN

NAME = "rotescope"


@contextmanager
def mitigated(pipe, *mitigations):
    """Put mitigations (objects, or names as `get_mitigation` reads them) on `pipe`; yields a MitigatedRun.

    Outside, the pipeline is as it was. Raises InputError for a pipeline that cannot be served, for two mitigations that both
    combine predictions, for one that is named twice, and for a pipeline that already carries some.
    """
    named = [get_mitigation(m) if isinstance(m, str) else m for m in mitigations]
    chain, run = check_chain(pipe, named), MitigatedRun(named)
    with intercepted(pipe, lambda call, proceed: _run_call(pipe, chain, call, proceed, run)):
        yield run


def check_chain(pipe, chain):
    """-> the mitigations, if they can work together and on this pipeline; else InputError."""
    kind, denoiser = check_served(pipe), denoiser_of(pipe)
    hooks = getattr(denoiser, "_diffusers_hook", None)
    if getattr(type(pipe), "_rotescope", False) or hooks is not None and hooks.get_hook(NAME):
        raise InputError("this pipeline already carries a mitigation: leave its `with` first")
    for m in chain:
        if not isinstance(m, Mitigation):
            raise InputError(f"{m!r} is no mitigation: give a name or a Mitigation")
        m.check()
        if m.families and kind not in m.families:
            raise InputError(f"{type(m).__name__} serves {', '.join(m.families)}, not {type(pipe).__name__}")
        if m.looks_inside and getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
            raise InputError(f"{type(m).__name__} looks inside the UNet and knows no IP-Adapter: pipe.unload_ip_adapter(), or "
                             "take a mitigation of the guidance alone")
        m.check_pipeline(pipe)
        if chain.count(m) > 1:
            raise InputError(f"{m!r} is named twice")
    guides = [m for m in chain if type(m).begin is not Mitigation.begin]
    if len(guides) > 1:
        raise InputError(f"{' and '.join(type(m).__name__ for m in guides)} both combine the predictions: take one of them")
    return chain if guides else [*chain, PLAIN]


@contextmanager
def intercepted(pipe, on_call):
    """pipe(…) becomes on_call(PipelineCall, proceed), by a subclass made for the length of the `with`.

    proceed(**changed) runs the pipeline with the call's arguments, some of them changed.
    """
    original = type(pipe)

    @wraps(original.__call__)
    def __call__(self, *args, **kwargs):
        bound = inspect.signature(original.__call__).bind(self, *args, **kwargs).arguments
        bound.pop("self")
        call = PipelineCall(self, {**bound, **bound.pop("kwargs", {})})
        return on_call(call, lambda **changed: original.__call__(self, **{**call.arguments, **changed}))

    pipe.__class__ = type(original.__name__, (original,), {"__call__": __call__, "_rotescope": True})
    pipe.__class__.__module__ = original.__module__
    try:
        yield
    finally:
        pipe.__class__ = original


def _run_call(pipe, chain, call, proceed, run):
    refuse_what_cannot_work(call)
    hook = hook_for(pipe, call, next(m for m in chain if type(m).begin is not Mitigation.begin))
    call.probe = lambda mitigation: _probe(pipe, call, mitigation, proceed)
    with ExitStack() as stack:
        for m in chain:
            m.prepare(call)
        for m in chain:
            stack.enter_context(m.attach(call))
        for m in chain:
            m.survey(call)
        stack.enter_context(hooked(denoiser_of(pipe), hook))
        result = proceed()
    run.calls.append(hook)
    return result


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


def _probe(pipe, call, mitigation, proceed):
    """The same call, under another mitigation and from the same noise -> (its hook, final latents). Its rows are counted."""
    hook, quiet = hook_for(pipe, call, mitigation), {"output_type": "latent", "return_dict": False}
    if call.get("callback_on_step_end") is not None:
        quiet["callback_on_step_end"] = None
    with hooked(denoiser_of(pipe), hook), kept_generators(call):
        latents = proceed(**quiet)[0]
    call.extra_rows = call.extra_rows + hook.rows
    return hook, latents


@contextmanager
def kept_generators(call):
    """Whatever is drawn inside is drawn again outside."""
    given = call.get("generator")
    generators = [g for g in (given if isinstance(given, list | tuple) else [given]) if g is not None]
    states = [g.get_state() for g in generators]
    with torch.random.fork_rng():
        yield
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def refuse_what_cannot_work(call):
    """InputError, before anything runs, for arguments under which the two predictions never meet in the hook."""
    name = "true_cfg_scale" if call.family == "flux" else "guidance_scale"
    if not call.guidance_scale or call.guidance_scale <= 1:
        raise InputError(f"{name}={call.guidance_scale} sends one branch only: give a scale above 1")
    if call.family == "flux" and call.get("negative_prompt") is None and call.get("negative_prompt_embeds") is None:
        raise InputError('FLUX has an unconditional branch only with a negative prompt: give negative_prompt=""')
    for other in ("guidance_rescale", "skip_guidance_layers"):
        if call.get(other):
            raise InputError(f"{other} cannot be combined with a mitigation: leave it out")


class GuidanceHook(ModelHook):
    """What one pipeline call does in the denoiser, and the record of it."""

    def __init__(self, pipe, call, mitigation):
        super().__init__()
        self.pipe, self.call, self.mitigation = pipe, call, mitigation
        self.timesteps, self.gaps = [], []
        self.run: Any = None
        self.rows = self.calls = torch.zeros(call.n, dtype=torch.long)

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
        return self.run.guide(Step(timestep, len(self.timesteps) - 1, repeated, sample, cond, uncond, gap, self.call, denoise))

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
