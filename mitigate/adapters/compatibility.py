"""Which pipelines, mitigations and calls go together. On a pipeline that orders its branches or counts its time otherwise, a
mitigation would do nothing, or harm, and not say so: it is refused."""
from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.guidance_hook import NAME
from rotescope.mitigate.contract.families import FAMILIES, call_parameters, denoiser_of, family, why_one_branch
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.models.memory import check_differentiable
from rotescope.models.pipelines import counts_timesteps


def supported_family(pipe):
    """-> its family; InputError for a pipeline that is of none, or that counts its time otherwise."""
    if any(base.__name__ == "ModularPipeline" for base in type(pipe).__mro__):
        raise InputError(f"{type(pipe).__name__} is modular, and takes a mitigation as its guider: "
                         "pipe.update_components(guider=guider_for(pipe, NAME)), from rotescope.mitigate.adapters.guider")
    denoiser_of(pipe)
    kind = family(pipe)
    if why := why_one_branch(kind, pipe.config.get("is_distilled")):
        raise InputError(f"{type(pipe).__name__} takes no mitigation: {why}")
    if (scale := FAMILIES[kind].scale) not in call_parameters(type(pipe)):
        raise InputError(f"{type(pipe).__name__} takes no mitigation: it takes no {scale}, and so computes one branch. Plain "
                         "guidance, none, works")
    check_scheduler(pipe.scheduler)
    return kind


def check_scheduler(scheduler):
    """InputError for one whose timesteps do not run from 1000 to 0: every transition would be past at once."""
    if not counts_timesteps(scheduler):
        kind = scheduler.config.get("timestep_type")
        name = type(scheduler).__name__ + (f"(timestep_type={kind!r})" if kind else "")
        raise InputError(f"{name} does not count its timesteps from 1000 to 0, as mitigations do: give the pipeline another "
                         "scheduler")


def check_chain(pipe, chain):
    """-> the mitigations, if they can work together and on this pipeline; else InputError. Plain guidance works on every one that
    has a denoiser."""
    kind = family(pipe) if all(m == PLAIN for m in chain) else supported_family(pipe)
    denoiser = denoiser_of(pipe)
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
        check_differentiable({name: getattr(pipe, name) for name in m.differentiates}, type(m).__name__)
        m.check_pipeline(pipe)
        if chain.count(m) > 1:
            raise InputError(f"{m!r} is named twice")
    guides = [m for m in chain if type(m).begin is not Mitigation.begin]
    if len(guides) > 1:
        raise InputError(f"{' and '.join(type(m).__name__ for m in guides)} both combine the predictions: take one of them")
    return chain if guides else [*chain, PLAIN]


def check_scale(pipe, mitigation, scale):
    """InputError for a mitigation that is not plain guidance at a scale, 1 for none, at which there is one branch only."""
    if mitigation != PLAIN and not (scale and scale > 1):
        raise InputError(f"{type(pipe).__name__} computes one branch at its guidance scale of {scale}, and a mitigation needs "
                         "two: give --guidance_scale, above 1, such as 3.5, or take plain guidance, none")


def check_call(call):
    """InputError, before anything runs, for arguments under which the two predictions never meet in the hook."""
    row = call.row
    if not call.guidance_scale or call.guidance_scale <= 1:
        raise InputError(f"{row.scale}={call.get(row.scale)} sends one branch only: give a scale above {row.argument(1):g}")
    if row.negative == "needed" and call.get("negative_prompt") is None and call.get("negative_prompt_embeds") is None:
        raise InputError(f'{type(call.pipe).__name__} has an unconditional branch only with a negative prompt: give '
                         'negative_prompt=""')
    for other in ("guidance_rescale", "skip_guidance_layers"):
        if call.get(other):
            raise InputError(f"{other} cannot be combined with a mitigation: leave it out")
    for other in ("cfg_truncation", "cfg_trunc_ratio"):
        if (call.get(other) or 1) < 1:
            raise InputError(f"{other} leaves guidance out of some steps, and cannot be combined with a mitigation: leave it out")
