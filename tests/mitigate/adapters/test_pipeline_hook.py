"""Policies against a plain loop, hand arithmetic and invariance."""
import json
from math import pi, sqrt

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler
from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance
from oracle import Transition, plain_loop
from scipy.stats import beta
from tiny import TOKENS, cached_pipeline, loud_pipeline, tiny_pipeline
from tiny_runs import PROMPTS, calibration

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.common.outputs import write_json
from rotescope.mitigate import calibrate
from rotescope.mitigate.contract.mitigation import Step
from rotescope.mitigate.contract.prediction import combine, prediction_gap
from rotescope.mitigate.denoiser.probe import Probe
from rotescope.mitigate.detectors.registry import get_detector
from rotescope.mitigate.methods.calibrated_transition import CalibratedTransition, Calibration
from rotescope.mitigate.methods.guidance_schedules import SHAPES, BetaGuidance, damp
from rotescope.mitigate.methods.local_minimum import FirstLocalMinimum, local_minima
from rotescope.mitigate.methods.probe_transition import ProbeTransition
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.methods.transition import TransitionGuidance
from rotescope.mitigate.prompts.prompt import Prompt, read_prompts
from rotescope.mitigate.sampling.calibration import first_gaps
from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.mitigate.sampling.sampler import sample

STEPS = 10
PAPER = ("none", "stp", "og-stp", "dtp", "og-dtp")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline().to(torch.float64)  # so that what differs is the rule, not the rounding


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def either(request):
    """Where a rule works on ε, which a model of velocities does not put out."""
    return tiny_pipeline(request.param).to(torch.float64)


def generators():
    return [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]


def images(pipe, prompts=PROMPTS, rows=None, **settings):
    """-> latents (n, 4, 8, 8), before decoding, so that a comparison is exact."""
    noise = generators() if rows is None else [generators()[r] for r in rows]
    return pipe(prompts, generator=noise, num_inference_steps=STEPS, output_type="latent", **settings).images


POLICIES = {name: get_mitigation(name) for name in (*PAPER, "dtp-released")} | {
    "og 800": TransitionGuidance(-3.0, 800), "layout": TransitionGuidance(-3.0, 800, colour=2.0),
    "layout dtp": TransitionGuidance(0.0, "dynamic", colour=1.0), "late dtp": TransitionGuidance(0.0, "dynamic", earliest=650)}


@pytest.mark.parametrize(("name", "prediction_type"), [
    *((name, "epsilon") for name in POLICIES),
    *(pytest.param(name, "v_prediction", marks=() if name in ("og-stp", "dtp") else pytest.mark.slow) for name in POLICIES)])
def test_a_policy_on_a_pipeline_equals_the_plain_loop(name, prediction_type):
    pipe, policy = tiny_pipeline(prediction_type).to(torch.float64), POLICIES[name]
    expected, rules, gaps = plain_loop(pipe, "sd", PROMPTS, lambda: Transition(policy), STEPS)
    with mitigated(pipe, policy) as run:
        found = images(pipe)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert run.transition_timesteps == [rule.timestep for rule in rules]
    known = ~np.isnan(run.prediction_gaps)
    np.testing.assert_allclose(np.array(run.prediction_gaps)[known], gaps[known], rtol=1e-5)
    assert known.any()


@pytest.mark.slow
def test_in_single_precision_a_policy_equals_the_plain_loop_to_its_rounding():
    """To 1e-5 of the largest value, for the loop takes its images one by one; bit for bit where all guidance is plain."""
    pipe = tiny_pipeline()
    plain = images(pipe)
    assert plain.dtype == torch.float32
    for name in ("none", "dtp:ordinary_gap=1e9"):
        with mitigated(pipe, name):
            assert torch.equal(images(pipe), plain)
    for policy in map(get_mitigation, ("none", "og-stp", "og-dtp")):
        expected, rules, _ = plain_loop(pipe, "sd", PROMPTS, lambda p=policy: Transition(p), STEPS, torch.float32)
        with mitigated(pipe, policy) as run:
            torch.testing.assert_close(images(pipe), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
        assert run.transition_timesteps == [rule.timestep for rule in rules]


def test_a_branch_that_is_not_needed_costs_nothing(pipe):
    steps = pipe.scheduler.timesteps.tolist() if images(pipe) is not None else []
    early = sum(t > 500 for t in steps)
    with mitigated(pipe, "stp") as run:
        images(pipe)
    assert run.denoiser_rows == [2 * STEPS - early] * 3
    with mitigated(pipe, "og-dtp") as run:
        images(pipe)
    assert run.denoiser_rows == [2 * STEPS] * 3


def test_two_calls_in_one_with_are_two_runs(pipe):
    with mitigated(pipe, "dtp") as run:
        first, second = images(pipe), images(pipe)
    assert torch.equal(first, second)
    assert len(run.denoiser_rows) == 6
    assert run.transition_timesteps[:3] == run.transition_timesteps[3:]


@pytest.mark.parametrize(("curve", "expected"), [
    ([3, 2, 1, 2], 3), ([3, 1, 2, 0, 5], 2), ([1, 2, 3], None), ([3, 2, 2, 3], None), ([3, 2, 1], None), ([1, 0], None),
    ([5, 5, 4, 5], 3), ([2, 1, float("nan"), 3], None),
])
def test_the_first_local_minimum_is_strict_and_the_first(curve, expected):
    detector = FirstLocalMinimum(1)
    fired = [k for k, gap in enumerate(curve) if detector.update(torch.tensor([float(gap)])).item()]
    assert (fired[0] if fired else None) == expected


@pytest.mark.parametrize(("curve", "min_drop", "expected"), [
    ([3, 2, 2.0001, 1, 5], 0.0, 2), ([3, 2, 2.0001, 1, 5], 0.01, 4), ([2.0001, 2, 5], 0.01, None), ([3, 2, 2.1], 0.05, None),
])
def test_rounding_does_not_make_a_minimum(curve, min_drop, expected):
    detector = FirstLocalMinimum(1, min_drop)
    fired = [k for k, gap in enumerate(curve) if detector.update(torch.tensor([float(gap)])).item()]
    assert (fired[0] if fired else None) == expected


def test_without_a_minimum_the_stated_fallback_is_taken(pipe):
    """With min_drop = 9 no gap has a minimum: guided from `latest` on, never at all, or, below ordinary_gap, from the start."""
    plain = images(pipe)
    for latest, expected in ((400, 400), (-1, None)):
        with mitigated(pipe, f"dtp:min_drop=9,latest={latest}") as run:
            images(pipe)
        assert all(t is None if expected is None else expected - 100 < t <= expected for t in run.transition_timesteps)
    with mitigated(pipe, "dtp:min_drop=9,latest=-1,ordinary_gap=1e9") as run:
        assert torch.equal(images(pipe), plain)  # ordinary prompts are what they were, bit for bit
    assert run.transition_timesteps == [pipe.scheduler.timesteps[0].item()] * 3
    first = [gaps[0] for gaps in run.prediction_gaps]
    with mitigated(pipe, f"dtp:min_drop=9,latest=-1,ordinary_gap={sorted(first)[1]}") as run:
        mixed = images(pipe)
    below = [gap < sorted(first)[1] for gap in first]
    assert [t is not None for t in run.transition_timesteps] == below
    assert [torch.equal(*pair) for pair in zip(mixed, plain, strict=True)] == below


def test_an_ordinary_gap_is_looked_for_where_the_first_gap_is():
    """Under flow matching at the second step: at the first, x is the noise and both predictions of ε agree."""
    pipe, settings = cached_pipeline("sd3"), {"guidance_scale": 7.5, "height": 16, "width": 16, "max_sequence_length": TOKENS}
    with mitigated(pipe, "dtp:min_drop=9,latest=-1,ordinary_gap=1e9") as run:
        images(pipe, **settings)
    assert run.transition_timesteps == [run.timesteps[1]] * 3
    first, second = np.array(run.prediction_gaps)[:, :2].T
    assert (first == 0).all()
    with mitigated(pipe, f"dtp:min_drop=9,latest=-1,ordinary_gap={np.sort(second)[1]}") as run:
        images(pipe, **settings)
    assert [t is not None for t in run.transition_timesteps] == (second < np.sort(second)[1]).tolist()


def test_a_scheduler_that_calls_twice_has_as_many_steps_as_timesteps():
    pipe = tiny_pipeline().to(torch.float64)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with mitigated(pipe, "dtp:latest=-1") as run:
        images(pipe)
    assert run.denoiser_calls == [2 * STEPS - 1] * 3
    assert run.timesteps == sorted(set(run.timesteps), reverse=True)
    assert len(run.timesteps) == STEPS == len(run.prediction_gaps[0])


def test_repetitions_that_differ_by_rounding_are_no_steps_of_their_own():
    """The ancestral variant of KDPM2 repeats 908.18213 as 908.18182."""
    pipe = loud_pipeline()
    before, pipe.scheduler = pipe.scheduler, KDPM2AncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    try:
        with mitigated(pipe, "dtp:latest=-1") as run:
            images(pipe)
        gaps, timesteps = first_gaps(pipe, [Prompt(PROMPTS[0])], (0,), watch=3, guidance_scale=7.5,
                                         num_inference_steps=STEPS)
        probe = Probe(pipe, PROMPTS, [0, 1, 2], num_inference_steps=STEPS)
        looks = [look.timestep.item() for look in probe.walk(4)]
    finally:
        pipe.scheduler = before
    assert run.denoiser_calls == [2 * STEPS - 1] * 3
    assert len(run.timesteps) == STEPS == len(probe.timesteps)
    assert np.diff(run.timesteps).max() < -50
    assert looks == pytest.approx(run.timesteps[:4])
    assert timesteps == run.timesteps[:3]
    assert len(gaps[0]) == 3


def test_the_probe_of_the_released_variant_by_hand(either):
    """Opposite guidance all the way, the angle between successive latents, its first minimum; then a run of its own."""
    pipe = either
    trail, turns = [], []
    with mitigated(pipe, TransitionGuidance(-7.5, 0)):
        pipe(PROMPTS[0], generator=generators()[0], num_inference_steps=STEPS, output_type="latent",
             callback_on_step_end=lambda p, i, t, tensors: trail.append(tensors["latents"]) or {})
    trail = [torch.randn(1, 4, 8, 8, generator=generators()[0], dtype=torch.float64), *trail]
    for old, new in zip(trail, trail[1:], strict=False):
        turns.append(1 - float((old * new).sum() / sqrt(float((old * old).sum() * (new * new).sum()))))
    found = [k for k in range(1, STEPS - 1) if turns[k - 1] > turns[k] < turns[k + 1]]
    step = (found[1] if found[0] == 1 and len(found) > 1 else found[0]) if found else 5
    timestep = pipe.scheduler.timesteps[step].item()
    with mitigated(pipe, TransitionGuidance(-7.5, timestep)):
        expected = images(pipe)[:1]
    with mitigated(pipe, "og-dtp-released") as run:
        found = images(pipe)
    torch.testing.assert_close(found[:1], expected, atol=1e-5, rtol=0)
    assert run.transition_timesteps[0] == timestep
    assert run.denoiser_rows == [4 * STEPS] * 3


def test_where_the_probe_finds_its_step():
    assert local_minima([1, 3, 2, 4, 1, 1, 0]) == [2]
    index = ProbeTransition()._index
    assert [index(c) for c in ([3, 1, 2, 0, 4], [3, 1, 2], [3, 2, 1], [3, 2, 1, 2, 0, 1])] == [3, 1, 5, 2]


@pytest.mark.parametrize(("shape", "at_800", "at_500", "at_200"), [
    ("invlinear", .8, .5, .2), ("linear", .2, .5, .8), ("cosine", 1 - .80902, 1, 1.80902), ("sine", 1.80902, 1, 1 - .80902),
    ("v-shape", .2, .5, .2), ("a-shape", .8, .5, .8),
])
def test_the_six_schedules_by_hand(shape, at_800, at_500, at_200):
    assert [SHAPES[shape](t / 1000) for t in (800, 500, 200)] == pytest.approx([at_800, at_500, at_200], abs=1e-5)


def test_schedules_and_beta_cfg_equal_the_plain_loop(either):
    pipe = either
    rules = {
        "cfg-cosine": lambda t, d, c, u: u + 7.5 * (np.cos(pi * t / 1000) + 1) * (c - u),
        "beta-cfg": lambda t, d, c, u: u + 7.5 * beta.pdf(1 - t / 1000, 2, 3) * (c - u) / (c - u).norm(),
        "beta-cfg:gamma=0,a=1.5": lambda t, d, c, u: u + 7.5 * beta.pdf(1 - t / 1000, 1.5, 3) * (c - u),
    }
    for name, rule in rules.items():
        with mitigated(pipe, name):
            found = images(pipe)[:1]
        torch.testing.assert_close(found, plain_loop(pipe, "sd", PROMPTS[:1], lambda r=rule: r, STEPS)[0], atol=1e-5, rtol=0)
    assert BetaGuidance().begin(1, 1.0, "cpu").scale(700).item() == pytest.approx(12 * 0.3 * 0.7 ** 2)  # B(2, 3) = 1/12


def test_beta_cfg_divides_by_the_norm_of_what_a_flow_model_puts_out():
    """In ε the difference of two velocities is 0 at σ = 1, where B(0; 1, 3) = 3 is not."""
    pipe, settings = cached_pipeline("sd3"), {"height": 16, "width": 16, "max_sequence_length": TOKENS, "guidance_scale": 7.5}
    for name, a in (("beta-cfg", 2), ("beta-cfg:a=1", 1)):
        def rule(t, d, c, u, a=a):
            return u + 7.5 * beta.pdf(1 - t / 1000, a, 3) * (c - u) / (c - u).norm()
        with mitigated(pipe, name):
            found = images(pipe, PROMPTS[:1], [0], **settings)
        torch.testing.assert_close(found, plain_loop(pipe, "sd3", PROMPTS[:1], lambda r=rule: r, STEPS)[0], atol=1e-5, rtol=0)


def test_beta_cfg_by_hand_and_where_there_is_nothing_to_follow():
    """B(0.5; 2, 3) = 1.5 and ‖(3, 4)‖ = 5: the second image has no difference, and keeps what it has."""
    cond, uncond = torch.tensor([[4.0, 5.0], [1.0, 1.0]]), torch.ones(2, 2)
    step = Step(500, 0, False, cond, cond, uncond, gap=torch.zeros(2), call=None, denoise=None)
    for gamma, size in ((1, 5.0), (2, 25.0)):
        guided = get_mitigation(f"beta-cfg:gamma={gamma}").begin(2, 7.5, "cpu").guide(step)
        expected = torch.tensor([[1 + 7.5 * 1.5 * 3 / size, 1 + 7.5 * 1.5 * 4 / size], [1.0, 1.0]])
        torch.testing.assert_close(guided, expected)


def test_tangential_damping_is_that_of_diffusers():
    cond, uncond = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for c, u in ((cond, uncond), (cond, cond + 0.01 * uncond), (cond, 3 * uncond)):
        ours = combine(c, damp(c, u), torch.full((5,), 7.5))
        torch.testing.assert_close(ours, normalized_guidance(c, u, 7.5), atol=2e-4, rtol=1e-4)  # theirs in fp32, by SVD
    torch.testing.assert_close(damp(cond, cond.clone()), cond)  # nothing to damp


def test_tangential_damping_leaves_a_learned_variance_alone():
    sample, (cond, uncond) = torch.zeros(2, 4, 8, 8), torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = get_mitigation("tcfg").begin(2, 7.5, "cpu").guide(
        Step(500, 0, False, sample, cond, uncond, gap=None, call=None, denoise=None))
    scale = torch.full((2,), 7.5)
    assert torch.equal(guided[:, 4:], combine(cond, uncond, scale)[:, 4:])
    assert torch.equal(guided[:, :4], combine(cond[:, :4], damp(cond[:, :4], uncond[:, :4]), scale))


# ----- what is ordinary

def test_calibration_by_hand():
    gaps = np.exp(np.arange(8.0)[:, None] * [1, 2])  # log d: 0…7 and 0…14
    known = Calibration.of(gaps, [999, 899], 7.5, 10)
    assert known.mean == pytest.approx([3.5, 7.0])
    assert known.deviation == pytest.approx([sqrt(6), 2 * sqrt(6)])
    assert known.scores == pytest.approx((np.arange(8) - 3.5) / sqrt(6))
    assert known.z(torch.tensor([np.exp(5.25)]), 949).item() == pytest.approx(0)  # halfway between the two
    assert known.z(torch.tensor([np.exp(7.0)]), 100).item() == pytest.approx(0)   # beyond them the last counts
    with pytest.raises(InputError, match="too few"):
        Calibration.of(gaps[:7], [999, 899], 7.5, 10)


def test_a_step_that_says_nothing_is_not_calibrated_on():
    """Flow matching begins with the noise itself, where both predictions of ε agree."""
    gaps = np.exp(np.random.default_rng(0).normal(size=(20, 2)))
    silent = np.concatenate([np.zeros((20, 1)), gaps], 1)
    assert Calibration.of(silent, [1000, 900, 800], 7.5, 10) == Calibration.of(gaps, [900, 800], 7.5, 10)


def test_ordinary_prompts_of_a_flow_model_calibrate(tmp_path):
    pipe = cached_pipeline("sd3")
    prompts = [Prompt(f"a {noun}") for noun in ("cat", "bus", "frog", "pig")]
    gaps, timesteps = first_gaps(pipe, prompts, (0, 1), watch=3, guidance_scale=7.5, num_inference_steps=4)
    assert all(row[0] == 0 for row in gaps)
    known = Calibration.of(gaps, timesteps, 7.5, 4)
    assert len(known.timesteps) == 2
    write_json(tmp_path / "c.json", known.as_json())
    with mitigated(pipe, f"dtp-calibrated:calibration={tmp_path / 'c.json'}") as run:
        pipe(["a cat", "a bus"], guidance_scale=7.5, num_inference_steps=4, output_type="latent", height=16, width=16,
             max_sequence_length=TOKENS)
    assert len(run.prediction_gaps) == 2


def test_only_an_image_that_stands_out_is_touched(pipe, tmp_path):
    """Ordinary gaps scattered about those of the first prompt, far below those of the others or far above."""
    with mitigated(pipe, "none") as run:
        plain = images(pipe)
    gaps, timesteps = np.array(run.prediction_gaps), run.timesteps[:3]
    scatter = np.exp(np.linspace(-.1, .1, 20))[:, None]
    settings = "before=-2,transition=500,quantile=0.9"
    for factor, held, colour in ((100.0, False, None), (100.0, False, 1.0), (0.01, True, None), (0.01, True, 1.0)):
        file = calibration(tmp_path / f"{held} {colour}.json", factor * gaps[:1, :3] * scatter, timesteps)
        with mitigated(pipe, f"dtp-calibrated:calibration={file},{settings}" + (f",colour={colour}" if colour else "")) as run:
            found = images(pipe)
        assert run.denoiser_rows == [2 * STEPS] * 3
        with mitigated(pipe, TransitionGuidance(-2.0, 500, colour=colour)):
            expected = images(pipe) if held else plain
        torch.testing.assert_close(found, expected, atol=1e-5 if held else 0, rtol=0)
        assert all((t <= 500) == held for t in run.transition_timesteps)
    with pytest.raises(InputError, match="guidance_scale=7.5, not 5"), mitigated(pipe, CalibratedTransition(str(file))):
        images(pipe, guidance_scale=5.0)


@pytest.mark.parametrize(("steps", "often"), [(2 * STEPS, "more"), (STEPS // 2, "less")])
def test_a_calibration_for_another_number_of_steps_is_refused(tmp_path, steps, often):
    pipe = cached_pipeline("sd")
    with mitigated(pipe, "none") as run:
        images(pipe)
    gaps = np.array(run.prediction_gaps)[:1, :4] * np.exp(np.linspace(-.1, .1, 20))[:, None]
    name = f"dtp-calibrated:calibration={calibration(tmp_path / 'c.json', gaps, run.timesteps[:4])}"
    settings = {"prompt": PROMPTS, "output_type": "latent"}
    with mitigated(pipe, name), pytest.raises(InputError, match=f"looked 4 times .* over 10 steps, and this run {often} often"):
        pipe(**settings, num_inference_steps=steps)
    with mitigated(pipe, name):
        pipe(**settings, num_inference_steps=STEPS)


def test_an_image_may_be_found_out_late(tmp_path):
    """Ordinary log gaps are 0 ± 1 at 999 and 899. One image shows 0, 0; the other 0, 9, and is held back from 899 to 650."""
    ordinary = np.exp(np.random.default_rng(0).normal(0, 1, (100, 2)))
    policy = CalibratedTransition(str(calibration(tmp_path / "c.json", ordinary, [999, 899])), transition=650)
    run, ones = policy.begin(2, 7.5, "cpu"), torch.ones(2, 1)
    for timestep, gaps, scales in ((999, [0, 0], [7.5, 7.5]), (899, [0, 9], [7.5, -2]), (799, [0, 0], [7.5, -2]),
                                   (649, [0, 0], [7.5, 7.5])):
        run.branches(timestep)
        guided = run.guide(Step(timestep, 0, False, ones, ones, 0 * ones, torch.tensor(gaps).exp(), None, None))
        assert guided.flatten().tolist() == scales
    assert run.transition_timesteps.tolist() == [999, 649]


def test_calibrate_measures_the_first_steps_of_plain_guidance(tmp_path, monkeypatch):
    pipe, prompts = tiny_pipeline(), [Prompt(t) for t in PROMPTS]
    gaps, timesteps = first_gaps(pipe, prompts, (0, 1, 2), watch=3, guidance_scale=7.5, num_inference_steps=STEPS,
                                 batch_size=4)
    noise = torch.Generator().manual_seed(noise_seed(PROMPTS[1], 2))
    with mitigated(pipe, "none") as run:
        pipe(PROMPTS[1], generator=noise, num_inference_steps=STEPS, output_type="latent")
    assert timesteps == run.timesteps[:3]
    np.testing.assert_allclose(gaps[5], run.prediction_gaps[0][:3], rtol=1e-3)
    assert len(gaps) == 9


def test_calibrate_on_the_embedded_model(tmp_path, capsys):
    (tmp_path / "ordinary.txt").write_text("\n".join(PROMPTS))
    file = tmp_path / "calibration.json"
    command = ["--prompts", str(tmp_path / "ordinary.txt"), "--output_file", str(file), "--num_inference_steps", "5",
               "--watch", "2", "--device", "cpu"]
    calibrate.main(command)
    assert json.loads(capsys.readouterr().out) == {"calibration": str(file)}
    known = Calibration.load(file)
    assert len(known.scores) == 12
    assert len(known.mean) == 2
    assert get_mitigation(f"dtp-calibrated:calibration={file}").calibration == str(file)
    for wrong in ([], ["--overwrite", "--watch", "9"], ["--overwrite", "--output_file", "/no/such/f.json"]):
        with pytest.raises(SystemExit):
            calibrate.main([*command, *wrong])


@pytest.mark.parametrize("text", ["dtp-calibrated", "dtp-calibrated:calibration=gone.json"])
def test_a_calibration_that_is_not_there_is_named(text):
    with pytest.raises(InputError, match="rotescope calibrate"):
        get_mitigation(text)


def test_combine_by_hand():
    cond, uncond = torch.tensor([[3.0], [3.0], [3.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    assert combine(cond, uncond, torch.tensor([0.0, 1.0, -2.0])).flatten().tolist() == [1.0, 3.0, -3.0]
    assert prediction_gap(torch.full((1, 4), 3.0), torch.zeros(1, 4)).item() == 6.0


def test_policies_by_name_and_setting():
    assert get_mitigation("og-stp:before=-3,transition=700") == TransitionGuidance(-3.0, 700)
    assert get_mitigation("stp:transition=dynamic").transition == "dynamic"
    for wrong in ("opposite", "stp:tau=3", "stp:transition=soon", "stp:before", "stp:transition=2000"):
        with pytest.raises(InputError):
            get_mitigation(wrong)


@pytest.mark.parametrize("wrong", [
    "sharpness-aware-noise:target=nan", "stp:before=inf", "stp:before=1e400", "pad-mask:ratio=nan", "tcfg:before=1",
    "stp:before=1,before=2", "dtp:latest=99999", "dtp:ordinary_gap=-4", "dtp:min_drop=-1", "og-dtp-released:fallback_index=-50",
    "noise-optimisation:iterations=-3", "prompt-optimisation:iterations=0", "prompt-reanchoring:learning_rate=-1",
    "sharpness-step:steps=-1", "sharpness-step:transition=5000", "caption-noise:scale=-1", "attention-mask:bos_scale=-1",
    "guard:repulsion=-1", "guard:scale=-1", "dtp-calibrated:transition=2000", "amg:dissimilarity=-1",
])
def test_settings_that_mean_nothing_are_refused_in_a_line(wrong):
    with pytest.raises(InputError, match=r"give|take") as error:
        get_mitigation(wrong)
    assert "\n" not in str(error.value)


def test_a_detectors_settings_are_read_alike():
    for wrong in ("magnitude:n=2,n=3", "layout:window=nan"):
        with pytest.raises(InputError, match="give"):
            get_detector(wrong)


def test_what_cannot_work_is_refused_by_name(pipe):
    with mitigated(pipe, "stp"):
        with pytest.raises(InputError, match="scale above 1"):
            images(pipe, guidance_scale=1.0)
        with pytest.raises(InputError, match="guidance_rescale"):
            images(pipe, guidance_rescale=0.7)
        with pytest.raises(InputError, match="already carries"), mitigated(pipe, "dtp"):
            pass
    with pytest.raises(InputError, match="nothing to mitigate"), mitigated(object(), "stp"):
        pass


def test_a_sample_is_the_same_in_every_batch_and_alone(pipe):
    prompts = [Prompt(t) for t in PROMPTS]
    settings = {"num_inference_steps": STEPS, "seeds": (0, 1)}
    runs = [[np.asarray(s.image, int) for s in sample(pipe, prompts, get_mitigation("og-stp"), batch_size=b, **settings)]
            for b in (1, 4, 64)]
    for other in runs[1:]:
        assert np.abs(np.stack(runs[0]) - np.stack(other)).max() <= 1  # a last bit, rounded
    generator = torch.Generator().manual_seed(noise_seed(PROMPTS[1], 1))
    alone = pipe(PROMPTS[1], generator=generator, num_inference_steps=STEPS).images[0]
    plain = list(sample(pipe, prompts, get_mitigation("none"), **settings))[3]
    assert np.abs(np.asarray(alone, int) - np.asarray(plain.image, int)).max() <= 1


@pytest.mark.parametrize(("name", "text"), [
    ("p.txt", "a cat\n\na bus\n"), ("p.csv", "prompt,group\na cat,x\na bus,\n"),
    ("p.jsonl", '{"caption": "a cat", "group": "x"}\n{"caption": "a bus"}\n'),
])
def test_prompts_come_in_every_format(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert [p.text for p in read_prompts(tmp_path / name)] == ["a cat", "a bus"]


@pytest.mark.parametrize(("name", "text"), [
    ("p.txt", "\n"), ("p.csv", "prompt\n\"\"\n"), ("p.jsonl", "{"), ("p.pkl", "x"), ("gone.txt", None),
])
def test_wrong_prompts_are_named(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_prompts(tmp_path / name)
