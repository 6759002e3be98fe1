"""Signals read off the two predictions of a step."""


def prediction_gap(cond, uncond, factor=1.0):
    """‖eps_cond − eps_uncond‖₂ of each image: (n, …), (n, …) -> (n,) in fp32. `factor` turns the output's unit into ε."""
    return factor * (cond - uncond).float().flatten(1).norm(dim=1)


def eps_factor(scheduler, timestep):
    """Δε per unit of Δoutput at an integer timestep: 1 for ε, α for v (ε = αv + σx), α/σ for x₀ (ε = (x − αx₀)/σ)."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return 1.0
    alpha_bar = scheduler.alphas_cumprod[int(timestep)].item()
    return alpha_bar ** 0.5 if kind == "v_prediction" else (alpha_bar / (1 - alpha_bar)) ** 0.5
