"""Mitigations inside the cross-attention of Stable Diffusion's UNet, image by image, in the conditional half alone.

The denoiser sees whatever rows of the doubled batch a step needs, so each row carries a label: the number of its image, or −1,
which leaves it alone. Labels travel in cross_attention_kwargs and are taken out before the UNet looks at them.
"""
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.mitigation import NOT_NEGATIVE, Mitigation, check_ranges
from rotescope.mitigate.denoiser.first_step import at_least_float
from rotescope.mitigate.methods.text_embedding import BothBranches, token_ids

# ----- which rows

LABELS = "row_labels"  # in cross_attention_kwargs: {mitigation's key: labels, one a row}


def send_labels(call, key, uncond, cond):
    """Let the pipeline send labels (n,) of both halves along with its doubled batch."""
    others = call.get("cross_attention_kwargs") or {}
    call.arguments["cross_attention_kwargs"] = {**others, LABELS: {**others.get(LABELS, {}), key: torch.cat([uncond, cond])}}


def extra_labels(call, key, cond):
    """cross_attention_kwargs for one more call of the conditional half, with these labels (n,) on top."""
    others = call.get("cross_attention_kwargs") or {}
    return {**others, LABELS: {**{k: both[call.n:] for k, both in others.get(LABELS, {}).items()}, key: cond}}


@contextmanager
def labels_seen(denoiser, key):
    """-> an object whose `images` are the labels of the rows that the denoiser is working on, or None."""
    seen, forward, own = SimpleNamespace(images=None), denoiser.forward, "forward" in vars(denoiser)

    @wraps(forward)
    def labelled(*args, **kwargs):
        others = dict(kwargs.get("cross_attention_kwargs") or {})
        labels = dict(others.pop(LABELS, {}))
        seen.images = labels.pop(key, None)
        others |= {LABELS: labels} if labels else {}
        return forward(*args, **{**kwargs, "cross_attention_kwargs": others or None})

    denoiser.forward = labelled
    try:
        yield seen
    finally:
        if own:
            denoiser.forward = forward
        else:
            del denoiser.forward


# ----- what happens to them

class EditedAttention:
    """An attention processor: edit(logits (k, heads, pixels, tokens), images (k,)) for labelled rows, `plain` for the others.

    Logits and their softmax are fp32 at least: Stable Diffusion 2.1's exceed what fp16 holds, and diffusers upcasts them there.
    """

    def __init__(self, edit, seen, plain):
        self.edit, self.seen, self.plain = edit, seen, plain

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        images = self.seen.images
        chosen = torch.zeros(len(hidden_states), dtype=torch.bool) if images is None else images.cpu() >= 0
        out = torch.empty_like(hidden_states)
        if chosen.any():
            out[chosen] = self._edited(attn, hidden_states[chosen], encoder_hidden_states[chosen], images[chosen])
        if not chosen.all():
            more = () if temb is None else (temb,)   # which sliced attention does not take
            out[~chosen] = self.plain(attn, hidden_states[~chosen], encoder_hidden_states[~chosen], attention_mask, *more)
        return out

    def _edited(self, attn, hidden_states, text, images):
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2)      # (k, heads, pixels or tokens, d)
                             for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        logits = self.edit(at_least_float(query) @ at_least_float(key).transpose(2, 3) * attn.scale, images)
        out = (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


@contextmanager
def edited_attention(call, key, edit, blocks=("",)):
    """Cross-attention layers whose name starts with one of `blocks` run under `edit`, as long as the context lasts."""
    unet = call.pipe.unet
    before = unet.attn_processors
    if any(isinstance(processor, EditedAttention) for processor in before.values()):
        raise InputError("two mitigations both edit the cross-attention: take one of them")
    chosen = [name for name in before if ".attn2." in name and name.startswith(blocks)]
    with labels_seen(unet, key) as seen:
        unet.set_attn_processor({**before, **{name: EditedAttention(edit, seen, before[name]) for name in chosen}})
        try:
            yield
        finally:
            unet.set_attn_processor(before)


# ----- the mitigations

@dataclass(frozen=True)
class AttentionMask(Mitigation):
    """Ren et al., Unveiling and Mitigating Memorization through Cross Attention, ECCV 2024, arXiv 2403.11052, section 5.

    In every cross-attention layer and step, the logits of the summary tokens (the end token and the padding) become −∞, and
    those of the beginning token (BOS) are multiplied by C = 1.25 (`bos_scale`; others take 1.1). At no cost.
    """
    bos_scale: float = 1.25
    families = ("sd",)
    looks_inside = True

    def __post_init__(self):
        check_ranges(self, bos_scale=NOT_NEGATIVE)

    def prepare(self, call):
        images = torch.arange(call.n, device=call.device)
        send_labels(call, "attention-mask", torch.full_like(images, -1), images)

    def attach(self, call):
        """Not before, for others may change the prompts when it is their turn to prepare."""
        call.note_change(torch.ones(call.n))
        ends = token_ids(call.pipe.tokenizer, call.prompts, call.device)[1]
        return edited_attention(call, "attention-mask", lambda logits, images: mask_summary(logits, ends[images], self.bos_scale))


def mask_summary(logits, ends, bos_scale):
    """logits (k, heads, pixels, tokens), the place (k,) of the end token -> logits."""
    place = torch.arange(logits.shape[-1], device=logits.device)
    scale = torch.where(place == 0, bos_scale, 1.0).to(logits.dtype)
    return (logits * scale).masked_fill((place >= ends[:, None])[:, None, None], -torch.inf)


EARLY = ("down_blocks", "mid_block")


@dataclass(frozen=True)
class SpikeAttenuation(Mitigation):
    """Zhao et al., You Don't Need All That Attention, ICML 2026, arXiv 2603.00133: their attention attenuation by itself.

    See `attenuate_spikes`; in the down and mid blocks, which the authors' code calls early. At no cost.
    """
    threshold: float = 0.01
    scale: float = 0.3
    families = ("sd",)
    looks_inside = True

    def __post_init__(self):
        check_ranges(self, scale=NOT_NEGATIVE)

    def prepare(self, call):
        images = torch.arange(call.n, device=call.device)
        send_labels(call, "spikes", torch.full_like(images, -1), images)

    def attach(self, call):
        call.note_change(torch.full((call.n,), type(self).begin is Mitigation.begin))  # else the guidance tells
        return edited_attention(call, "spikes", lambda logits, _: attenuate_spikes(logits, self.threshold, self.scale), EARLY)


def attenuate_spikes(logits, threshold, scale):
    """Tokens whose highest logit over the pixels stands out in a head: z > threshold among all but BOS -> logits · scale.

    logits (k, heads, pixels, tokens); the end token and the padding count as content, as in the authors' code.
    """
    peaks = logits.amax(2)[..., 1:]                                                   # (k, heads, tokens − 1)
    spikes = (peaks - peaks.mean(-1, keepdim=True)) / (peaks.std(-1, keepdim=True) + 1e-6) > threshold
    return torch.cat([logits[..., :1], torch.where(spikes[:, :, None], logits[..., 1:] * scale, logits[..., 1:])], -1)


@dataclass(frozen=True)
class Guard(SpikeAttenuation):
    """GUARD, Zhao et al., as SpikeAttenuation: attraction and repulsion.

    ε(∅) + s (ε⁺ − ε(∅)) − r (ε⁻ − ε(∅)), s the pipeline's guidance scale, r = `repulsion`: towards ε⁺, the prompt under
    attenuated attention, away from ε⁻, the prompt as it is. One more row a step.
    """
    threshold: float = 0.1
    repulsion: float = 2.0

    def __post_init__(self):
        check_ranges(self, scale=NOT_NEGATIVE, repulsion=NOT_NEGATIVE)

    def prepare(self, call):
        """Only the extra row is labelled, at each step."""

    def begin(self, n, guidance_scale, device):
        return GuardRun(self, n, guidance_scale, device)


class GuardRun(BothBranches):
    def guide(self, step):
        images = torch.arange(step.call.n, device=step.sample.device)
        attracting = step.denoise(cross_attention_kwargs=extra_labels(step.call, "spikes", images))
        return step.uncond + self.scale * (attracting - step.uncond) - self.settings.repulsion * (step.cond - step.uncond)
