"""ε, v, x₀ and flow: by hand, against diffusers' schedulers, and there and back."""
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from rotescope.models.prediction import (
    TARGETS,
    clean_of,
    diffusion_rates,
    eps_at,
    eps_of,
    eps_slope,
    noisy_latents,
    prediction_kind,
    rates_at,
    slope_at,
)

DIFFUSION = ("epsilon", "v_prediction", "sample")
X0, NOISE = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scheduler_of(kind):
    return FlowMatchEulerDiscreteScheduler() if kind == "flow" else DDIMScheduler(prediction_type=kind)


@pytest.mark.parametrize(("kind", "alpha", "sigma", "target", "slope"), [
    ("epsilon", 0.6, 0.8, 2.0, 1.0),
    ("v_prediction", 0.6, 0.8, 0.6 * 2 - 0.8 * 3, 0.6),    # α ε − σ x₀ = −1.2
    ("sample", 0.6, 0.8, 3.0, -0.75),                      # −α/σ
    ("flow", 0.75, 0.25, -1.0, 0.75),                      # ε − x₀, and 1 − σ
])
def test_by_hand(kind, alpha, sigma, target, slope):
    """x₀ = 3 and ε = 2: x_t = 3.4, or 2.75 under flow matching."""
    x = noisy_latents(3.0, 2.0, alpha, sigma)
    assert x == pytest.approx(2.75 if kind == "flow" else 3.4)
    assert TARGETS[kind](3.0, 2.0, alpha, sigma) == pytest.approx(target)
    assert eps_slope(kind, alpha, sigma) == pytest.approx(slope)
    assert eps_of(kind, target, x, alpha, sigma) == pytest.approx(2.0)
    assert clean_of(kind, target, x, alpha, sigma) == pytest.approx(3.0)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("timestep", [1, 400, 999])
def test_there_and_back(kind, timestep):
    scheduler = scheduler_of(kind)
    assert prediction_kind(scheduler) == kind
    rates = rates_at(scheduler, timestep)
    x, output = noisy_latents(X0, NOISE, *rates), TARGETS[kind](X0, NOISE, *rates)
    torch.testing.assert_close(eps_at(scheduler, output, x, timestep), NOISE)
    torch.testing.assert_close(clean_of(kind, output, x, *rates), X0)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_difference_of_outputs_times_the_slope_is_that_of_epsilon(kind):
    scheduler = scheduler_of(kind)
    one, other = (eps_at(scheduler, output, X0, 700) for output in (NOISE, NOISE + 1))
    torch.testing.assert_close(other - one, torch.full_like(one, slope_at(scheduler, 700)))


@pytest.mark.parametrize("kind", DIFFUSION)
def test_diffusers_adds_noise_and_asks_alike(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    t = torch.tensor([0, 400, 999])
    rates = [rate[t].view(-1, 1, 1, 1) for rate in diffusion_rates(scheduler.alphas_cumprod.double())]
    torch.testing.assert_close(noisy_latents(X0, NOISE, *rates), scheduler.add_noise(X0, NOISE, t))
    expected = {"epsilon": NOISE, "v_prediction": scheduler.get_velocity(X0, NOISE, t), "sample": X0}[kind]
    torch.testing.assert_close(TARGETS[kind](X0, NOISE, *rates), expected)
    assert [r[1].item() for r in rates] == pytest.approx(rates_at(scheduler, 400))


@pytest.mark.parametrize("kind", DIFFUSION)
def test_diffusers_sees_the_same_clean_latents(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    found = clean_of(kind, NOISE, X0, *rates_at(scheduler, 500))
    theirs = scheduler.step(NOISE, 500, X0).pred_original_sample
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)  # its α is fp32


def test_diffusers_flows_alike():
    """Its noise at a level, and one step down to level 0."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    alpha, sigma = rates_at(scheduler, 250)
    assert (alpha, sigma) == (0.75, 0.25)
    theirs = scheduler.scale_noise(X0, torch.tensor([250.0]), NOISE)
    torch.testing.assert_close(noisy_latents(X0, NOISE, alpha, sigma), theirs)
    scheduler.set_timesteps(sigmas=[0.25])
    step = scheduler.step(NOISE, scheduler.timesteps[0], X0).prev_sample
    torch.testing.assert_close(clean_of("flow", NOISE, X0, alpha, sigma), step)


def test_a_diffusion_scheduler_may_flow():
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert (prediction_kind(scheduler), slope_at(scheduler, 250)) == ("flow", 0.75)


def test_half_precision_becomes_single():
    assert eps_at(scheduler_of("epsilon"), NOISE.half(), X0, 400).dtype == torch.float32
