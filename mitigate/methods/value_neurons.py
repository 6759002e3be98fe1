"""Value neurons that hold a memory, found prompt by prompt and switched off while its images are made (NeMo)."""
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.denoiser.first_step import FirstStep, at_least_float
from rotescope.mitigate.methods.cross_attention import EARLY, labels_seen, send_labels
from rotescope.mitigate.prompts.prompt import embedded_captions, is_embedded, read_prompts
from rotescope.models.memory import has_fused_projections, is_offloaded

NO_THETA = "none"


@dataclass(frozen=True)
class ValueNeurons(Mitigation):
    """NeMo: Hintersdorf et al., Finding NeMo: Localizing Neurons Responsible For Memorization, NeurIPS 2024, arXiv 2406.02366.

    A prompt counts as memorized where δ = ε(x_T, text) − x_T, each channel stretched to [0, 1], is alike between two of `seeds`
    noises: SSIM > τ (`threshold`; mean and one standard deviation of ordinary prompts of Stable Diffusion 1.4). Then those
    neurons of the cross-attention's value layers (down and mid blocks) are set to 0 in both halves whose |activation|, averaged
    over the tokens, lies θ standard deviations off that of ordinary prompts, and the k strongest of each layer; θ falls from 5 by
    0.25 to 1 and k rises from 0 by 1 until δ is no longer like itself with all neurons (SSIM ≤ τ). At last layers, then single
    neurons, are switched on again where SSIM stays below max(τ, what was reached).

    ordinary: a file of ordinary prompts (see read_prompts; the authors took 50,000 of LAION), or `none`: only the k strongest are
    looked at, as under the authors' --no_theta. Where it is empty, the embedded model and what was fine-tuned from it, known by
    the tokenizer, take the captions of the embedded held-out data; another model is refused. SSIM is multi-scale, as theirs, from
    44 × 44 latents on; smaller ones have one scale with σ = 0.5.
    The search is made once a prompt and counted for each of its images: `seeds` rows, and where it is memorized as many again
    for each round, layer and neuron.
    """
    ordinary: str = ""
    threshold: float = 0.428
    seeds: int = 10
    families = ("sd",)
    looks_inside = True

    def __post_init__(self):
        if self.seeds < 2:
            raise InputError(f"seeds={self.seeds}: likeness needs two or more")

    def check(self):
        if self.ordinary not in ("", NO_THETA):
            read_prompts(self.ordinary)

    def check_pipeline(self, pipe):
        if is_offloaded(pipe.unet):
            raise InputError("nemo calls layers of the UNet by themselves, which are not on the device while it is offloaded: "
                             "take --offload none")
        if has_fused_projections(pipe.unet):
            raise InputError("nemo switches value layers off, and this UNet has them fused with others: "
                             "pipe.unfuse_qkv_projections()")
        if not self.ordinary and not is_embedded(pipe.tokenizer):
            raise InputError("nemo compares neurons with what ordinary prompts show, and none ship for this model: give a file of"
                             " some, nemo:ordinary=prompts.txt, or look at the strongest neurons alone, nemo:ordinary=none")

    def prepare(self, call):
        with torch.no_grad():
            search = NeuronSearch(call, self)
            texts, which = search.first.cond.unique(dim=0, return_inverse=True)
            found = [search.find(text, which == i) for i, text in enumerate(texts)]
        call.memory[self] = [torch.stack(layer)[which] for layer in zip(*found, strict=True)]  # of each layer, bool (n, C)
        images = torch.arange(call.n, device=call.device)
        send_labels(call, "neurons", images, images)

    @contextmanager
    def attach(self, call):
        call.note_change(torch.stack([off.any(1) for off in call.memory[self]]).any(0))
        with labels_seen(call.pipe.unet, "neurons") as seen, neurons_off(value_layers(call.pipe.unet), call.memory[self], seen):
            yield


def value_layers(unet):
    """The value projections of the cross-attention in the down and mid blocks: seven in Stable Diffusion."""
    return [module.attn2.to_v for name, module in unet.named_modules()
            if name.startswith(EARLY) and getattr(module, "attn2", None) is not None]


@contextmanager
def neurons_off(layers, off, seen):
    """Each layer's neurons off[layer] (images, C) at 0 in the rows whose images are seen."""
    def hook(mask):
        return lambda module, inputs, out: out if seen.images is None else out.masked_fill(mask[seen.images][:, None], 0)
    with ExitStack() as stack:
        for layer, mask in zip(layers, off, strict=True):
            stack.callback(layer.register_forward_hook(hook(mask)).remove)
        yield


class NeuronSearch:
    """Which value neurons a prompt's memory hangs on."""

    def __init__(self, call, settings):
        self.call, self.first, self.settings = call, FirstStep(call), settings
        self.layers = value_layers(call.pipe.unet)
        shape = self.first.noise.shape[1:]
        self.noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in range(settings.seeds)]
                                 ).to(self.first.noise)
        self.ordinary = None if settings.ordinary == NO_THETA else self._ordinary(call)

    def find(self, text, images):
        """text (tokens, width), which images (n,) it belongs to -> bool (C,) of each layer."""
        nothing = [torch.zeros(layer.out_features, dtype=torch.bool, device=text.device) for layer in self.layers]
        whole = self._differences(text, nothing, self.noise, images)
        alike = closest_pairs(whole) > self.settings.threshold
        if not alike.any():
            return nothing

        def like_itself(off):
            return likeness(whole[alike], self._differences(text, off, self.noise[alike], images)).max().item()
        off, reached = self._select(text, like_itself)
        return refine(off, like_itself, max(self.settings.threshold, reached))

    def _select(self, text, like_itself):
        """-> bool (C,) of each layer, and the likeness that is left."""
        strengths = activations(self.layers, text[None])
        for k in range(17):
            off = [top(s[0], k) | self._unusual(s[0], layer, 5 - 0.25 * k) for layer, s in enumerate(strengths)]
            reached = like_itself(off)
            if reached <= self.settings.threshold:
                break
        return off, reached

    def _unusual(self, strength, layer, theta):
        if self.ordinary is None:
            return torch.zeros_like(strength, dtype=torch.bool)
        mean, std = self.ordinary[layer]
        return (strength - mean).abs() > theta * std

    def _differences(self, text, off, noise, images):
        """δ of each noise (k, C, h, w) in [0, 1], with the neurons `off` silenced."""
        self.call.extra_rows = self.call.extra_rows + len(noise) * images.long().cpu()
        every = SimpleNamespace(images=torch.zeros(len(noise), dtype=torch.long, device=noise.device))
        with neurons_off(self.layers, [mask[None] for mask in off], every):
            delta = self.first.eps(noise, text.expand(len(noise), -1, -1)) - noise
        low, high = delta.amin((2, 3), keepdim=True), delta.amax((2, 3), keepdim=True)
        return (delta - low) / (high - low)

    def _ordinary(self, call):
        """Of each layer: mean and standard deviation (C,) over the ordinary prompts."""
        file = self.settings.ordinary
        prompts = [p.text for p in read_prompts(file)] if file else embedded_captions()
        texts = torch.cat([call.pipe.encode_prompt(prompts[i:i + 64], call.device, 1, False)[0]
                           for i in range(0, len(prompts), 64)])
        return [(s.mean(0), s.std(0)) for s in activations(self.layers, texts)]


def activations(layers, texts):
    """|value activation|, averaged over the tokens: texts (P, tokens, width) -> (P, C) of each layer."""
    return [at_least_float(layer(texts)).abs().mean(1) for layer in layers]


def top(strength, k):
    """The k strongest of (C,) -> bool (C,)."""
    return torch.zeros_like(strength, dtype=torch.bool).index_fill_(0, strength.topk(min(k, len(strength))).indices, True)


def refine(off, like_itself, limit):
    """Switch layers, then single neurons, on again where the likeness stays below the limit; the deepest first."""
    def without(layer, mask):
        return [o & ~mask if i == layer else o for i, o in enumerate(off)]
    for pieces in (lambda o: [o] if o.any() else [], lambda o: torch.nn.functional.one_hot(o.nonzero()[:, 0], len(o)).bool()):
        for layer in reversed(range(len(off))):
            for mask in pieces(off[layer]):
                trial = without(layer, mask)
                off = trial if like_itself(trial) < limit else off
    return off


def likeness(first, second):
    """SSIM of (k, C, h, w) in [0, 1] with another -> (k,)."""
    from torchmetrics.functional import image as metrics  # here, since it takes seconds to import
    if min(first.shape[2:]) // 4 > 10:
        return metrics.multiscale_structural_similarity_index_measure(
            first, second, data_range=1.0, betas=(0.33,) * 3, reduction="none").view(-1)
    return metrics.structural_similarity_index_measure(first, second, data_range=1.0, sigma=0.5, reduction="none").view(-1)


def closest_pairs(x):
    """(k, C, h, w) -> the likeness (k,) of each to that of the others which is most like it."""
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    both = x.new_full((len(x), len(x)), -torch.inf)
    both[i, j] = both[j, i] = likeness(x[i], x[j])
    return both.amax(1)
