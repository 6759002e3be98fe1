"""Denoisers as people run them: offloaded, fused, sliced, of a subclass of the user's; as the plain one, or refused by name."""
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from tiny import TINY, image_folder
from tiny_runs import PROMPTS, images

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import call_parameters, denoiser_of
from rotescope.mitigate.embedding_search.search import check_searchable
from rotescope.models.memory import is_offloaded, place_pipeline
from rotescope.models.memory_options import MemoryOptions

NAMES = ("none", "og-stp", "dtp")
INSIDE = ("attention-mask", "guard", "sharpness-step", "pad-mask")


def fused(pipe):
    getattr(pipe, "fuse_qkv_projections", denoiser_of(pipe).fuse_qkv_projections)()


MODES = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),   # as place_pipeline says it, of a GPU
    "group": lambda pipe: place_pipeline(pipe, "cpu", MemoryOptions(offload="group")),
    "fused": fused,
}


def drawn(pipe, kind, *policies):
    """Latents, and the record of the run."""
    with mitigated(pipe, *policies) as run:
        return images(pipe, PROMPTS[:2], kind=kind, num_inference_steps=3), run


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    for key in ("denoiser_rows", "transition_timesteps", "timesteps", "active"):
        assert getattr(found[1], key) == getattr(expected[1], key), key


USUAL = (("sd", "model"), ("flux", "group"))   # of the quick suite
EVERY = [pytest.param(kind, mode, marks=() if (kind, mode) in USUAL else pytest.mark.slow) for kind in TINY for mode in MODES]
MODELS_FIRST = ["model", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES if mode != "model")]


@pytest.mark.parametrize(("kind", "mode"), EVERY)
def test_every_family_as_without_to_the_bit(kind, mode):
    """At the end of a call the pipeline takes the hooks of model offloading off and puts them on anew, around ours."""
    plain, pipe = TINY[kind](), TINY[kind]()
    MODES[mode](pipe)
    stock = images(pipe, PROMPTS[:2], kind=kind, num_inference_steps=3)
    for name in NAMES:
        assert_same(drawn(pipe, kind, name), drawn(plain, kind, name))
    assert torch.equal(images(pipe, PROMPTS[:2], kind=kind, num_inference_steps=3), stock)
    assert is_offloaded(denoiser_of(pipe)) == (mode != "fused")


@pytest.mark.parametrize("mode", MODELS_FIRST)
@pytest.mark.parametrize("name", [INSIDE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in INSIDE[1:])])
def test_what_looks_inside_as_without_to_the_bit(mode, name):
    plain, pipe = TINY["sd"](), TINY["sd"]()
    MODES[mode](pipe)
    assert_same(drawn(pipe, "sd", name), drawn(plain, "sd", name))
    assert_same(drawn(pipe, "sd", name), drawn(plain, "sd", name))   # what was wrapped around the UNet came off whole


@pytest.mark.parametrize("mode", MODELS_FIRST)
def test_a_run_beforehand_leaves_what_is_attached(mode, tmp_path):
    """The run that recall makes first ends a pipeline's call while the attention is edited."""
    plain, pipe = TINY["sd"](), TINY["sd"]()
    MODES[mode](pipe)
    policies = ("attention-mask", f"og-recall:training={image_folder(tmp_path / 'images', n=10)}")
    assert_same(drawn(pipe, "sd", *policies), drawn(plain, "sd", *policies))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "og-stp", *INSIDE])
def test_sliced_attention_rounds_otherwise_and_no_more(name):
    plain, pipe = (TINY["sd"]().to(torch.float64) for _ in range(2))
    place_pipeline(pipe, "cpu", MemoryOptions(attention_slicing=True, vae_slicing=True, vae_tiling=True))
    torch.testing.assert_close(drawn(pipe, "sd", name)[0], drawn(plain, "sd", name)[0], atol=1e-5, rtol=0)


# ----- refused before anything is sampled

@pytest.mark.parametrize(("mode", "name", "said"), [
    ("model", "nemo", "nemo calls layers of the UNet by themselves, .* take --offload none"),
    ("group", "nemo", "nemo calls layers of the UNet by themselves"),
    ("fused", "nemo", "nemo switches value layers off, .*unfuse_qkv_projections"),
    ("group", "prompt-optimisation", "PromptOptimisation differentiates the unet, .* take --offload model or none"),
    ("group", "noise-optimisation", "NoiseOptimisation differentiates the unet"),
    ("group", "amg:training={images}", "AntiMemorizationGuidance differentiates the vae")])
def test_what_cannot_work_is_named(mode, name, said, tmp_path):
    pipe = TINY["sd"]()
    MODES[mode](pipe)
    with pytest.raises(InputError, match=said), mitigated(pipe, name.format(images=image_folder(tmp_path / "images"))):
        pytest.fail("it was let in")


def test_embeddings_are_not_searched_for_in_offloaded_blocks():
    pipe = TINY["sd"]()
    check_searchable(pipe)
    MODES["group"](pipe)
    with pytest.raises(InputError, match="the search for embeddings differentiates the unet"):
        check_searchable(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt-optimisation", "sharpness-aware-noise"])
def test_gradients_come_through_a_part_that_is_offloaded_as_a_whole(name):
    plain, pipe = TINY["sd"](), TINY["sd"]()
    MODES["model"](pipe)
    assert_same(drawn(pipe, "sd", name), drawn(plain, "sd", name))


# ----- subclasses

class Renamed(StableDiffusionPipeline):
    """Nothing of its own."""


class HandedOn(StableDiffusionPipeline):
    """Everything handed on, by place and by name."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Styled(StableDiffusionPipeline):
    """A default of its own, and the rest handed on."""

    def __call__(self, prompt, style="oil", guidance_scale=4.0, **kwargs):
        return super().__call__([f"{p}, {style}" for p in prompt], guidance_scale=guidance_scale, **kwargs)


class TwoCalls(FluxPipeline):
    """Of a family that calls its denoiser twice."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def of_class(pipe, kind):
    pipe.__class__ = kind
    return pipe


@pytest.mark.parametrize(("family", "kind"), [
    ("sd", HandedOn), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("sd", Renamed), ("flux", TwoCalls)))])
def test_a_subclass_is_served_as_its_base(family, kind):
    plain, pipe = TINY[family](), of_class(TINY[family](), kind)
    assert list(call_parameters(kind)) == list(call_parameters(type(plain)))
    for name in ("none", "og-stp"):
        assert_same(drawn(pipe, family, name), drawn(plain, family, name))
    assert type(pipe) is kind


def test_a_subclass_that_hands_on_takes_arguments_by_place():
    plain, pipe = TINY["sd"](), of_class(TINY["sd"](), HandedOn)
    found = []
    for each in (plain, pipe):
        with mitigated(each, "og-stp"):
            found.append(each(["a cat"], 16, 16, 3, output_type="latent", generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(*found)


def test_a_subclass_has_its_own_defaults_and_those_that_it_hands_on_to():
    pipe = of_class(TINY["sd"](), Styled)
    told = {"num_inference_steps": 3, "output_type": "latent", "generator": [torch.Generator().manual_seed(0)]}
    with mitigated(pipe, "og-stp") as run:
        styled = pipe(["a cat"], **told).images
    plain = TINY["sd"]()
    with mitigated(plain, "og-stp"):
        expected = plain(["a cat, oil"], guidance_scale=4.0, **told | {"generator": [torch.Generator().manual_seed(0)]}).images
    assert torch.equal(styled, expected)
    assert run.denoiser_rows == [6]


# ----- what the options ask for

@pytest.mark.parametrize(("asked", "kind", "said"), [
    ({"attention_slicing": True}, "sd3", "--attention_slicing is for UNets, and StableDiffusion3Pipeline has none"),
    ({"vae_tiling": True}, "sd", "--vae_tiling: SimpleNamespace has none: leave it out")])
def test_what_a_pipeline_lacks_is_named(asked, kind, said):
    pipe = TINY[kind]() if kind == "sd3" else SimpleNamespace(vae=SimpleNamespace())
    with pytest.raises(InputError, match=said):
        place_pipeline(pipe, "cpu", MemoryOptions(**asked))
