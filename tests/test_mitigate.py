"""Policies against a plain loop, hand arithmetic and invariance."""
import numpy as np
import pytest
import torch
from tiny import tiny_pipeline

from rotescope import mitigated
from rotescope.errors import InputError
from rotescope.mitigate.guidance import TransitionGuidance, combine
from rotescope.mitigate.prompts import Prompt, read_prompts
from rotescope.mitigate.registry import get_mitigation
from rotescope.mitigate.sampler import noise_seed, sample
from rotescope.mitigate.signals import eps_factor, prediction_gap
from rotescope.mitigate.transition import FirstLocalMinimum

PROMPTS = ["a cat on a blue background", "a bus on a red background", "a frog and a pig on a pink background"]
STEPS = 10
PAPER = ("none", "stp", "og-stp", "dtp", "og-dtp")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipe(request):
    return tiny_pipeline(request.param).to(torch.float64)  # so that what differs is the rule, not the rounding


def generators():
    return [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]


def images(pipe, prompts=PROMPTS, rows=None, **settings):
    """-> latents (n, 4, 8, 8), before decoding, so that a comparison is exact."""
    noise = generators() if rows is None else [generators()[r] for r in rows]
    return pipe(prompts, generator=noise, num_inference_steps=STEPS, output_type="latent", **settings).images


@torch.no_grad()
def plain_loop(pipe, policy, scale=7.5):
    """The oracle: one image at a time, both branches at every step, the paper's rules in their plainest form."""
    finished, transitions, gaps = [], [], []
    for i, prompt in enumerate(PROMPTS):
        ids = pipe.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        cond, uncond = pipe.text_encoder(ids)[0].split(1)
        pipe.scheduler.set_timesteps(STEPS)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)  # init_noise_sigma is 1
        d, transition = [], None
        for t in pipe.scheduler.timesteps:
            u, c = pipe.unet(x, t, uncond).sample, pipe.unet(x, t, cond).sample
            alpha_bar = pipe.scheduler.alphas_cumprod[t]
            to_eps = alpha_bar ** 0.5 if pipe.scheduler.config.prediction_type == "v_prediction" else 1
            d.append(float((c - u).norm() * to_eps))
            if policy.transition == "dynamic":
                turned = len(d) > 2 and d[-3] > d[-2] < d[-1] or t <= policy.latest
            else:
                turned = t <= policy.transition
            transition = int(t) if turned and transition is None else transition
            x = pipe.scheduler.step(u + (policy.before if transition is None else scale) * (c - u), t, x).prev_sample
        finished.append(x)
        transitions.append(transition)
        gaps.append(d)
    return torch.cat(finished), transitions, np.array(gaps)


@pytest.mark.parametrize("policy", [
    *(get_mitigation(name) for name in PAPER), TransitionGuidance(1.0, "dynamic", latest=-1), TransitionGuidance(-3.0, 800),
], ids=[*PAPER, "released dtp", "og 800"])
def test_a_policy_on_a_pipeline_equals_the_plain_loop(pipe, policy):
    expected, transitions, gaps = plain_loop(pipe, policy)
    with mitigated(pipe, policy) as run:
        found = images(pipe)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert run.transition_timesteps == transitions
    known = ~np.isnan(run.prediction_gaps)
    np.testing.assert_allclose(np.array(run.prediction_gaps)[known], gaps[known], rtol=1e-5)
    assert known.any()


def test_plain_guidance_through_the_hook_is_the_pipeline_bit_for_bit_and_it_is_restored(pipe):
    before = images(pipe)
    with mitigated(pipe, "none") as run:
        assert torch.equal(images(pipe), before)
    assert run.denoiser_rows == [2 * STEPS] * 3
    assert torch.equal(images(pipe), before)


def test_an_image_does_not_depend_on_its_batch(pipe):
    with mitigated(pipe, "og-dtp"):
        together = images(pipe)
        apart = torch.cat([images(pipe, [PROMPTS[i]], rows=[i]) for i in (2, 0, 1)])
    torch.testing.assert_close(together[[2, 0, 1]], apart, atol=1e-5, rtol=0)


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


def test_combine_by_hand():
    cond, uncond = torch.tensor([[3.0], [3.0], [3.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    assert combine(cond, uncond, torch.tensor([0.0, 1.0, -2.0])).flatten().tolist() == [1.0, 3.0, -3.0]
    assert prediction_gap(torch.full((1, 4), 3.0), torch.zeros(1, 4)).item() == 6.0


def test_eps_factor_turns_v_and_x0_differences_into_eps():
    pipe = tiny_pipeline("v_prediction")
    alpha_bar = pipe.scheduler.alphas_cumprod[700]
    x, v1, v2 = torch.randn(3, 5)
    eps = [alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x for v in (v1, v2)]
    torch.testing.assert_close((eps[0] - eps[1]).norm(), eps_factor(pipe.scheduler, 700) * (v1 - v2).norm())


def test_policies_by_name_and_setting():
    assert get_mitigation("og-stp:before=-3,transition=700") == TransitionGuidance(-3.0, 700)
    assert get_mitigation("stp:transition=dynamic").transition == "dynamic"
    for wrong in ("opposite", "stp:tau=3", "stp:transition=soon", "stp:before", "stp:transition=2000"):
        with pytest.raises(InputError):
            get_mitigation(wrong)


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
