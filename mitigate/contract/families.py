"""The pipelines that mitigations know, one row a family: how its two branches are computed, and where they meet.

Read off diffusers 0.42's pipelines. A mitigation's guided prediction G takes the place of both branches, so that a pipeline's own
formula, and what it does afterwards, leave G as it is: see adapters/guidance_hook.py. A further family is a row here and a tiny
pipeline in tests/families.
"""
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.rescaling import clipped_to_norm, rescaled_to_norm

SAMPLE_NAMES, TIME_NAMES = ("hidden_states", "sample", "x"), ("timestep", "timesteps", "t")   # arguments of denoisers
CLASSIC, CLASSIC_SCALE = ("sd", "sdxl", "sd3", "pixart"), 7.5
VARIANTS = "(ControlNet(Union)?|Adapter)?(Img2Img|Inpaint(ing)?|Depth2Img|Upscale)?Pipeline"  # a class's name ends so


@dataclass(frozen=True)
class GuidedFamily:
    """How the pipelines of a family use their two branches."""
    name: str
    classes: str                    # the head of a class's name, a regular expression
    calls: str = "doubled"          # a step is "doubled", one call of both halves, or "two" calls
    cond_first: bool = False        # of the halves, or of the calls
    scale: str = "guidance_scale"   # the argument, in diffusers' convention where `off` is 1
    off: float = 1.0                # the argument that leaves guidance out: u + s (c − u), or c + s (c − u) with 0
    negative: str = ""              # prompt: "needed" for an unconditional branch, or "each" image wants one of its own
    sign: int = 1                   # -1: the pipeline negates the output before its scheduler sees it
    clock: str = "timestep"         # what the denoiser is told: a "timestep", its "share" of all, or what "remains" of them
    after: Callable | None = None   # what follows the mixing: (guided, cond, call) -> guided; None: nothing
    noise: bool = False             # takes initial noise (n, C, h, w) as `latents`
    binned: tuple[int, ...] = ()    # fits sides to tables, which it has for these latents a side alone
    together: str = "images"        # what a call may hold and still make each image as alone: any "images", those of one
    #                                 "prompt" (texts are filled up to the longest, without a mask), or one "image"
    fewest_steps: int = 1           # that the pipeline samples with guidance
    fixed: tuple[tuple[str, Any], ...] = ()   # arguments that an audit always gives

    def argument(self, scale: float) -> float:
        """A guidance scale, 1 for none -> what the pipeline is to be given."""
        return scale + self.off - 1

    def scale_of(self, argument: float | None) -> float | None:
        """What a pipeline was given -> the guidance scale, 1 for none."""
        return None if argument is None else argument - self.off + 1

    def told(self, timestep: Any, steps: int) -> Any:
        """A timestep, of `steps` in training, a number or a tensor -> what the denoiser is told."""
        return {"timestep": timestep, "share": timestep / steps, "remains": 1 - timestep / steps}[self.clock]

    def timestep(self, told: float, steps: int) -> float:
        """What the denoiser was told -> the timestep, of `steps` in training."""
        return {"timestep": told, "share": told * steps, "remains": (1 - told) * steps}[self.clock]


def _if_asked(argument, rescaling):
    """`rescaling` where the call's argument says so."""
    return lambda guided, cond, call: rescaling(guided, cond) if call.get(argument) else guided


def _longcat(guided, cond, call):
    return rescaled_to_norm(guided, cond, 1e-8, call.get("cfg_renorm_min"), 1.0) if call.get("enable_cfg_renorm") else guided


ROWS = (
    GuidedFamily("sdxl", "StableDiffusionXL", noise=True),
    GuidedFamily("sd3", "StableDiffusion3", noise=True),
    GuidedFamily("sd", "StableDiffusion", noise=True),
    GuidedFamily("pixart", "PixArt(Alpha|Sigma)", noise=True, binned=(32, 64, 128, 256), fewest_steps=2),
    GuidedFamily("flux", "Flux", calls="two", cond_first=True, scale="true_cfg_scale", negative="needed", clock="share"),
    GuidedFamily("z-image", "ZImage", cond_first=True, off=0.0, sign=-1, clock="remains",
           after=lambda guided, cond, call: clipped_to_norm(guided, cond, call.get("cfg_normalization"))),
    GuidedFamily("qwen-image", "QwenImage", calls="two", cond_first=True, scale="true_cfg_scale", negative="needed",
           clock="share", after=lambda guided, cond, call: rescaled_to_norm(guided, cond)),
    GuidedFamily("flux2-klein", "Flux2Klein", calls="two", cond_first=True, clock="share"),
    GuidedFamily("chroma", "Chroma", calls="two", cond_first=True, clock="share"),
    GuidedFamily("lumina2", "Lumina2", calls="two", cond_first=True, sign=-1, clock="remains",
           after=_if_asked("cfg_normalization", rescaled_to_norm)),
    GuidedFamily("cogview4", "CogView4", calls="two", cond_first=True, together="prompt"),
    GuidedFamily("krea2", "Krea2", calls="two", cond_first=True, off=0.0, clock="share"),
    GuidedFamily("ovis-image", "OvisImage", calls="two", cond_first=True, clock="share"),
    GuidedFamily("longcat-image", "LongCatImage", calls="two", cond_first=True, clock="share", negative="each", after=_longcat,
           fixed=(("enable_prompt_rewrite", False),)),
    GuidedFamily("sana", "Sana", binned=(16, 32, 64, 128)),
    GuidedFamily("hidream", "HiDreamImage", sign=-1),
    GuidedFamily("aura-flow", "AuraFlow", clock="share"),
    GuidedFamily("kolors", "Kolors"),
    GuidedFamily("hunyuan-dit", "HunyuanDiT"),
    GuidedFamily("prx", "PRX", clock="share", together="image"),
    GuidedFamily("ernie-image", "ErnieImage", fixed=(("use_pe", False),)),
    GuidedFamily("bria", "Bria"),
    GuidedFamily("nucleus-moe", "NucleusMoEImage", calls="two", cond_first=True, sign=-1, clock="share",
           after=lambda guided, cond, call: rescaled_to_norm(guided, cond)),
)
FAMILIES: dict[str, GuidedFamily] = {row.name: row for row in ROWS}


def family_of_class(*names: str) -> str:
    """The family of a pipeline's class, by its name and those of the classes that it is derived from; or 'other'."""
    return next((row.name for row in ROWS if any(re.fullmatch(row.classes + VARIANTS, name) for name in names)), "other")


def family(pipe: Any) -> str:
    """The name of a pipeline's family, by its class or one that it is derived from; or 'other'.

    On the others no mitigation works: see adapters/compatibility.py.
    """
    return family_of_class(*(kind.__name__ for kind in type(pipe).__mro__))


def why_one_branch(kind: str, distilled: Any = False) -> str:
    """Why pipelines of this family never compute the two branches that a mitigation needs, and what would; "" where they do."""
    if kind == "other":
        return ("how its two branches meet is not known, or it has only one; the families that are known are "
                f"{', '.join(FAMILIES)}. Plain guidance, none, works")
    if distilled:
        return ("its guidance is distilled into the model, which computes one branch; take the base model that it was distilled "
                "from. Plain guidance, none, works")
    return ""


def denoiser_of(pipe: Any) -> Any:
    """The UNet or transformer of a pipeline; InputError where there is neither."""
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    denoiser = next((part for part in parts if part is not None), None)  # a compiled one has no truth value
    if denoiser is None:
        raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer: there is nothing to mitigate")
    return denoiser


def call_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What a pipeline's class takes, by name; with what those take that it hands its **kwargs on to, where it is a subclass."""
    found: dict[str, inspect.Parameter] = {}
    for base in (b for b in kind.__mro__ if "__call__" in vars(b)):
        own = inspect.signature(vars(base)["__call__"]).parameters.values()
        starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        found |= {p.name: p for p in own if p.name not in found and p.name != "self" and p.kind not in starred}
        if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in own):
            break
    return found


def guidance_scale_of(pipe: Any, given: float | None = None) -> float | None:
    """A guidance scale as it was given; where it was not, 7.5 on CLASSIC families and the pipeline's own default on others, 1 for
    none. None where a pipeline has none."""
    if given is not None:
        return given
    row, parameters = FAMILIES.get(family(pipe)), call_parameters(type(pipe))
    if row and row.name in CLASSIC:
        return CLASSIC_SCALE
    own = parameters.get(row.scale if row else "guidance_scale")
    found = None if own is None or own.default is own.empty else own.default
    return row.scale_of(found) if row else found


def two_branch_scale(pipe: Any, given: float | None = None) -> float | None:
    """As guidance_scale_of; 4 where a pipeline's own computes one branch. None where a pipeline has none."""
    scale = guidance_scale_of(pipe, given)
    return 4.0 if scale is not None and scale <= 1 else scale


def guidance_arguments(pipe: Any, n: int, scale: float | None = None) -> dict[str, Any]:
    """The arguments that ask a pipeline for n images under guidance by `scale`, 1 for none; unset: as guidance_scale_of says."""
    row, scale = FAMILIES.get(family(pipe)), guidance_scale_of(pipe, scale)
    if row is None or scale is None:
        return _unknown(pipe, scale)
    found = {row.scale: row.argument(scale), **dict(row.fixed)}
    if row.negative and scale > 1:
        found["negative_prompt"] = [""] * n
    if row.binned and denoiser_of(pipe).config.sample_size not in row.binned:   # it would stop at sides that no table has
        found["use_resolution_binning"] = False
    return found


def _unknown(pipe, scale):
    """What a pipeline of no known family is asked: its own guidance, or that scale. Ideogram 4's own is one a step, for 48 steps:
    it is asked for the scale of most of these."""
    if "guidance_schedule" in call_parameters(type(pipe)):
        return {"guidance_scale": 7.0 if scale is None else scale, "guidance_schedule": None}
    return {} if scale is None else {"guidance_scale": scale}
