"""The guider on modular pipelines: what the hook gives on the classic ones."""
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeGuidance
from tiny import TOKENS, cached_pipeline
from tiny_runs import PROMPTS, STEPS, images

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.guider import MitigationGuider, guider_for

NAMES = {"sdxl": "StableDiffusionXLAutoBlocks", "sd3": "StableDiffusion3AutoBlocks"}  # the second is newer
BLOCKS = {kind: getattr(diffusers, name) for kind, name in NAMES.items() if hasattr(diffusers, name)}


@pytest.fixture(params=BLOCKS)
def modular(request):
    """-> family, modular pipeline of the same parts as the tiny classic one."""
    classic = cached_pipeline(request.param)
    pipe = BLOCKS[request.param]().init_pipeline()
    parts = {name: part for name, part in classic.components.items() if part is not None and name in pipe._component_specs}
    pipe.update_components(**parts)
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


def latents(kind, pipe, prompts=PROMPTS, **settings):
    noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    settings = ({"max_sequence_length": TOKENS} if kind == "sd3" else {}) | settings
    return pipe(prompt=prompts, negative_prompt=[""] * len(prompts), num_inference_steps=STEPS, generator=noise, output="latents",
                height=16, width=16, **settings)


@pytest.mark.parametrize("name", ["none", "stp", "og-stp", "dtp", "tcfg", "beta-cfg", "cfg-linear"])
def test_a_guider_equals_the_hook(modular, name):
    kind, pipe = modular
    pipe.update_components(guider=guider_for(pipe, name, 7.5))
    found = latents(kind, pipe)
    with mitigated(cached_pipeline(kind), name) as run:
        expected = images(cached_pipeline(kind), kind=kind, negative_prompt=[""] * 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert pipe.guider.denoiser_rows.tolist() == run.denoiser_rows
    assert torch.equal(latents(kind, pipe), found)  # a second call is a fresh run


def test_plain_guidance_is_diffusers_own_bit_for_bit(modular):
    kind, pipe = modular
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=7.3))
    own = latents(kind, pipe)
    pipe.update_components(guider=guider_for(pipe, "none", 7.3))
    assert torch.equal(latents(kind, pipe), own)


def test_a_guider_is_its_name_and_scale(tmp_path):
    MitigationGuider("og-stp:before=-3", 5.0).save_pretrained(tmp_path)
    again = MitigationGuider.from_pretrained(tmp_path)
    assert (again.mitigation.before, again.guidance_scale) == (-3, 5.0)
    assert again.new(guidance_scale=6.0).guidance_scale == 6.0


def test_batches_are_prepared_for_the_needed_predictions_alone():
    guider, state = MitigationGuider("stp"), SimpleNamespace(yes=torch.ones(3, 2), no=torch.zeros(3, 2), same=torch.ones(3))
    for step, (timestep, names) in enumerate([(900, ["pred_uncond"]), (400, ["pred_cond", "pred_uncond"])]):
        guider.set_state(step, 2, torch.tensor(timestep))
        batches = guider.prepare_inputs_from_block_state(state, {"text": ("yes", "no"), "x": "same"})
        assert [getattr(b, guider._identifier_key) for b in batches] == names
        assert torch.equal(batches[-1].text, state.no)
        assert guider.num_conditions == len(names)
        for batch in batches:
            guider.prepare_models(None)
            assert guider.is_conditional == (batch is batches[0] and len(names) == 2)
            batch.noise_pred = batch.text
        guided = guider(batches).pred
        assert torch.equal(guided, torch.full((3, 2), 0.0 if step == 0 else 7.5))
    assert guider.denoiser_rows.tolist() == [3, 3, 3]
    assert guider.num_conditions == 2


def test_repetitions_that_differ_by_rounding_are_no_steps_of_their_own():
    guider, indices = MitigationGuider("none"), []
    for step, timestep in enumerate([908.18213, 908.18182, 817.36373]):
        guider.set_state(step, 3, torch.tensor(timestep))
        guider.prepare_inputs({"x": (torch.ones(1, 2), torch.zeros(1, 2))})
        guider.forward(torch.ones(1, 2), torch.zeros(1, 2))
        indices.append(guider.index)
    assert indices == [0, 0, 1]


def test_a_modular_pipeline_is_told_to_take_a_guider(modular):
    with pytest.raises(InputError, match=r"guider=guider_for\(pipe, NAME\)\), from rotescope.mitigate.adapters.guider"):
        mitigated(modular[1], "stp").__enter__()


def test_what_a_guider_cannot_do_is_refused():
    with pytest.raises(InputError, match="the two predictions alone"):
        MitigationGuider("og-dtp-released")
    with pytest.raises(InputError, match="above 1"):
        MitigationGuider("stp", 1.0)
    with pytest.raises(InputError, match='negative_prompt=""'):
        MitigationGuider("stp").prepare_inputs({"hidden_states": torch.zeros(1)})


def test_a_copy_of_a_guider_knows_the_scheduler_too(modular):
    guider = guider_for(modular[1], "og-stp")
    copy = guider.new(guidance_scale=5.0)
    assert copy.scheduler is guider.scheduler
    assert copy.guidance_scale == 5.0
