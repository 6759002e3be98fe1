"""Mitigations on a diffusers pipeline, for the length of a `with`.

    with mitigated(pipe, "og-dtp") as run:
        images = pipe(prompts, guidance_scale=7.5, generator=generators).images
    run.transition_timesteps, run.prediction_gaps, run.denoiser_calls     # one entry an image

Each pipe(...) is met twice. Around it, its arguments are read, and changed where a mitigation works on prompts, embeddings or
initial noise. Inside it, a hook on the denoiser computes only the rows that are needed and combines the two predictions itself.
Most pipelines send the doubled batch [unconditional; conditional]: the result goes back in both halves, so that the pipeline's
formula u + s·(c − u) leaves it as it is. FLUX calls its transformer twice: conditional, then unconditional.
"""
import inspect
from contextlib import ExitStack, contextmanager
from functools import wraps

import torch
from diffusers.hooks import HookRegistry, ModelHook

from rotescope.errors import InputError
from rotescope.mitigate.guidance import PLAIN
from rotescope.mitigate.mitigation import Mitigation, PipelineCall, Step, denoiser_of, family
from rotescope.mitigate.registry import get_mitigation
from rotescope.mitigate.signals import eps_factor, noise_part, prediction_gap

NAME = "rotescope"
UNBATCHED = ("img_ids", "txt_ids", "image_rotary_emb")


@contextmanager
def mitigated(pipe, *mitigations):
    """Put mitigations (objects, or names as `get_mitigation` reads them) on `pipe`; yields a MitigatedRun.

    Outside, the pipeline is as it was. Raises InputError for a pipeline that cannot be served, for two mitigations that both
    combine predictions, for one that is named twice, and for a pipeline that already carries some.
    """
    chain = check_chain(pipe, [get_mitigation(m) if isinstance(m, str) else m for m in mitigations])
    run = MitigatedRun()
    with intercepted(pipe, lambda call, proceed: _run_call(pipe, chain, call, proceed, run)):
        yield run


def check_chain(pipe, chain):
    """-> the mitigations, if they can work together and on this pipeline; else InputError."""
    denoiser, kind = denoiser_of(pipe), family(pipe)
    if getattr(type(pipe), "_rotescope", False) or HookRegistry.check_if_exists_or_initialize(denoiser).get_hook(NAME):
        raise InputError("this pipeline already carries a mitigation: leave its `with` first")
    for m in chain:
        if not isinstance(m, Mitigation):
            raise InputError(f"{m!r} is no mitigation: give a name or a Mitigation")
        if m.families and kind not in m.families:
            raise InputError(f"{type(m).__name__} serves {', '.join(m.families)}, not {type(pipe).__name__}")
        if chain.count(m) > 1:
            raise InputError(f"{m!r} is named twice")
    guides = [m for m in chain if type(m).begin is not Mitigation.begin]
    if len(guides) > 1:
        raise InputError(f"{' and '.join(type(m).__name__ for m in guides)} both combine the predictions: take one of them")
    return chain if guides else [*chain, PLAIN]


@contextmanager
def intercepted(pipe, on_call):
    """pipe(…) becomes on_call(PipelineCall, proceed), proceed() running it: by a subclass made for the length of the `with`."""
    original = type(pipe)

    @wraps(original.__call__)
    def __call__(self, *args, **kwargs):
        bound = inspect.signature(original.__call__).bind(self, *args, **kwargs).arguments
        bound.pop("self")
        call = PipelineCall(self, {**bound, **bound.pop("kwargs", {})})
        return on_call(call, lambda: original.__call__(self, **call.arguments))

    pipe.__class__ = type(original.__name__, (original,), {"__call__": __call__, "_rotescope": True})
    pipe.__class__.__module__ = original.__module__
    try:
        yield
    finally:
        pipe.__class__ = original


def _run_call(pipe, chain, call, proceed, run):
    refuse_what_cannot_work(call)
    guide, denoiser = next(m for m in chain if type(m).begin is not Mitigation.begin), denoiser_of(pipe)
    hook = (TwoCallHook if call.family == "flux" else DoubledHook)(pipe, call, guide)
    with ExitStack() as stack:
        for m in chain:
            m.prepare(call)
        for m in chain:
            stack.enter_context(m.attach(call))
        registry = HookRegistry.check_if_exists_or_initialize(denoiser)
        registry.register_hook(hook, NAME)
        stack.callback(registry.remove_hook, NAME, recurse=False)
        result = proceed()
    run.calls.append(hook)
    return result


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
        self.timesteps, self.gaps, self.run = [], [], None
        self.rows = self.calls = torch.zeros(call.n, dtype=torch.long)

    def _begin(self, timestep, device):
        """-> is this timestep the one before?"""
        if self.run is None:
            self.run = self.mitigation.begin(self.call.n, self.call.guidance_scale, device)
        return bool(self.timesteps) and self.timesteps[-1] == timestep

    def _guide(self, timestep, repeated, sample, cond, uncond, needs, denoise):
        """Combine, and note the step -> guided prediction (n, …)."""
        gap = prediction_gap(noise_part(cond, sample), noise_part(uncond, sample), eps_factor(self.pipe.scheduler, timestep))
        gap = gap.masked_fill(~(needs[0] & needs[1]), torch.nan)
        if not repeated:
            self.timesteps.append(timestep)
            self.gaps.append(gap)
        self.rows = self.rows + (needs[0].long() + needs[1].long()).cpu()
        self.calls = self.calls + (needs[0] | needs[1]).long().cpu()
        return self.run.guide(Step(timestep, len(self.timesteps) - 1, repeated, sample, cond, uncond, gap, self.call, denoise))

    def _forward(self, rows, arguments):
        """The denoiser on some rows of its batch -> its output, with zeros for the others; and a function that packs it up."""
        if not rows.any():
            sample = arguments.get("hidden_states", arguments.get("sample"))
            output = (sample.new_zeros(sample.shape),)
        else:
            output = self.fn_ref.original_forward(**take_rows(arguments, rows))
        first = output[0]
        full = first if rows.all() else first.new_zeros((len(rows), *first.shape[1:])).index_put_((rows,), first)
        return full, lambda x: (x, *output[1:]) if isinstance(output, tuple) else type(output)(sample=x)

    def _extra(self, arguments, which, changed):
        """One more denoiser call on the rows `which`, under other arguments; it is counted."""
        self.rows = self.rows + 1
        return self.fn_ref.original_forward(**{**take_rows(arguments, which), **changed})[0]


class DoubledHook(GuidanceHook):
    """Stable Diffusion 1, 2, XL, 3, PixArt and whatever else sends [unconditional; conditional] at once."""

    def new_forward(self, module, *args, **kwargs):
        arguments = _named(self.fn_ref.original_forward, args, kwargs)
        sample, timestep = arguments.get("hidden_states", arguments.get("sample")), _scalar(arguments["timestep"])
        n = self.call.n
        if len(sample) != 2 * n:
            raise InputError(f"the pipeline sent {len(sample)} rows for {n} images, not a doubled batch: it cannot be mitigated")
        repeated = self._begin(timestep, sample.device)
        cond, uncond = needs = self.run.branches(timestep)
        both, pack = self._forward(torch.cat([uncond, cond]), arguments)
        last = torch.arange(2 * n, device=sample.device) >= n
        guided = self._guide(timestep, repeated, sample[n:], both[n:], both[:n], needs,
                             lambda **changed: self._extra(arguments, last, changed))
        return pack(torch.cat([guided, guided]))


class TwoCallHook(GuidanceHook):
    """FLUX under true guidance: conditional call, then unconditional, then u' + s·(c' − u') in the pipeline.

    What the second call returns makes that come out as guided = G: u' = (G − s·c') / (1 − s). Where s is the pipeline's own
    scale and nothing was left out, u' is u itself.
    """
    pending = None

    def new_forward(self, module, *args, **kwargs):
        arguments = _named(self.fn_ref.original_forward, args, kwargs)
        sample, timestep = arguments["hidden_states"], _scalar(arguments["timestep"] * 1000)
        if len(sample) != self.call.n:
            raise InputError(f"the pipeline sent {len(sample)} rows for {self.call.n} images: it cannot be mitigated")
        if self.pending is None:
            repeated = self._begin(timestep, sample.device)
            needs = self.run.branches(timestep)
            cond, pack = self._forward(needs[0], arguments)
            self.pending = repeated, needs, cond, arguments
            return pack(cond)
        (repeated, needs, cond, conditional), self.pending = self.pending, None
        uncond, pack = self._forward(needs[1], arguments)
        every = torch.ones(self.call.n, dtype=torch.bool, device=sample.device)
        guided = self._guide(timestep, repeated, sample, cond, uncond, needs,
                             lambda **changed: self._extra(conditional, every, changed))
        scale = self.call.guidance_scale
        same = (guided == uncond + scale * (cond - uncond)).flatten(1).all(1)
        return pack(torch.where(same.view(-1, 1, 1), uncond, (guided - scale * cond) / (1 - scale)))


class MitigatedRun:
    """Per image, in the order in which the pipeline made them, over all calls inside the `with`."""

    def __init__(self):
        self.calls = []

    @property
    def transition_timesteps(self):
        """The timestep at which each image's transition came; None where there was none."""
        return [None if t < 0 else t for c in self.calls for t in _transitions(c)]

    @property
    def prediction_gaps(self):
        """‖eps_cond − eps_uncond‖₂ at each distinct timestep of each image, in ε; NaN where one branch was not computed."""
        return [row for c in self.calls for row in torch.stack(c.gaps, 1).tolist()]

    @property
    def timesteps(self):
        """The distinct timesteps of the last call."""
        return list(self.calls[-1].timesteps) if self.calls else []

    @property
    def denoiser_calls(self):
        """Denoiser calls in which each image took part."""
        return [k for c in self.calls for k in c.calls.tolist()]

    @property
    def denoiser_rows(self):
        """Rows of the denoiser's batch that each image cost, all told; plain guidance costs two a call."""
        return [r for c in self.calls for r in (c.rows + c.call.extra_rows).tolist()]


def _transitions(hook):
    found = hook.run.transition_timesteps
    return [-1] * hook.call.n if found is None else found.tolist()


def _named(forward, args, kwargs):
    """Positional arguments by their names."""
    return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


def _scalar(timestep):
    """A timestep, or one a row -> int where it is whole, else float."""
    t = torch.as_tensor(timestep).flatten()[0].item()
    return int(t) if t == int(t) else t


def take_rows(value, rows, name=""):
    """Keep `rows` (bool) of every tensor in `value` that has one entry a row; the rest is passed on as it is."""
    if rows.all() or name in UNBATCHED:
        return value
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == len(rows) else value
    if isinstance(value, dict):
        return {k: take_rows(v, rows, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(v, rows) for v in value)
    return value
