"""Detectors on every family whose two branches meet, against the stock pipeline to whose denoiser the test listens.

The reference knows nothing of the adapter: which half is which, and what the scheduler is told, stand here once more.
"""
import numpy as np
import pytest
import torch
from families.more_families import small_family

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import FAMILIES, denoiser_of, family, guidance_arguments, two_branch_scale
from rotescope.mitigate.detectors.prediction_gap import as_grid, details
from rotescope.mitigate.detectors.prompt_scores import score_prompts, unserved
from rotescope.mitigate.detectors.registry import get_detector
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.jobs import noise_seed

PROMPTS = [Prompt("a cat on a red background"), Prompt("a bus")]
TWO_CALLS = {"qwen-image", "flux", "flux2-klein", "chroma", "lumina2", "cogview4", "krea2", "ovis-image", "longcat-image",
             "nucleus-moe"}
COND_FIRST = TWO_CALLS | {"z-image"}          # others send [unconditional; conditional]
PACKED = {"qwen-image", "flux", "flux2-klein", "chroma", "krea2", "ovis-image", "longcat-image", "bria", "nucleus-moe"}
QUICK = ("z-image", "flux", "pixart")        # a list of both halves; two calls on packed latents; noise with a learned variance
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES if name not in ("sd", "kolors")]


@pytest.fixture(scope="module", params=NAMES)
def named(request):
    return request.param, small_family(request.param)


def gaps(pipe, name, prompt, seed, steps=4):
    """Conditional minus unconditional output of the stock pipeline at each step (1, …), in ε or in velocity."""
    heard, latents = [], []

    def listen(module, args, output):
        first = output[0]
        heard.append(torch.stack(first) if isinstance(first, list) else first)
    handle = denoiser_of(pipe).register_forward_hook(listen)
    try:
        latents = pipe(prompt=[prompt.text], generator=[torch.Generator().manual_seed(noise_seed(prompt.text, seed))],
                       num_inference_steps=steps, output_type="latent",
                       **guidance_arguments(pipe, 1, two_branch_scale(pipe))).images
    finally:
        handle.remove()
    pairs = list(zip(heard[::2], heard[1::2], strict=True)) if name in TWO_CALLS else [both.chunk(2) for both in heard]
    factors = [1.0] * len(pairs)
    if pipe.scheduler.config.get("prediction_type") == "v_prediction":    # ε = √ᾱ v + …
        factors = [pipe.scheduler.alphas_cumprod[int(t)] ** 0.5 for t in pipe.scheduler.timesteps]
    found = [factor * ((one - other) if name in COND_FIRST else (other - one))
             for factor, (one, other) in zip(factors, pairs, strict=True)]
    return [x[:, :latents.shape[1]] if x.dim() == 4 else x for x in found]


def test_magnitude_and_drop_are_read_off_the_stock_pipelines_two_predictions(named):
    name, pipe = named
    levels = [[gap.flatten(1).norm().item() for gap in gaps(pipe, name, PROMPTS[0], seed)] for seed in (1000, 1001)]
    assert min(map(min, levels)) > 0                                      # the first step of flow matching says something, too
    (found,) = score_prompts(pipe, PROMPTS[:1], get_detector("magnitude:n=2,steps=2,num_inference_steps=4"))
    assert found == pytest.approx(np.mean([row[:2] for row in levels]), rel=1e-4)
    (found,) = score_prompts(pipe, PROMPTS[:1], get_detector("drop:n=2,steps=4,num_inference_steps=4"))
    assert found == pytest.approx(np.mean([np.log(row[1]) - np.log(row[3]) for row in levels]), rel=1e-3, abs=1e-4)


def test_layout_sums_the_details_of_both_seeds_over_the_picture(named):
    name, pipe = named
    both = []
    for seed in (1000, 1001):
        gap = gaps(pipe, name, PROMPTS[0], seed)[0]
        if name in PACKED:                                                # tokens row by row
            side = int(gap.shape[1] ** 0.5)
            gap = gap.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        both.append(details(gap.reshape(1, -1, *gap.shape[-2:]), 0.375))
    (found,) = score_prompts(pipe, PROMPTS[:1], get_detector("layout:n=2,steps=1,num_inference_steps=4"))
    assert found == pytest.approx((sum(both) / 2).norm().item(), rel=1e-4)


@pytest.mark.parametrize("detector", [
    "magnitude:n=2,steps=2,num_inference_steps=3",
    *(pytest.param(text, marks=pytest.mark.slow) for text in (
        "layout:n=2,steps=2,num_inference_steps=3", "drop:n=2,steps=3,num_inference_steps=3", "edges:n=2",
        "cliques:n=2,clique=2,num_inference_steps=2")),
])
def test_a_score_does_not_depend_on_what_is_scored_beside_it(named, detector):
    name, pipe = named
    detector, of_images = get_detector(detector), detector.startswith(("edges", "cliques"))
    if detector.families and family(pipe) not in detector.families:
        assert f"not {type(pipe).__name__}: name other detectors" in unserved(detector, pipe)
        return
    together, apart = (list(score_prompts(pipe, PROMPTS, detector, batch_size=size)) for size in (4, 1))
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=0.02 if of_images else 1e-4)   # a level of 255 or so
    assert of_images or together[0] != together[1]                        # some small pictures have no edge at all


def test_packed_latents_lie_as_the_picture_does():
    tokens = torch.arange(2 * 6).view(1, 6, 2).float()                    # 6 tokens of 2 channels
    grid = as_grid(tokens, {"height": 32, "width": 48})
    assert grid.shape == (1, 2, 2, 3)
    assert grid[0, 0].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert as_grid(torch.zeros(1, 9, 2), {}).shape == (1, 2, 3, 3)
    assert as_grid(torch.zeros(2, 4, 1, 3, 5), {}).shape == (2, 4, 3, 5)


def test_a_distilled_model_has_no_gap_and_is_asked_for_images_alone():
    pipe = small_family("flux2-klein")
    pipe.register_to_config(is_distilled=True)
    with pytest.raises(InputError, match="is distilled and computes one"):
        list(score_prompts(pipe, PROMPTS, get_detector("magnitude")))
    assert unserved(get_detector("cliques"), pipe) is None
