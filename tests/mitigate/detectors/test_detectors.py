"""Detectors against hand arithmetic, other derivatives, other schedulers, and by invariance."""
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from PIL import Image
from tiny import tiny_pipeline

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.datasets.images.tiled_distance import tiled_distances
from rotescope.mitigate.contract.catalogue import name_of
from rotescope.mitigate.contract.families import FAMILIES
from rotescope.mitigate.denoiser.probe import Probe, cross_attention
from rotescope.mitigate.detectors.generated_images import clique_distance, edge_agreement
from rotescope.mitigate.detectors.prediction_gap import details
from rotescope.mitigate.detectors.prompt_scores import score_prompts
from rotescope.mitigate.detectors.registry import DETECTORS, get_detector, list_detectors
from rotescope.mitigate.detectors.trigger_tokens import attribute_tokens
from rotescope.mitigate.detectors.whitebox import as_mask, end_tokens, entropy, entropy_d, masked_magnitude
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.jobs import noise_seed

TEXTS = ["a cat on a blue background", "a bus", "a frog and a pig on a pink background"]
PROMPTS = [Prompt(t) for t in TEXTS]
SEEDS = [noise_seed(t, 0) for t in TEXTS]
SMALL = {"bright-ending": ":n=2,num_inference_steps=3", "entropy-d": ":n=2,num_inference_steps=6",
         "cliques": ":n=3,clique=2,num_inference_steps=2", "magnitude": ":n=2,steps=2,num_inference_steps=5",
         "layout": ":n=2,steps=2,num_inference_steps=5", "drop": ":n=2,steps=4,num_inference_steps=5"}


@pytest.fixture(scope="module", params=["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)])
def pipe(request):
    return tiny_pipeline(request.param).to(torch.float64)  # so that what differs is the rule, not the rounding


@pytest.fixture
def probe(pipe):
    with torch.no_grad():
        yield Probe(pipe, TEXTS, SEEDS, num_inference_steps=5)


def rows_of(unet, run):
    """-> what `run()` gives, and the rows that went through the UNet meanwhile, the last call's too, which may be left."""
    rows = []
    handle = unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    try:
        return run(), sum(rows)
    finally:
        handle.remove()


# ----- every detector

@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "recall"])  # test_training_image_recall.py has that one
def test_a_score_depends_on_prompt_and_seed_alone_and_costs_what_it_says(name, pipe):
    detector = get_detector(name + SMALL.get(name, ":n=2"))
    together, rows = rows_of(pipe.unet, lambda: list(score_prompts(pipe, PROMPTS, detector)))
    assert rows == detector.rows * len(PROMPTS)
    assert all(np.isfinite(together))
    order = [2, 0, 1]
    other = list(score_prompts(pipe, [PROMPTS[i] for i in order], detector, batch_size=2))  # two beside each other, one alone
    np.testing.assert_allclose(other, np.array(together)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entry", list_detectors(), ids=lambda entry: entry.name)
def test_a_detector_says_what_it_is(entry):
    preset = entry.make()
    assert asdict(preset) == entry.settings  # all of them, as the authors have them
    assert entry.families == (preset.families or tuple(FAMILIES))
    assert entry.cost == f"{preset.rows} rows"
    assert entry.paper
    assert entry.needs
    assert entry.ready == (entry.name != "recall")
    assert get_detector(entry.name) == preset
    assert get_detector(preset) is preset
    assert name_of(preset, DETECTORS) == entry.name


@pytest.mark.parametrize("wrong", [
    "wen", "magnitude:step=3", "magnitude:steps=0", "magnitude:steps=51", "layout:window=0", "drop:steps=2",
    "sail:n=0", "sail:guidance_scale=1",
    "entropy-d:metric=F", "edges:n=1", "cliques:clique=17", "cliques:tiles=0",
])
def test_wrong_names_and_settings_are_refused(wrong):
    with pytest.raises(InputError, match=wrong.partition(":")[2].partition("=")[0]):
        get_detector(wrong)


def test_a_pipeline_that_cannot_be_served_is_refused():
    with pytest.raises(InputError, match="serves sd, sdxl"):
        list(score_prompts(object(), PROMPTS, get_detector("sail")))


# ----- the probe

@torch.no_grad()
@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_a_walk_sees_what_the_hook_sees(pipe, scheduler):
    own = pipe.scheduler
    pipe.scheduler = scheduler.from_config(own.config) if scheduler else own
    try:
        looks = list(Probe(pipe, TEXTS, SEEDS, num_inference_steps=5).walk())
        with mitigated(pipe, "none") as run:
            pipe(TEXTS, generator=[torch.Generator().manual_seed(s) for s in SEEDS], num_inference_steps=5, output_type="latent")
        steps = [look.timestep.item() for look in looks]
    finally:
        pipe.scheduler = own
    np.testing.assert_allclose(steps, run.timesteps)
    gaps = torch.stack([look.magnitude for look in looks], 1)
    np.testing.assert_allclose(gaps.numpy(), run.prediction_gaps, rtol=1e-4)


def test_the_pipeline_is_as_it_was(pipe):
    hooks = [len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    list(score_prompts(pipe, PROMPTS, get_detector("entropy-e:n=1")))
    assert [len(m._forward_pre_hooks) for m in pipe.unet.modules()] == hooks


def test_cross_attention_is_what_the_layer_attends_with(pipe, probe):
    layer, seen = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2, []
    handle = layer.register_forward_hook(lambda m, args, kwargs, out: seen.append((kwargs["encoder_hidden_states"], out)),
                                         with_kwargs=True)
    with cross_attention(probe, lambda name, p: p) as maps:
        probe.outputs(probe.noise, 500)
    handle.remove()
    text, output = seen[0]
    value = layer.to_v(text[3:]).unflatten(2, (layer.heads, -1)).transpose(1, 2)  # (n, heads, tokens, d)
    torch.testing.assert_close(layer.to_out[0]((maps[0] @ value).transpose(1, 2).flatten(2)), output[3:])
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 4, 64, dtype=torch.float64))
    assert len(maps) == 7


# ----- one by one

def test_magnitude_is_the_mean_of_the_first_gaps(pipe, probe):
    expected = torch.stack([look.gap.flatten(1).square().sum(1).sqrt() for look in probe.walk(2)]).mean(0)
    found = get_detector("magnitude:steps=2,num_inference_steps=5").observe(pipe, TEXTS, SEEDS)
    np.testing.assert_allclose(found, expected.numpy())


def test_layout_is_what_the_seeds_of_a_prompt_share_beyond_colours():
    detector, picture = get_detector("layout:n=2,steps=1"), torch.zeros(1, 1, 8, 8)
    picture[..., 3, 4] = 9.0
    found = details(torch.cat([picture, picture + 5]), 0.375)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)                             # a colour all over is no detail
    ring = torch.zeros(8, 8)
    ring[2:5, 3:6] = -1.0                                                                 # 9 at one pixel of 3 × 3 has the mean 1
    ring[3, 4] = 8.0
    np.testing.assert_allclose(found[0, 0], ring, atol=1e-6)
    assert detector.score(list(found[:, None])) == pytest.approx(72 ** 0.5)               # 8² + 8 · 1²
    assert detector.score([found[:1], -found[:1]]) == 0                                   # what seeds do not share cancels
    assert detector.rows == 4


def test_drop_is_how_far_the_gap_fell_since_the_second_and_third_step(pipe, probe):
    logs = torch.stack([look.gap.flatten(1).square().sum(1).sqrt() for look in probe.walk(4)]).log()
    found = get_detector("drop:steps=4,num_inference_steps=5").observe(pipe, TEXTS, SEEDS)
    np.testing.assert_allclose(found, (logs[1] - logs[3]).numpy(), atol=1e-6)
    levels = torch.tensor([[9.0, 8, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]])
    assert get_detector("drop").over_steps(levels) == pytest.approx([3 * np.log(2)])            # √(8 · 2) over 1/2


def test_anisotropy_adds_the_cosine_at_the_third_last_timestep(pipe, probe):
    cond, uncond = probe.eps(probe.noise, probe.timesteps[2])
    dot = (uncond * (cond - uncond)).sum(1) / (uncond.norm(dim=1) * (cond - uncond).norm(dim=1))
    norms = torch.tensor(get_detector("magnitude:num_inference_steps=5").observe(pipe, TEXTS, SEEDS))
    found = get_detector("anisotropy:norm_weight=3,num_inference_steps=5").observe(pipe, TEXTS, SEEDS)
    np.testing.assert_allclose(found, (3 * norms + 2 * dot.mean((1, 2))).numpy())


def test_the_jvp_is_the_finite_difference_and_the_jacobian_of_autograd(pipe, probe):
    t, x = probe.timesteps[0], probe.noise
    sigma = (1 - probe.scheduler.alphas_cumprod[t].item()) ** 0.5

    def gap(x):
        cond, uncond = probe.eps(x, t)
        return (uncond - cond) / sigma
    step = 1e-5
    difference = (gap(x + step * gap(x)) - gap(x - step * gap(x))) / (2 * step)
    found = get_detector("sail:num_inference_steps=5").observe(pipe, TEXTS, SEEDS)
    np.testing.assert_allclose(found, difference.flatten(1).norm(dim=1).numpy(), rtol=1e-5)
    weights = torch.randn_like(x)  # w·(J v) = (Jᵀ w)·v, by reverse mode
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad((weights * gap(leaf)).sum(), leaf)
    torch.testing.assert_close((weights * difference).sum(), (pulled * gap(x)).sum(), rtol=1e-5, atol=1e-8)


@torch.no_grad()
def test_confidence_is_websters_mse_up_to_the_variance_of_the_noise(pipe):
    """His way: z = σx, one step of a σ-space solver from σ_max to 0, the mean square of what it moved."""
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")  # from 999 on
    euler.set_timesteps(1)
    probe = Probe(pipe, TEXTS, SEEDS, num_inference_steps=1)
    (t,), sigma = euler.timesteps, euler.sigmas[0].double()
    z = probe.noise * (sigma ** 2 + 1) ** 0.5
    cond, uncond = probe.outputs(euler.scale_model_input(z, t), t)
    end = euler.step(uncond + 7.5 * (cond - uncond), t, z).prev_sample
    mse = (z - end).square().flatten(1).mean(1) / sigma ** 2
    found = get_detector("confidence:num_inference_steps=1").observe(pipe, TEXTS, SEEDS)
    np.testing.assert_allclose(found, mse.numpy(), rtol=1e-3)


def test_bright_ending_masks_the_gap_by_the_attention_to_the_end_token(pipe):
    gap = torch.tensor([[[[3.0, 4.0]]], [[[1.0, 2.0]]]])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]]])
    np.testing.assert_allclose(masked_magnitude(gap, mask), [6.0, 5 ** 0.5])  # ‖(3, 0)‖ / ½, ½ √5 / ½
    coarse, fine = torch.full((1, 2), 9.0), torch.arange(8.0)[None]
    assert as_mask([coarse, fine], (2, 4))[0, 0].tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert as_mask([fine], (4, 8)).shape == (1, 1, 4, 8)
    ids = pipe.tokenizer(TEXTS, padding="max_length", max_length=24).input_ids
    assert end_tokens(pipe, TEXTS).tolist() == [i.index(pipe.tokenizer.eos_token_id) for i in ids]
    assert end_tokens(pipe, ["cat " * 100]).tolist() == [pipe.tokenizer.model_max_length - 1]


def test_entropies_by_hand():
    assert entropy(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(np.log(2))
    first, last = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]  # the end token is the second of three
    found = entropy_d(torch.tensor([[first], [last]], dtype=torch.float64), torch.tensor([1]))
    whole = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert found.item() == pytest.approx(whole + abs((0.25 * np.log(4) + 0.5 * np.log(2)) - 0.5 * np.log(4)))


def test_edges_agree_where_pictures_do():
    rng = np.random.default_rng(0)
    square = np.zeros((64, 64, 3))
    square[16:48, 16:48] = 1
    moved = [np.roll(square, (int(a), int(b)), (0, 1)) for a, b in rng.integers(0, 64, (4, 2))]
    assert edge_agreement([square] * 4) == (34 ** 2 - 30 ** 2) / 64 ** 2  # a frame two pixels wide
    assert edge_agreement(moved) < edge_agreement([square] * 4)
    assert edge_agreement([np.full((64, 64, 3), 0.5)] * 4) == 0


@pytest.mark.parametrize(("change", "magnitude"), [
    ((1, 1, 1), 48), ((1, 0, 0), 16), ((0, 1, 0), 16), ((1, -1, 0), 4 * (2 + 1 + 1)),
], ids=["grey", "red", "green", "red to green"])
def test_the_magnitude_of_an_edge_by_hand(change, magnitude):
    """A step of 1 has the gradient 4 = 1 + 2 + 1 in its channel; along the channels (r, g, b) -> (3r+g, r+2g+b, g+3b)."""
    r, g, b = change
    assert magnitude == 4 * (abs(3 * r + g) + abs(r + 2 * g + b) + abs(g + 3 * b))
    for size, share in ((1.5 / magnitude * 1.01, 2 / 8), (1.5 / magnitude * 0.99, 0)):  # a line two pixels wide of eight
        picture = np.full((8, 8, 3), 0.5)
        picture[:, 4:] += size * np.array(change)
        assert edge_agreement([picture] * 4) == share


def test_the_tiled_distance_is_that_of_the_worst_tile():
    images = torch.zeros(3, 3, 8, 8)
    images[1, :, :2, :2] = 0.5   # one of 16 tiles
    images[2] = 0.25
    expected = [[0, 0.5, 0.25], [0.5, 0, 0.25], [0.25, 0.25, 0]]
    np.testing.assert_allclose(tiled_distances(images), expected, atol=1e-6)
    np.testing.assert_allclose(tiled_distances(images[1:], images), expected[1:], atol=1e-6)
    many = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(tiled_distances(many, many.flip(0)), tiled_distances(many).flip(1), atol=1e-3)


def test_the_clique_distance_is_the_first_threshold_with_a_clique():
    distances = np.array([[0, 1, 2, 9], [1, 0, 3, 9], [2, 3, 0, 4], [9, 9, 4, 0]], float)
    assert [clique_distance(distances, size) for size in (2, 3, 4)] == [1, 3, 9]


def test_the_black_box_needs_images_only():
    gray = [Image.new("RGB", (16, 16), (level,) * 3) for level in (0, 51, 255)]
    assert get_detector("cliques:n=3,clique=2").score(gray) == pytest.approx(-0.2)
    assert get_detector("edges:n=3").score(gray) == 0


# ----- tokens

@torch.no_grad()
def test_token_significance_is_the_gradient_by_finite_differences(pipe):
    prompt = PROMPTS[1]
    probe = Probe(pipe, [prompt.text], [noise_seed(prompt.text, 7)], num_inference_steps=5)
    uncond, cond = probe.arguments["encoder_hidden_states"].chunk(2)

    def magnitude(embeddings):
        c, u = probe.eps(probe.noise, probe.timesteps[0], encoder_hidden_states=torch.cat([uncond, embeddings]))
        return (c - u).norm().item()
    step, token = 1e-6, 2
    gradient = []
    for k in range(cond.shape[2]):
        shift = torch.zeros_like(cond)
        shift[0, token, k] = step
        gradient.append((magnitude(cond + shift) - magnitude(cond - shift)) / (2 * step))
    (found,) = attribute_tokens(pipe, [prompt], n=1, num_inference_steps=5, seed=7)
    assert [word for word, _ in found] == ["a", "bus"]
    assert found[token - 1][1] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def test_tokens_do_not_depend_on_the_batch(pipe):
    runs = [list(attribute_tokens(pipe, PROMPTS, n=2, steps=2, num_inference_steps=4, batch_size=b)) for b in (1, 4, 64)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert [word for word, _ in a] == [word for word, _ in b]
            np.testing.assert_allclose([s for _, s in a], [s for _, s in b], rtol=1e-6)
