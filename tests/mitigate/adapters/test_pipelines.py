"""Mitigations on pipelines of every family: equal to the oracle, to plain guidance, to themselves in any batch; then gone."""
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionLatentUpscalePipeline,
    UNet2DConditionModel,
)
from diffusers.hooks import HookRegistry, ModelHook
from oracle import Transition, plain_loop
from peft import LoraConfig
from tiny import TINY, TOKENS, UNET, WIDTH, cached_pipeline, image_folder, tiny_pipeline
from tiny_runs import PROMPTS, STEPS, images

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.batch_rows import splittable, take_rows
from rotescope.mitigate.adapters.guider import guider_for
from rotescope.mitigate.contract.families import denoiser_of
from rotescope.mitigate.methods.registry import ENTRIES
from rotescope.mitigate.methods.transition import TransitionGuidance

SCHEDULERS = (DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler)
USUAL = (DDIMScheduler, DPMSolverMultistepScheduler)  # on velocities; and what every family's test above runs on
PICTURE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = (torch.arange(16) < 8).double().expand(3, 1, 16, 16)
OPPOSITE, DYNAMIC = TransitionGuidance(-2.0, 650), TransitionGuidance(0.0, "dynamic", latest=300)


def tiny_controlnet():
    kept = {k: v for k, v in UNET.items() if k not in ("sample_size", "out_channels", "up_block_types")}
    return ControlNetModel(**kept, conditioning_embedding_out_channels=(8, 16)).double().eval()


@pytest.fixture(params=TINY)
def family(request):
    return SimpleNamespace(kind=request.param, pipe=cached_pipeline(request.param))


# ----- equality

@pytest.mark.parametrize("policy", [OPPOSITE, DYNAMIC, TransitionGuidance(0.0, 500), TransitionGuidance(-2.0, 650, colour=1.0)],
                         ids=["og-stp", "dtp", "stp", "layout"])
def test_a_policy_equals_the_plain_loop_on_every_family(family, policy):
    expected, rules, gaps = plain_loop(family.pipe, family.kind, PROMPTS, lambda: Transition(policy), STEPS)
    with mitigated(family.pipe, policy) as run:
        found = images(family.pipe, kind=family.kind)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert run.transition_timesteps == [rule.timestep for rule in rules]
    known = ~np.isnan(run.prediction_gaps)
    assert known.any()
    np.testing.assert_allclose(np.array(run.prediction_gaps)[known], gaps[known], rtol=1e-4)


@pytest.mark.parametrize(("scheduler", "prediction_type"), [
    (DDIMScheduler, "v_prediction"), *((scheduler, "epsilon") for scheduler in SCHEDULERS if scheduler not in USUAL),
    *(pytest.param(scheduler, "v_prediction", marks=pytest.mark.slow) for scheduler in SCHEDULERS[1:]),
    *(pytest.param(scheduler, "epsilon", marks=pytest.mark.slow) for scheduler in USUAL)],
    ids=lambda value: getattr(value, "__name__", value))
def test_a_policy_equals_the_plain_loop_under_every_scheduler(scheduler, prediction_type):
    pipe = tiny_pipeline(prediction_type).to(torch.float64)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = images(pipe)
    with mitigated(pipe, "none"):
        assert torch.equal(images(pipe), plain)
    for policy in (OPPOSITE, DYNAMIC):
        expected, rules, gaps = plain_loop(pipe, "sd", PROMPTS[:2], lambda p=policy: Transition(p), STEPS)
        with mitigated(pipe, policy) as run:
            torch.testing.assert_close(images(pipe, PROMPTS[:2]), expected, atol=1e-5, rtol=0)
        assert run.transition_timesteps == [rule.timestep for rule in rules]
        assert len(run.timesteps) == len(set(run.timesteps)) == gaps.shape[1]  # repeated timesteps count once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_plain_guidance_through_the_hook_is_the_pipeline_bit_for_bit(family, dtype):
    """At a scale that half precision cannot hold."""
    pipe = family.pipe if dtype == torch.float64 else TINY[family.kind]().to(dtype)
    plain = images(pipe, kind=family.kind, scale=7.3)
    with mitigated(pipe, "none") as run:
        assert torch.equal(images(pipe, kind=family.kind, scale=7.3), plain)
    assert run.denoiser_rows == [2 * STEPS] * 3
    assert run.denoiser_calls == [STEPS] * 3


def test_an_image_does_not_depend_on_its_batch(family):
    prompts = [*PROMPTS, PROMPTS[0], "a crab"]
    with mitigated(family.pipe, DYNAMIC) as run:
        together = images(family.pipe, prompts, kind=family.kind)
        apart = torch.cat([images(family.pipe, [prompts[i]], [i], family.kind) for i in (4, 0)])
    torch.testing.assert_close(together[[4, 0]], apart, atol=1e-5, rtol=0)
    assert run.transition_timesteps[5:] == [run.transition_timesteps[i] for i in (4, 0)]


def test_each_branch_alone_is_the_pipeline_without_guidance(family):
    """Scale 1 throughout is conditional sampling, at half the rows."""
    with mitigated(family.pipe, TransitionGuidance(1.0, 0)) as run:
        found = images(family.pipe, kind=family.kind)
    assert run.denoiser_rows == [STEPS] * 3
    torch.testing.assert_close(found, images(family.pipe, kind=family.kind, scale=1.0), atol=1e-5, rtol=0)


# ----- what else a pipeline may be given

def test_several_images_a_prompt():
    pipe = cached_pipeline("sd")
    with mitigated(pipe, OPPOSITE) as run:
        several = images(pipe, PROMPTS[:2], range(4), num_images_per_prompt=2)
        singly = images(pipe, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    assert len(run.transition_timesteps) == 8
    assert torch.equal(several, singly)


def test_image_to_image():
    pipe = StableDiffusionImg2ImgPipeline(**cached_pipeline("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"image": PICTURE, "strength": 0.7}
    plain = images(pipe, **settings)
    with mitigated(pipe, "none"):
        assert torch.equal(images(pipe, **settings), plain)
    with mitigated(pipe, OPPOSITE) as run:
        assert not torch.equal(images(pipe, **settings), plain)
    assert max(run.timesteps) < 800  # it starts late
    assert all(t <= 650 for t in run.transition_timesteps)


@pytest.mark.parametrize(("kind", "variant", "parts", "settings"), [
    ("sd", "StableDiffusionInpaintPipeline", {}, {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}),
    ("sd", "StableDiffusionControlNetPipeline", {"controlnet": tiny_controlnet}, {"image": PICTURE}),
    ("sdxl", "StableDiffusionXLImg2ImgPipeline", {}, {"image": PICTURE, "strength": 0.9}),
    ("sdxl", "StableDiffusionXLInpaintPipeline", {}, {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}),
    ("sd3", "StableDiffusion3Img2ImgPipeline", {}, {"image": PICTURE, "height": 16, "width": 16, "strength": 0.9}),
    ("pixart", "PixArtSigmaPipeline", {}, {}),
    ("flux", "FluxImg2ImgPipeline", {}, {"image": PICTURE, "strength": 0.9}),
    ("flux", "FluxInpaintPipeline", {}, {"image": PICTURE, "mask_image": MASK, "strength": 0.9}),
])
def test_variants_of_a_family_are_served(kind, variant, parts, settings):
    pipe = getattr(diffusers, variant)(**cached_pipeline(kind).components, **{name: make() for name, make in parts.items()})
    pipe.set_progress_bar_config(disable=True)
    plain = images(pipe, kind=kind, **settings)
    with mitigated(pipe, "none"):
        assert torch.equal(images(pipe, kind=kind, **settings), plain)
    with mitigated(pipe, OPPOSITE):
        assert not torch.equal(images(pipe, kind=kind, **settings), plain)


@pytest.mark.parametrize("name", ["og-dtp-released", "amg", "og-recall"])
def test_an_inpainting_unet_has_its_latents_looked_at_alone(name, tmp_path):
    """It sees a mask and a picture behind them, 9 channels in all."""
    images_at = f":training={image_folder(tmp_path / 'images', n=9)}" if name != "og-dtp-released" else ""
    pipe = StableDiffusionInpaintPipeline(**cached_pipeline("sd").components | {
        "unet": UNet2DConditionModel(**UNET | {"in_channels": 9}).double().eval()}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}
    with mitigated(pipe, name + images_at) as run:
        assert torch.isfinite(images(pipe, **settings)).all()
    assert run.denoiser_rows == [(4 if name == "og-dtp-released" else 2) * STEPS] * 3


def test_lora():
    pipe = tiny_pipeline().to(torch.float64)
    without = images(pipe)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    pipe.unet.to(torch.float64)
    plain = images(pipe)
    assert not torch.equal(plain, without)
    with mitigated(pipe, "none"):
        assert torch.equal(images(pipe), plain)
    with mitigated(pipe, OPPOSITE):
        torch.testing.assert_close(images(pipe), plain_loop(pipe, "sd", PROMPTS, lambda: Transition(OPPOSITE), STEPS)[0],
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "name"), [
    ("sd3", "stp"), *(pytest.param("sd", name, marks=pytest.mark.slow) for name in ("stp", "attention-mask", "sharpness-step"))])
def test_a_compiled_denoiser(kind, name):
    """It has no truth value, hides its arguments' names, and keeps what it is given in the module that it was made from."""
    pipe, part = TINY[kind](), "unet" if kind == "sd" else "transformer"
    with mitigated(pipe, name) as run:
        expected = images(pipe, kind=kind, num_inference_steps=2)
    whole = getattr(pipe, part)
    setattr(pipe, part, torch.compile(whole, backend="eager"))
    before = [(set(vars(module)), module.forward) for module in (whole, denoiser_of(pipe))]
    with mitigated(pipe, name) as compiled:
        torch.testing.assert_close(images(pipe, kind=kind, num_inference_steps=2), expected)
    assert compiled.denoiser_rows == run.denoiser_rows
    assert [(set(vars(module)), module.forward) for module in (whole, denoiser_of(pipe))] == before


# ----- lengths that coincide

def test_rows_are_told_by_name_not_by_length():
    rows = torch.tensor([True, False, True, False])
    four, other = torch.arange(4.0), torch.arange(8.0).view(4, 2)
    taken = take_rows({"hidden_states": four, "img_ids": other, "unheard_of": four, "timestep": torch.tensor(3), "scale": 4,
                       "added_cond_kwargs": {"text_embeds": other, "image_embeds": [other]},
                       "joint_attention_kwargs": {"ip_adapter_image_embeds": [other], "image_rotary_emb": (other, other)}}, rows)
    assert taken["hidden_states"].tolist() == [0, 2]
    assert taken["added_cond_kwargs"]["text_embeds"].tolist() == taken["added_cond_kwargs"]["image_embeds"][0].tolist()
    assert taken["added_cond_kwargs"]["text_embeds"].tolist() == [[0, 1], [4, 5]]
    assert len(taken["joint_attention_kwargs"]["ip_adapter_image_embeds"][0]) == 2
    assert all(len(whole) == 4 for whole in (taken["img_ids"], taken["unheard_of"],
                                             *taken["joint_attention_kwargs"]["image_rotary_emb"]))
    assert splittable({"sample": four, "img_ids": other, "cross_attention_kwargs": {"scale": 1.0}, "return_dict": False})
    assert not splittable({"sample": four, "cross_attention_kwargs": {"unheard_of": [other]}})


def test_as_many_images_as_flux_has_places():
    """img_ids (16, 3) has one entry a place, and there are 16 rows."""
    pipe, prompts = cached_pipeline("flux"), [f"a {n}" for n in range(16)]
    with mitigated(pipe, TransitionGuidance(0.0, 900)):
        many = images(pipe, prompts, kind="flux", num_inference_steps=2)
        few = images(pipe, prompts[:3], kind="flux", num_inference_steps=2)
    torch.testing.assert_close(many[:3], few, atol=1e-5, rtol=0)


def test_images_apart_when_twice_their_number_is_the_token_count():
    pipe, prompts = cached_pipeline("sd"), [f"a cat and {n} pigs" for n in range(TOKENS // 2)]
    with mitigated(pipe, TransitionGuidance(0.0, 500)):
        many, one = images(pipe, prompts), images(pipe, prompts[5:6], [5])
    torch.testing.assert_close(many[5:6], one, atol=1e-5, rtol=0)


# ----- afterwards

class Bystander(ModelHook):
    """Somebody else's hook, which must stay."""


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_restored(family, fails):
    pipe, denoiser = family.pipe, denoiser_of(family.pipe)

    def traces():
        modules = {name: (set(vars(m)), set(m._forward_hooks), set(m._forward_pre_hooks)) for name, m in denoiser.named_modules()}
        return type(pipe), modules, getattr(denoiser, "attn_processors", {}), vars(denoiser).get("forward")
    images(pipe, kind=family.kind, num_inference_steps=2)  # FLUX itself leaves a registry behind on its first call
    before = traces()
    with mitigated(pipe, OPPOSITE):
        if fails:
            with pytest.raises(InputError, match="above 1"):
                images(pipe, kind=family.kind, scale=1.0)
            with pytest.raises(ValueError, match="generator"):  # inside the pipeline: three images, two generators
                images(pipe, rows=[0, 1], kind=family.kind)
        else:
            images(pipe, kind=family.kind, num_inference_steps=2)
    assert traces() == before


def test_other_hooks_stay():
    pipe = tiny_pipeline()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.unet)
    registry.register_hook(Bystander(), "bystander")
    forward = pipe.unet.forward
    with mitigated(pipe, OPPOSITE):
        images(pipe, num_inference_steps=2)
    assert registry._hook_order == ["bystander"]
    assert pipe.unet.forward is forward
    assert pipe.unet._diffusers_hook is registry


# ----- refusals

def test_what_a_pipeline_cannot_do_is_refused_by_name():
    flux, sd3, sd = (cached_pipeline(kind) for kind in ("flux", "sd3", "sd"))
    with mitigated(flux, "stp"):
        with pytest.raises(InputError, match="true_cfg_scale=1.0 sends one branch"):
            images(flux, kind="flux", scale=1.0)
        with pytest.raises(InputError, match='give negative_prompt=""'):
            flux(PROMPTS[0], true_cfg_scale=4.0)
    with mitigated(sd3, "stp"), pytest.raises(InputError, match="skip_guidance_layers cannot"):
        images(sd3, kind="sd3", skip_guidance_layers=[0])
    with mitigated(sd, "stp"), pytest.raises(InputError, match="guidance_rescale cannot"):
        images(sd, guidance_rescale=0.7)
    with pytest.raises(InputError, match="both combine the predictions"), mitigated(sd, "stp", "dtp"):
        pass
    with pytest.raises(InputError, match="named twice"), mitigated(sd, "stp", "stp"):
        pass


def test_what_looks_inside_refuses_an_ip_adapter_and_the_rest_serves_it():
    pipe = tiny_pipeline()
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)])
    inside = {name: entry.make() for name, entry in ENTRIES.items() if entry.load().looks_inside}
    assert {"guard", "nemo", "sharpness-step"} <= set(inside)
    for mitigation in inside.values():
        with pytest.raises(InputError, match="knows no IP-Adapter"):
            mitigated(pipe, mitigation).__enter__()
    with mitigated(pipe, "caption-noise", "stp") as run:
        images(pipe, ip_adapter_image_embeds=[torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))])
    assert run.denoiser_rows == [2 * STEPS - 3] * 3


def ip_adapter(unet):
    """Random weights of one: the projection of a picture of 8 numbers on 4 tokens, and the keys and values of each layer."""
    layers = [m for name, m in unet.named_modules() if name.endswith(".attn2")]
    projection = {"proj.weight": torch.randn(4 * WIDTH, 8), "proj.bias": torch.zeros(4 * WIDTH), "norm.weight": torch.ones(WIDTH),
                  "norm.bias": torch.zeros(WIDTH)}
    attention = {f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(len(layer.to_k.weight), WIDTH)
                 for i, layer in enumerate(layers) for part in "kv"}
    return {"image_proj": projection, "ip_adapter": attention}


def test_a_pipeline_of_no_family_takes_plain_guidance_alone():
    """A latent upscaler tells its UNet ln σ / 4: every transition would be past at once."""
    sd = cached_pipeline("sd").components
    parts = [sd[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")]
    for pipe in (StableDiffusionLatentUpscalePipeline(*parts), DDIMPipeline(sd["unet"], sd["scheduler"])):
        with pytest.raises(InputError, match=f"{type(pipe).__name__} takes no mitigation: .* known"), mitigated(pipe, "stp"):
            pass
        with mitigated(pipe, "none"):
            pass


@pytest.mark.parametrize(("kind", "settings"), [
    (EDMEulerScheduler, {}), (EDMDPMSolverMultistepScheduler, {}), (IPNDMScheduler, {}),
    (EulerDiscreteScheduler, {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}),
])
def test_a_scheduler_that_counts_no_timesteps_is_refused_by_name(kind, settings):
    """It tells the denoiser ln σ / 4, which is below every transition from the start."""
    pipe = tiny_pipeline()
    pipe.scheduler = kind(**settings)
    for use in (lambda: mitigated(pipe, "stp").__enter__(), lambda: guider_for(pipe, "stp")):
        with pytest.raises(InputError, match=f"{kind.__name__}.* does not count its timesteps from 1000 to 0"):
            use()


def test_a_class_of_ones_own_is_of_the_family_of_its_base():
    class Mine(type(cached_pipeline("sd"))):
        pass
    pipe = Mine(**cached_pipeline("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with mitigated(pipe, "stp") as run:
        images(pipe)
    assert run.denoiser_rows == [2 * STEPS - 3] * 3


def test_a_batch_that_is_not_doubled_is_refused_by_name():
    """A distilled UNet takes the scale as an input, and diffusers then sends the conditional half alone."""
    pipe = tiny_pipeline()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with mitigated(pipe, "stp"), pytest.raises(InputError, match="sent 3 rows for 3 images, not a doubled batch"):
        images(pipe)
