"""Mitigations on a diffusers pipeline, for the length of a `with`.

    with mitigated(pipe, "og-dtp") as run:
        images = pipe(prompts, guidance_scale=7.5, generator=generators).images
    run.transition_timesteps, run.prediction_gaps, run.denoiser_calls     # one entry an image

Each pipe(...) is met twice. Around it, its arguments are read, and changed where a mitigation works on prompts, embeddings or
initial noise. Inside it, a hook on the denoiser computes only the rows that are needed and combines the two predictions itself:
see guidance_hook.py.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch

from rotescope.mitigate.adapters.batch_rows import own_lists
from rotescope.mitigate.adapters.compatibility import check_call, check_chain
from rotescope.mitigate.adapters.effects import distilled_lines, effect_lines, is_plain, warn_of
from rotescope.mitigate.adapters.guidance_hook import hook_for, hooked
from rotescope.mitigate.adapters.run_record import MitigatedRun
from rotescope.mitigate.contract.catalogue import name_of
from rotescope.mitigate.contract.families import call_parameters, denoiser_of
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.contract.pipeline_call import PipelineCall
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation


@contextmanager
def mitigated(pipe: Any, *mitigations: str | Mitigation) -> Iterator[MitigatedRun]:
    """Put mitigations on a pipeline for the length of a `with`. Outside, the pipeline is as it was.

    Parameters
    ----------
    pipe : diffusers pipeline
        Of a family in contract/families.py; under "none" alone, of any.
    *mitigations : str or Mitigation
        Names of `list_mitigations`, perhaps with settings ("og-stp:before=-3"), or objects. Only one may combine predictions.

    Yields
    ------
    MitigatedRun
        What the pipeline did: `active`, `transition_timesteps`, `prediction_gaps` and `denoiser_rows`, an entry for each image.

    Warns
    -----
    MitigationWarning
        Where a call leaves all its images as they were, or never turns to guidance, and for a distilled model.

    Raises
    ------
    InputError
        For a pipeline that cannot be served or that already carries mitigations, for two that both combine predictions, and for
        one that is named twice.

    Examples
    --------
    >>> with mitigated(pipe, "stp:transition=600") as run:
    ...     found = pipe("a cat on a blue background", guidance_scale=7.5, num_inference_steps=4).images
    >>> len(run.denoiser_rows), len(run.transition_timesteps)
    (1, 1)
    """
    named = [get_mitigation(m) if isinstance(m, str) else m for m in mitigations]
    chain, run = check_chain(pipe, named), MitigatedRun(named)
    told = " and ".join(m if isinstance(m, str) else name_of(m, ENTRIES) for m in mitigations)

    def on_call(call, proceed):
        result = _run_call(pipe, chain, call, proceed, run)
        _tell_effect(pipe, told, run)
        return result
    with intercepted(pipe, on_call):
        yield run


@contextmanager
def intercepted(pipe, on_call):
    """pipe(…) becomes on_call(PipelineCall, proceed), by a subclass made for the length of the `with`.

    proceed(**changed) runs the pipeline with the call's arguments, some of them changed.
    """
    original = type(pipe)

    @wraps(original.__call__)
    def __call__(self, *args, **kwargs):
        call = PipelineCall(self, {**dict(zip(names, args, strict=False)), **kwargs})
        return on_call(call, lambda **changed: original.__call__(self, **own_lists({**call.arguments, **changed})))

    names = list(call_parameters(original))
    pipe.__class__ = type(original.__name__, (original,), {"__call__": __call__, "_rotescope": True})
    pipe.__class__.__module__ = original.__module__
    try:
        yield
    finally:
        pipe.__class__ = original


def _run_call(pipe, chain, call, proceed, run):
    if not is_plain(chain):
        check_call(call)
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


def _tell_effect(pipe, told, run):
    """Warn of what the last call did less than `told`, the mitigations' names, say; at the first one, of the model."""
    hook = run.calls[-1]
    of_model = distilled_lines(pipe) if len(run.calls) == 1 and not is_plain(run.mitigations) else []
    warn_of([*of_model, *effect_lines(told, run.mitigations, hook.active.tolist(), hook.transitions, hook.timesteps)])


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
