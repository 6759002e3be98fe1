"""What the figures of Jain et al. (CVPR 2025, arXiv 2411.16738) claim, tested on the curves of one's own model. Pure."""
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, spearmanr

from rotescope.evaluate.statistics.roc import roc_auc

UNALIGNED = "no text-image metric is at home on these pictures, so nothing tells how they agree with their captions"


@dataclass(frozen=True)
class Claim:
    number: int      # as numbered in rotescope.procedures.figures
    says: str        # the claim
    held: bool | None  # None: it cannot be told
    evidence: str    # the figures behind it, with n and interval


def fall(curve):
    """The largest fall of a gap curve from what came before, as a share of it: max over i < j of 1 − d_j / d_i."""
    curve = np.asarray(curve, np.float64)
    return float((1 - curve / np.maximum.accumulate(curve)).max())


def fall_timestep(curve, timesteps):
    """The timestep of the steepest single fall of a gap curve, relative to its highest value so far."""
    curve = np.asarray(curve, np.float64)
    return float(timesteps[1 + int((np.diff(curve) / np.maximum.accumulate(curve)[:-1]).argmin())])


def mean_interval(values, seed=0):
    """Mean and its bias-corrected bootstrap interval of 95 % -> (mean, low, high)."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean()), float(values.mean())
    interval = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(seed)).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def drops_tell(duplicated, control):
    """Gap curves (n, steps) of unguided images -> claim 1."""
    a, b = [fall(c) for c in duplicated], [fall(c) for c in control]
    value = roc_auc(a, b)
    return Claim(1, "Without guidance the gap of memorized prompts is high and then drops; that of others does not", value >= 0.9,
                 f"largest fall: median {np.median(a):.2f} on duplicated (n = {len(a)}), {np.median(b):.2f} on controls "
                 f"(n = {len(b)}), AUC {value:.3f}")


def drops_vary(timesteps):
    """Timesteps of the steepest fall, (prompts, seeds) -> claim 2."""
    share = float((np.ptp(timesteps, axis=1) > 0).mean())
    return Claim(2, "The drop comes at another timestep for another seed of the same prompt", share > 0.5,
                 f"it differs between {timesteps.shape[1]} seeds for {share:.0%} of {len(timesteps)} prompts; spread within a "
                 f"prompt {timesteps.std(axis=1).mean():.0f} timesteps on average")


def later_is_newer(points, plain):
    """GroupFindings of delayed guidance, latest switch last, and of plain guidance -> claim 3."""
    says = "Switched on later, guidance gives the memorized image, then new ones, then badly aligned ones"
    if plain.alignment is None:
        return Claim(3, says, None, UNALIGNED)
    new = [p for p in points if p.copy_rate.value <= plain.copy_rate.value / 2 and p.alignment >= 0.9 * plain.alignment]
    worse = points[-1].alignment < 0.9 * plain.alignment
    at = "no τ halves the copies at 0.9 of the alignment"
    if new:
        first = new[0]
        at = f"at τ = {first.transition_timestep} copies {first.copy_rate.value:.2f}, alignment {first.alignment:.2f}"
    return Claim(3, says, bool(new) and worse,
                 f"plain: copies {plain.copy_rate.value:.2f}, alignment {plain.alignment:.2f}; {at}; at τ = "
                 f"{points[-1].transition_timestep} alignment {points[-1].alignment:.2f} (n = {plain.n} each)")


def guidance_converges(guided, unguided):
    """Mean pairwise similarity between the seeds of each prompt, guided and not, (prompts,) each -> claim 4."""
    mean, low, high = mean_interval(np.asarray(guided) - np.asarray(unguided))
    return Claim(4, "With guidance from the start many seeds converge to one image; without it they do not", low > 0,
                 f"similarity between seeds {np.mean(guided):.2f} guided, {np.mean(unguided):.2f} unguided; "
                 f"difference {mean:.2f} ({low:.2f} to {high:.2f}, n = {len(guided)} prompts)")


def basin_narrows(points, plain):
    """GroupFindings of delayed guidance, latest switch last, and of plain guidance -> claim 5."""
    t = [1000, *(p.transition_timestep for p in points)]
    rate = [plain.copy_rate.value, *(p.copy_rate.value for p in points)]
    rho = float(spearmanr(t, rate).statistic)
    return Claim(5, "The share of copies falls from about 1 to about 0 with the timestep at which guidance starts",
                 rate[0] >= 0.9 and rate[-1] <= 0.1 and rho > 0.9,
                 f"{rate[0]:.2f} from the start, {rate[-1]:.2f} from t = {t[-1]}; rank correlation {rho:.2f} "
                 f"(n = {plain.n} each)")


def opposite_is_earlier(plain, opposite):
    """Timesteps of the steepest fall of the same images without and with opposite guidance, (n,) each -> claim 6."""
    mean, low, high = mean_interval(np.asarray(opposite, float) - np.asarray(plain, float))
    return Claim(6, "Opposite guidance moves the drop earlier (to a higher timestep)", low > 0,
                 f"mean timestep {np.mean(plain):.0f} unguided, {np.mean(opposite):.0f} opposite; moved by {mean:.0f} "
                 f"({low:.0f} to {high:.0f}, n = {len(plain)} images)")


def similarity_costs_alignment(points):
    """GroupFindings of one family -> claim 7."""
    says = "Over τ, less similarity to the training images costs alignment: a trade-off curve"
    if points[0].alignment is None:
        return Claim(7, says, None, UNALIGNED)
    rho = float(spearmanr([p.sim95.value for p in points], [p.alignment for p in points]).statistic)
    return Claim(7, says, rho > 0.8,
                 f"rank correlation of Sim95 and alignment {rho:.2f} over {len(points)} values of τ (n = {points[0].n} each)")
