"""Prompts, embeddings, attention and initial noise: every rival against independent arithmetic and by invariance."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from tiny import loud_pipeline, tiny_pipeline

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import add_numbers, add_words, repeat_words
from rotescope.mitigate.contract.pipeline_call import PipelineCall
from rotescope.mitigate.denoiser.first_step import FirstStep
from rotescope.mitigate.methods.caption_perturbation import CaptionPerturbation
from rotescope.mitigate.methods.cross_attention import (
    AttentionMask,
    EditedAttention,
    Guard,
    SpikeAttenuation,
    attenuate_spikes,
    mask_summary,
)
from rotescope.mitigate.methods.initial_noise import NoiseOptimisation, SharpnessAwareNoise, SharpnessStep
from rotescope.mitigate.methods.probe_transition import ProbeTransition
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.methods.text_embedding import (
    CaptionNoise,
    PadChange,
    PadMask,
    PromptOptimisation,
    PromptReanchoring,
    reanchored,
)
from rotescope.mitigate.methods.transition import TransitionGuidance

PROMPTS = ["a cat on a blue background", "a bus", "a frog and a pig on a pink background"]
STEPS = 4
RIVALS = {  # numbers that make each do something to a small model with random weights
    "rta": CaptionPerturbation(), "rna": CaptionPerturbation("random_number_addition"),
    "cwr": CaptionPerturbation("caption_word_repetition"), "caption-noise": CaptionNoise(),
    "prompt-optimisation": PromptOptimisation(target=0.05, iterations=3),
    "prompt-reanchoring": PromptReanchoring(target=0.05, full=0.2, iterations=2),
    "pad-change": PadChange(), "pad-mask": PadMask(), "attention-mask": AttentionMask(),
    "spike-attenuation": SpikeAttenuation(), "guard": Guard(),
    "sharpness-step": SharpnessStep(radius=5.0), "noise-optimisation": NoiseOptimisation(target=0.05, iterations=3),
    "sharpness-aware-noise": SharpnessAwareNoise(target=0.1, weight=1e-3, iterations=2, budget=3),
}


@pytest.fixture(scope="module")
def pipe():
    return loud_pipeline()


def sample(pipe, mitigation=None, rows=(0, 1, 2), **settings):
    """Under a mitigation, a tuple of several, or none -> latents (n, 4, 8, 8) and the run."""
    chain = mitigation if isinstance(mitigation, tuple) else (mitigation or "none",)
    call = {"prompt": [PROMPTS[r] for r in rows], "num_inference_steps": STEPS, "output_type": "latent",
            "generator": [torch.Generator().manual_seed(r) for r in rows], **settings}
    with mitigated(pipe, *chain) as run:
        return pipe(**call).images, run


@torch.no_grad()
def texts_of(pipe, prompt):
    """-> embeddings of a prompt and of the empty one, with nothing of ours."""
    ids = pipe.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0].split(1)


def delta(pipe, x, prompt, timestep, gradient=False):
    """ε(x, prompt) − ε(x, ∅) of one image, with nothing of ours."""
    cond, uncond = texts_of(pipe, prompt)
    with torch.set_grad_enabled(gradient):
        return pipe.unet(x, timestep, cond).sample - pipe.unet(x, timestep, uncond).sample


def first_timestep(pipe):
    pipe.scheduler.set_timesteps(STEPS)
    return pipe.scheduler.timesteps[0]


def noise(row):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(row), dtype=torch.float64)


# ----- all of them

@pytest.mark.parametrize(("name", "off"), [
    ("prompt-optimisation", torch.no_grad), ("prompt-reanchoring", torch.inference_mode),
    ("noise-optimisation", torch.inference_mode), ("sharpness-aware-noise", torch.no_grad)])
def test_gradient_methods_work_where_gradients_are_off(pipe, name, off):
    expected, _ = sample(pipe, RIVALS[name], [0])
    with off():
        torch.testing.assert_close(sample(pipe, RIVALS[name], [0])[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RIVALS)
def test_images_of_one_prompt_go_their_own_way(pipe, name):
    seeds = [torch.Generator().manual_seed(s) for s in (0, 9)]
    twice, _ = sample(pipe, RIVALS[name], [0], num_images_per_prompt=2, generator=seeds)
    alone, _ = sample(pipe, RIVALS[name], [0], generator=[torch.Generator().manual_seed(9)])
    torch.testing.assert_close(twice[1:], alone, atol=1e-6, rtol=0)


# ----- together with guidance

@pytest.mark.parametrize("name", ["rta", "prompt-optimisation", "noise-optimisation"])
def test_two_in_a_chain_are_the_one_by_hand_and_then_the_other(pipe, name):
    """One that works on prompts, embeddings or noise, and opposite guidance."""
    given = {"prompt": PROMPTS, "num_inference_steps": STEPS, "output_type": "latent"}
    first, second = RIVALS[name], get_mitigation("og-stp")
    call = PipelineCall(pipe, given | {"generator": [torch.Generator().manual_seed(r) for r in range(3)]})
    first.prepare(call)
    with mitigated(pipe, second):
        expected = pipe(**call.arguments).images
    with mitigated(pipe, first, "og-stp") as run:
        found = pipe(**given, generator=[torch.Generator().manual_seed(r) for r in range(3)]).images
    assert torch.equal(found, expected)
    assert not any(torch.equal(found, sample(pipe, alone)[0]) for alone in (first, second))
    assert run.mitigations == (first, second)
    assert run.denoiser_rows == (2 * STEPS + call.extra_rows).tolist()
    assert all(t <= 650 for t in run.transition_timesteps)


@pytest.mark.parametrize(("one", "other"), [
    ("rta", "attention-mask"), ("spike-attenuation", "probe"),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("rta", "probe"), ("attention-mask", "probe")))])
def test_a_chain_is_the_same_in_either_order(pipe, one, other):
    """The end of a prompt is looked up, and a probe is sent, when all the others have done what they do."""
    named = RIVALS | {"probe": ProbeTransition()}
    (found, run), (turned, again) = (sample(pipe, tuple(named[n] for n in order), num_inference_steps=7)
                                     for order in ((one, other), (other, one)))
    assert torch.equal(found, turned)
    assert run.transition_timesteps == again.transition_timesteps
    assert not torch.equal(found, sample(pipe, named[one], num_inference_steps=7)[0])


@pytest.mark.parametrize(("second", "rows"), [
    (TransitionGuidance(0.0, 500), 2 * STEPS - 2), (RIVALS["prompt-reanchoring"], None)], ids=["stp", "prompt-reanchoring"])
def test_attention_is_edited_in_whatever_rows_are_computed(pipe, second, rows):
    """Guidance that leaves rows out, or asks for more, beside labels of every row."""
    chain = RIVALS["attention-mask"], second
    found, run = sample(pipe, chain)
    apart, runs = zip(*(sample(pipe, chain, [r]) for r in range(3)), strict=True)
    torch.testing.assert_close(found, torch.cat(apart), atol=1e-6, rtol=0)
    assert run.denoiser_rows == [r.denoiser_rows[0] for r in runs]
    assert rows is None or run.denoiser_rows == [rows] * 3


# ----- cost

@pytest.mark.parametrize(("name", "rows"), [
    ("rta", 0), ("caption-noise", 0), ("pad-change", 0), ("pad-mask", 0), ("attention-mask", 0), ("spike-attenuation", 0),
    ("guard", STEPS), ("sharpness-step", 2 * 2 * 2 - 1),  # its one step before the transition needs one branch
])
def test_what_each_costs_on_top_of_guidance(pipe, name, rows):
    assert sample(pipe, RIVALS[name])[1].denoiser_rows == [2 * STEPS + rows] * 3


# ----- captions

@pytest.mark.parametrize(("change", "extra"), [
    (lambda text, rng: add_words(text, rng, 3, ("x", "y")), {"x", "y"}), (lambda text, rng: add_numbers(text, rng, 3), None),
    (lambda text, rng: repeat_words(text, rng, 3), {"a", "red", "bus"}),
])
def test_perturbations_put_words_in_and_keep_the_old_ones_in_order(change, extra):
    text = "a red bus"
    changed = [change(text, np.random.default_rng(s)).split() for s in range(20)]
    for words in changed:
        assert len(words) == 6
        left = iter(words)
        assert all(word in left for word in text.split())
        assert extra is None or set(words) <= extra | set(text.split())
    assert len({" ".join(words) for words in changed}) > 10


def test_added_numbers_have_five_digits_at_most():
    numbers = [int(w) for s in range(50) for w in add_numbers("", np.random.default_rng(s), 4).split()]
    assert min(numbers) >= 0
    assert max(numbers) < 100_000


def test_a_perturbed_prompt_is_what_the_pipeline_gets(pipe):
    texts = []
    original = pipe.encode_prompt
    pipe.encode_prompt = lambda prompt, *args, **kwargs: texts.append(prompt) or original(prompt, *args, **kwargs)
    try:
        sample(pipe, RIVALS["rna"])
    finally:
        del pipe.encode_prompt
    assert [len(t.split()) for t in texts[0]] == [len(p.split()) + 4 for p in PROMPTS]


# ----- embeddings

def test_caption_noise_has_the_scale_that_it_says(pipe):
    seen = {}
    original = pipe.unet.forward

    def spy(sample, timestep, encoder_hidden_states=None, **kwargs):
        seen.setdefault("text", encoder_hidden_states)
        return original(sample, timestep, encoder_hidden_states=encoder_hidden_states, **kwargs)
    cond, uncond = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    pipe.unet.forward = spy
    try:
        sample(pipe, CaptionNoise(0.1))
    finally:
        del pipe.unet.forward
    added = seen["text"] - torch.cat([uncond, cond])
    assert not added[:3].any()
    assert abs(added[3:].std().item() - 0.1) < 0.01
    assert abs(added[3:].mean().item()) < 0.01


def test_prompt_optimisation_is_the_authors_loop_for_one_image(pipe):
    settings, t = RIVALS["prompt-optimisation"], first_timestep(pipe)
    for row in (0, 1):
        ids = pipe.tokenizer([PROMPTS[row], ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        cond, uncond = pipe.text_encoder(ids)[0].detach().split(1)
        text = cond.clone().requires_grad_()
        descent = torch.optim.AdamW([text], lr=0.05)
        for _ in range(settings.iterations):
            loss = torch.norm(pipe.unet(noise(row), t, torch.cat([cond[:, :1], text[:, 1:]], 1)).sample
                              - pipe.unet(noise(row), t, uncond).sample)
            if loss <= settings.target:
                break
            text.grad = torch.autograd.grad(loss, text)[0]
            descent.step()
        text = torch.cat([cond[:, :1], text.detach()[:, 1:]], 1)
        expected, _ = sample(pipe, None, [row], prompt=None, prompt_embeds=text, negative_prompt_embeds=uncond)
        torch.testing.assert_close(sample(pipe, settings, [row])[0], expected, atol=1e-6, rtol=0)


def test_prompt_optimisation_leaves_images_below_its_target_alone(pipe):
    gaps = [delta(pipe, noise(r), PROMPTS[r], first_timestep(pipe)).norm().item() for r in range(3)]
    between = sorted(gaps)[0] / 2 + sorted(gaps)[1] / 2
    plain, _ = sample(pipe)
    found, run = sample(pipe, PromptOptimisation(between))
    for row, gap in enumerate(gaps):
        assert torch.allclose(found[row], plain[row], atol=1e-9) == (gap <= between)
        assert (run.denoiser_rows[row] == 2 * STEPS + 2) == (gap <= between)


def test_reanchoring_is_plain_at_its_target_and_turns_away_at_its_full_magnitude():
    settings, scale = PromptReanchoring(3.0, 5.0), 7.5
    changed, own, uncond = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0))
    at = [reanchored(changed, own, uncond, torch.tensor([m]), scale, settings) for m in (3.0, 5.0, 50.0)]
    torch.testing.assert_close(at[0], uncond + scale * (changed - uncond))
    torch.testing.assert_close(at[1], own + scale * (changed - own))
    torch.testing.assert_close(at[2], at[1])


@torch.no_grad()
def test_reanchoring_is_the_authors_way_step_by_step(pipe):
    """The embedding goes down the gap; a step whose gap is above 3 turns away from the prompt's own prediction, another not."""
    s, target, full, t = 7.5, 3.0, 5.0, first_timestep(pipe)
    turned = []
    for row in (0, 2):
        own, uncond = texts_of(pipe, PROMPTS[row])

        def gap(text, row=row, own=own, uncond=uncond):
            return (pipe.unet(noise(row), t, torch.cat([own[:, :1], text[:, 1:]], 1)).sample
                    - pipe.unet(noise(row), t, uncond).sample).norm()
        with torch.enable_grad():
            text = down(own, gap, lambda x: torch.optim.AdamW(x, lr=0.05), target, 2)
        text, x = torch.cat([own[:, :1], text[:, 1:]], 1), noise(row)
        pipe.scheduler.set_timesteps(STEPS)
        for step in pipe.scheduler.timesteps:
            c, e, u = (pipe.unet(x, step, which).sample for which in (text, own, uncond))
            m, a = (c - u).norm(), (s * target - full) / (s - 1)
            share = min(s * (m - a) / (full - a), s)
            guided = e + share * (c - e) + (s - share) * (c - u) if m > target else u + s * (c - u)
            turned.append(bool(m > target))
            x = pipe.scheduler.step(guided, step, x).prev_sample
        found, _ = sample(pipe, PromptReanchoring(target, full, iterations=2), [row])
        torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
    assert any(turned)
    assert not all(turned)


def test_reanchoring_leaves_ordinary_images_alone(pipe):
    plain, before = sample(pipe)
    found, after = sample(pipe, PromptReanchoring(target=1e3, full=2e3))
    torch.testing.assert_close(found, plain, atol=1e-9, rtol=0)
    assert after.denoiser_rows == [rows + 2 for rows in before.denoiser_rows]  # a look at x_T


def test_padding_with_an_exclamation_mark_by_hand(pipe):
    mark = pipe.tokenizer.get_vocab()["!"]
    embeds = []
    for text in (PROMPTS[1], ""):
        ids = pipe.tokenizer(text).input_ids
        embeds.append(pipe.text_encoder(torch.tensor([ids + [mark] * (24 - len(ids))]))[0].detach())
        end = len(ids) - 1
        if text:
            embeds[0][0, end] = 0
    expected, _ = sample(pipe, None, [1], prompt=None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
    torch.testing.assert_close(sample(pipe, PadChange(), [1])[0], expected, atol=1e-9, rtol=0)


def test_padding_masked_by_hand(pipe):
    cond, uncond = pipe.encode_prompt([PROMPTS[1]], "cpu", 1, True)
    end = len(pipe.tokenizer(PROMPTS[1]).input_ids) - 1
    masked = cond.clone()
    masked[0, end + 1:end + 1 + int(0.7 * (24 - end - 1))] = 0
    expected, _ = sample(pipe, None, [1], prompt=None, prompt_embeds=masked, negative_prompt_embeds=uncond)
    torch.testing.assert_close(sample(pipe, PadMask(), [1])[0], expected, atol=1e-9, rtol=0)


# ----- attention

def test_masking_alone_is_the_pipelines_own_attention_mask(pipe):
    """diffusers' encoder_attention_mask takes 10000 off the logits."""
    ids = pipe.tokenizer([PROMPTS[0]], padding="max_length", return_tensors="pt").input_ids
    mask = (ids != pipe.tokenizer.eos_token_id).double()
    cond, uncond = pipe.encode_prompt([PROMPTS[0]], "cpu", 1, True)
    pipe.scheduler.set_timesteps(STEPS)
    x = noise(0)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            u, c = pipe.unet(x, t, uncond).sample, pipe.unet(x, t, cond, encoder_attention_mask=mask).sample
            x = pipe.scheduler.step(u + 7.5 * (c - u), t, x).prev_sample
    torch.testing.assert_close(sample(pipe, AttentionMask(bos_scale=1.0), [0])[0], x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_that_half_precision_cannot_hold_are_edited_all_the_same(dtype):
    """Against the sum in fp64 and against diffusers' own processor, told to upcast as Stable Diffusion 2.1 tells it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = Attention(query_dim=64, cross_attention_dim=64, heads=1, dim_head=64, upcast_attention=True).eval()
        hidden, text = torch.randn(2, 16, 64).to(dtype), torch.randn(2, 8, 64).to(dtype)
    layer.to_q.weight.data *= 180
    layer.to_k.weight.data *= 180
    layer.to(dtype)
    edited = EditedAttention(lambda logits, images: logits, SimpleNamespace(images=torch.tensor([0, 1])), None)
    with torch.no_grad():
        query, key, value = (to(x).double() for to, x in ((layer.to_q, hidden), (layer.to_k, text), (layer.to_v, text)))
        logits = query @ key.mT / 8                                                    # √64
        found, expected = edited(layer, hidden, text), (logits.softmax(-1) @ value)
        expected = expected @ layer.to_out[0].weight.double().T + layer.to_out[0].bias.double()
    assert logits.abs().max() > torch.finfo(torch.float16).max / 8                     # the product of all 64 overflows in fp16
    precision = 4 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, atol=precision, rtol=0)
    torch.testing.assert_close(found, AttnProcessor()(layer, hidden, text), atol=precision, rtol=0)


def test_scaling_the_first_logit_is_scaling_its_key():
    query, key = torch.randn(2, 3, 4, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    scaled = key.clone()
    scaled[..., 0, :] *= 1.25
    found = mask_summary(query @ key.mT, torch.tensor([3, 4, 5]), 1.25).softmax(-1)
    expected = (query @ scaled.mT)
    for i, end in enumerate((3, 4, 5)):
        torch.testing.assert_close(found[i, ..., :end], expected[i, ..., :end].softmax(-1))
        assert not found[i, ..., end:].any()


def test_spikes_by_hand():
    logits = torch.tensor([[9.0, 1, 1, 5], [0.0, 1, 1, 1]])[None, None]  # one head, two pixels; peaks 9 | 1 1 5
    expected = torch.tensor([[9.0, 1, 1, 1.5], [0.0, 1, 1, 0.3]])[None, None]
    torch.testing.assert_close(attenuate_spikes(logits, 0.1, 0.3), expected)
    torch.testing.assert_close(attenuate_spikes(logits, 2.0, 0.3), logits)  # z of the 5 is 1.15


def test_guard_without_attenuation_is_guidance_at_the_difference_of_its_scales(pipe):
    guarded, _ = sample(pipe, Guard(scale=1.0, repulsion=2.0))
    plain, _ = sample(pipe, None, guidance_scale=5.5)
    torch.testing.assert_close(guarded, plain, atol=1e-6, rtol=0)


class Attenuated:
    """Attention of one image by hand: in each head, logits of tokens but the first whose highest one stands out count 0.3."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        heads, text = [], encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        for q, k, v in zip(*(x[0].chunk(attn.heads, -1) for x in projected), strict=True):
            logits = q @ k.T / q.shape[1] ** 0.5                                       # (pixels, tokens)
            peaks = logits.max(0).values[1:]
            for token, z in enumerate((peaks - peaks.mean()) / peaks.std(), 1):
                logits[:, token] *= 0.3 if z > 0.1 else 1
            heads.append(logits.softmax(1) @ v)
        return attn.to_out[0](torch.cat(heads, 1))[None]


@torch.no_grad()
def test_guard_is_two_predictions_of_the_prompt_step_by_step(pipe):
    """ε(∅) + 7.5 (ε⁺ − ε(∅)) − 2 (ε⁻ − ε(∅)); ε⁺ attenuated in the down and mid blocks."""
    plain, x = pipe.unet.attn_processors, noise(0)
    attenuated = {name: Attenuated() if ".attn2." in name and not name.startswith("up") else processor
                  for name, processor in plain.items()}
    cond, uncond = texts_of(pipe, PROMPTS[0])
    pipe.scheduler.set_timesteps(STEPS)
    for t in pipe.scheduler.timesteps:
        u, away = (pipe.unet(x, t, text).sample for text in (uncond, cond))
        pipe.unet.set_attn_processor(dict(attenuated))
        towards = pipe.unet(x, t, cond).sample
        pipe.unet.set_attn_processor(dict(plain))
        x = pipe.scheduler.step(u + 7.5 * (towards - u) - 2 * (away - u), t, x).prev_sample
    found, _ = sample(pipe, Guard(), [0])
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
    assert (found - sample(pipe, None, [0], guidance_scale=5.5)[0]).abs().max() > 1e-3    # no attenuation at all


def test_two_edits_of_the_attention_are_refused_and_nothing_stays(pipe):
    processors = pipe.unet.attn_processors
    with pytest.raises(InputError, match="both edit"), mitigated(pipe, AttentionMask(), SpikeAttenuation()):
        pipe(PROMPTS, num_inference_steps=1, output_type="latent")
    assert pipe.unet.attn_processors == processors
    assert "forward" not in vars(pipe.unet) or pipe.unet.forward.__qualname__ == type(pipe.unet).forward.__qualname__


# ----- noise

@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_first_difference_is_that_of_two_predictions_of_the_noise(kind):
    """ε = output, αv + σx or (x − αx₀)/σ: one that predicts x₀ turns the sign of the difference."""
    pipe = tiny_pipeline(kind).to(torch.float64)
    call = PipelineCall(pipe, {"prompt": PROMPTS[:1], "num_inference_steps": STEPS, "latents": noise(0)})
    found, t = FirstStep(call).difference(noise(0), torch.tensor([0])), first_timestep(pipe)
    alpha, sigma = pipe.scheduler.alphas_cumprod[t].double().sqrt(), (1 - pipe.scheduler.alphas_cumprod[t].double()).sqrt()
    eps = {"epsilon": lambda out: out, "v_prediction": lambda out: alpha * out + sigma * noise(0),
           "sample": lambda out: (noise(0) - alpha * out) / sigma}[kind]
    cond, uncond = (eps(pipe.unet(noise(0), t, text).sample) for text in texts_of(pipe, PROMPTS[0]))
    torch.testing.assert_close(found, cond - uncond, rtol=1e-5, atol=1e-9)


def test_the_sharpness_step_by_hand(pipe):
    settings, t, x = RIVALS["sharpness-step"], first_timestep(pipe), noise(0)
    for _ in range(settings.steps):
        here = delta(pipe, x, PROMPTS[0], t)
        x = x - 0.7 * (delta(pipe, x + 5.0 * here / here.norm(), PROMPTS[0], t) - here)
    expected, _ = sample(pipe, get_mitigation("stp:transition=900"), [0], latents=x)
    torch.testing.assert_close(sample(pipe, settings, [0])[0], expected, atol=1e-6, rtol=0)


def test_the_loss_of_sharpness_aware_noise_looks_along_the_score(pipe):
    """s_c − s = −Δ/σ: a step of length 1 against Δ, where the other way gives another number."""
    t, x = first_timestep(pipe), torch.cat([noise(0), noise(1)])
    call = PipelineCall(pipe, {"prompt": PROMPTS[:2], "num_inference_steps": STEPS, "latents": x})
    with torch.no_grad():
        found = SharpnessAwareNoise(weight=0.05).loss(FirstStep(call), x, torch.arange(2))
    for row in (0, 1):
        here = delta(pipe, noise(row), PROMPTS[row], t)
        against, along = (delta(pipe, noise(row) + sign * here / here.norm(), PROMPTS[row], t).norm() for sign in (-1, 1))
        expected = against + 0.05 * noise(row).norm()
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=0)
        assert abs(along - against) > 1e-3 * expected


def down(x, loss, optimizer, target, iterations):
    """The authors' loop for one image -> where it ends."""
    x = x.clone().requires_grad_()
    descent = optimizer([x])
    for _ in range(iterations):
        value = loss(x)
        if value <= target:
            break
        x.grad = torch.autograd.grad(value, x)[0]
        descent.step()
    return x.detach()


@pytest.mark.parametrize("iterations", [1, 3])
def test_noise_optimisation_is_the_authors_loop_for_one_image(pipe, iterations):
    t = first_timestep(pipe)
    for row in (0, 2):
        x = down(noise(row), lambda x, row=row: delta(pipe, x, PROMPTS[row], t, gradient=True).norm(),
                 lambda x: torch.optim.AdamW(x, lr=0.05), 0.05, iterations)
        expected, _ = sample(pipe, None, [row], latents=x)
        found, _ = sample(pipe, NoiseOptimisation(target=0.05, learning_rate=0.05, iterations=iterations), [row])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert (found - sample(pipe, None, [row])[0]).abs().max() > 1e-3


def test_sharpness_aware_noise_is_the_authors_loop_for_one_image(pipe):
    t, settings = first_timestep(pipe), SharpnessAwareNoise(target=0.1, weight=0.01, iterations=3, budget=1)
    for row in (0, 2):
        def loss(x, row=row):
            here = delta(pipe, x.detach(), PROMPTS[row], t)
            return delta(pipe, x - here / here.norm(), PROMPTS[row], t, gradient=True).norm() + 0.01 * x.norm()
        x = down(noise(row), loss, lambda x: torch.optim.Adam(x, lr=0.05), 0.1, 3)
        found, _ = sample(pipe, settings, [row])
        torch.testing.assert_close(found, sample(pipe, None, [row], latents=x)[0], atol=1e-5, rtol=0)
        assert (found - sample(pipe, None, [row])[0]).abs().max() > 1e-3


def test_optimised_noise_has_the_smaller_gap(pipe):
    before, after = (np.array(sample(pipe, m)[1].prediction_gaps)[:, 0]
                     for m in (None, NoiseOptimisation(target=0.0, learning_rate=0.05, iterations=8)))
    assert (after < before).all()


def test_sharpness_aware_noise_draws_again_within_its_budget(pipe):
    never = SharpnessAwareNoise(target=-1.0, iterations=2, budget=3)
    assert sample(pipe, never)[1].denoiser_rows == [2 * STEPS + 3 * 2 * 4] * 3   # attempts · steps · two looks of two rows
    at_once = SharpnessAwareNoise(target=1e6)
    found, run = sample(pipe, at_once)
    assert run.denoiser_rows == [2 * STEPS + 4] * 3
    torch.testing.assert_close(found, sample(pipe)[0], atol=1e-9, rtol=0)


# ----- bad input

@pytest.mark.parametrize("wrong", [
    lambda: CaptionPerturbation("backwards"), lambda: CaptionPerturbation(n=0), lambda: PadMask(1.5),
    lambda: PromptReanchoring(5.0, 3.0), lambda: SharpnessAwareNoise(budget=0),
])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_what_a_pipeline_cannot_give_is_refused_by_name(pipe):
    with mitigated(pipe, PadChange(pad="no such token")), pytest.raises(InputError, match="no token"):
        pipe(PROMPTS)
    with mitigated(pipe, CaptionNoise(), PadChange()), pytest.raises(InputError, match="before"):
        pipe(PROMPTS)
    with mitigated(pipe, CaptionPerturbation()), pytest.raises(InputError, match="prompt"):
        pipe(prompt_embeds=torch.zeros(1, 24, 16).double(), negative_prompt_embeds=torch.zeros(1, 24, 16).double())
