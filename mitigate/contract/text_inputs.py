"""How each family's pipelines take a text that is encoded already, and where their denoiser sees it.

Read off diffusers 0.42's pipelines, as families.py is. What a pipeline's own `encode_prompt` returns has no names there: here it
gets those of the arguments that take it.
"""
from dataclasses import dataclass

from rotescope.mitigate.contract.families import FAMILIES

EMBEDDING, NEGATIVE = "prompt_embeds", "negative_"
POOLED, MASK, OTHER_MASK = "pooled_prompt_embeds", "prompt_attention_mask", "prompt_embeds_mask"


@dataclass(frozen=True)
class TextInputs:
    """The encoded text of a family."""
    returned: tuple[tuple[str, ...], ...]   # by each call of encode_prompt: arguments of the pipeline; "" is none of them
    state: str = "encoder_hidden_states"    # the denoiser's argument that holds `prompt_embeds`
    listed: bool = False                    # whether `prompt_embeds` is a list, one an image


def _apart(*names):
    """Returned by one call for the text, and by one for the negative text."""
    return names, tuple(name and NEGATIVE + name for name in names)


def _together(*names):
    """Returned by one call, each beside its negative one."""
    return (tuple(n for name in names for n in (name, NEGATIVE + name)),)


def _in_turn(*names):
    """Returned by one call, the negative ones last."""
    return (names + tuple(name and NEGATIVE + name for name in names),)


TEXT_INPUTS = {
    "sd": TextInputs(_together(EMBEDDING)),
    **dict.fromkeys(("sdxl", "sd3"), TextInputs(_together(EMBEDDING, POOLED))),
    **dict.fromkeys(("pixart", "sana", "lumina2", "aura-flow", "prx"), TextInputs(_in_turn(EMBEDDING, MASK))),
    **dict.fromkeys(("qwen-image", "krea2", "nucleus-moe"), TextInputs(_apart(EMBEDDING, OTHER_MASK))),
    "flux2-klein": TextInputs(_apart(EMBEDDING, "")),
    **dict.fromkeys(("ovis-image", "bria"), TextInputs(_together(EMBEDDING))),
    "flux": TextInputs(_apart(EMBEDDING, POOLED, "")),
    "chroma": TextInputs(_in_turn(EMBEDDING, "", MASK)),
    "z-image": TextInputs(_together(EMBEDDING), "cap_feats", listed=True),
    "ernie-image": TextInputs(_apart(EMBEDDING), "text_bth", listed=True),
    "hunyuan-dit": TextInputs((_together(EMBEDDING, MASK)[0], _together(EMBEDDING + "_2", MASK + "_2")[0])),
}   # not HiDream, given layers of two encoders; LongCat-Image, which fails without a prompt; CogView4, which is told another time
#     than that of its noise; Kolors, of which the search was not run
SERVED = tuple(name for name in FAMILIES if name in TEXT_INPUTS)   # in the order of the table of families
