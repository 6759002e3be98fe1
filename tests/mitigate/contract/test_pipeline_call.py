"""A call draws and encodes when it is told to, and not when it is looked at."""
import pytest
import torch
from tiny import cached_pipeline, tiny_pipeline

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.pipeline_call import PipelineCall

PROMPTS = ["a cat on a blue background", "a bus"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def generators():
    return [torch.Generator().manual_seed(i) for i in range(2)]


def state(call):
    return (call.latents, call.embeddings, call.seeds, dict(call.arguments), call.prompts, call.n,
            call.guidance_scale)


def test_looking_draws_and_encodes_nothing(pipe):
    given = generators()
    call = PipelineCall(pipe, {"prompt": PROMPTS, "generator": given})
    before, drawn = [g.get_state() for g in given], torch.get_rng_state()
    assert state(call) == (None, None, None, {"prompt": PROMPTS, "generator": given}, PROMPTS, 2, 7.5)
    assert state(call)[3] == call.arguments
    assert all(map(torch.equal, before, [g.get_state() for g in given]))
    assert torch.equal(drawn, torch.get_rng_state())


def test_noise_is_drawn_once_and_as_the_pipeline_draws_it(pipe):
    call = PipelineCall(pipe, {"prompt": PROMPTS, "generator": generators()})
    noise = call.draw_noise()
    assert call.draw_noise() is noise is call.latents is call.arguments["latents"]
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    torch.testing.assert_close(pipe(**call.arguments, **settings).images,
                               pipe(PROMPTS, generator=generators(), **settings).images, atol=0, rtol=0)
    call.replace_noise(2 * noise)
    assert torch.equal(call.arguments["latents"], 2 * noise)
    assert call.draw_noise() is call.latents


def test_noise_that_was_given_is_taken(pipe):
    noise = torch.randn(2, 4, 8, 8)
    assert PipelineCall(pipe, {"prompt": PROMPTS, "latents": noise}).draw_noise() is noise
    with pytest.raises(InputError, match="does not take"):
        PipelineCall(cached_pipeline("flux"), {"prompt": PROMPTS}).draw_noise()


def test_text_is_encoded_once_and_as_the_pipeline_encodes_it(pipe):
    call = PipelineCall(pipe, {"prompt": PROMPTS, "num_images_per_prompt": 2})
    with torch.no_grad():
        cond, uncond = call.encode_text()
    assert call.encode_text() is call.embeddings
    assert call.arguments["prompt"] is None
    assert call.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2  # still readable
    with torch.no_grad():
        expected = pipe.encode_prompt(PROMPTS, "cpu", 2, True)
    torch.testing.assert_close((cond, uncond), tuple(expected))
    with pytest.raises(InputError, match="must come before"):
        call.replace_prompts(PROMPTS)


def test_seeds_are_those_of_the_generators_or_drawn_once(pipe):
    call = PipelineCall(pipe, {"prompt": PROMPTS, "generator": generators()})
    assert call.draw_seeds() == call.seeds == [0, 1]
    free = PipelineCall(pipe, {"prompt": PROMPTS})
    assert free.draw_seeds() is free.draw_seeds()
    assert len(set(free.seeds)) == 2
    one = PipelineCall(pipe, {"prompt": PROMPTS, "generator": torch.Generator().manual_seed(5)})
    assert len(set(one.draw_seeds())) == 2


def test_random_numbers_hang_on_seed_and_prompt_alone(pipe):
    both = PipelineCall(pipe, {"prompt": PROMPTS, "generator": generators()})
    second = PipelineCall(pipe, {"prompt": PROMPTS[1:], "generator": generators()[1:]})
    drawn = [rng.integers(2 ** 62) for rng in (both.rng(1, "x"), second.rng(0, "x"), both.rng(1, "y"))]
    assert drawn[0] == drawn[1] != drawn[2]
