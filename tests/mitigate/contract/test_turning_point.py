"""Where a sampler turns: a level of noise, a share of the steps; by hand arithmetic, and against the timesteps they name."""
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from tiny import TOKENS, cached_pipeline, image_folder

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.turning_point import noise_share, timestep_of
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.sampling.options import check_names

SD = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)


def scheduled(scheduler, steps=10):
    scheduler.set_timesteps(steps)
    return scheduler


def test_the_noise_share_by_hand():
    """Under flow matching it is σ. For ᾱ = 1/2 of a diffusion both parts are alike, and the share is one half."""
    assert noise_share(SHIFTED, 700.0) == pytest.approx(0.7)
    half = int((SD.alphas_cumprod - 0.5).abs().argmin())
    assert noise_share(SD, half) == pytest.approx(0.5, abs=2e-3)
    assert [round(noise_share(SD, t), 3) for t in (800, 650, 500)] == [0.836, 0.733, 0.618]  # the table of docs/mitigations.md


def test_a_point_is_the_first_timestep_past_it():
    sd = scheduled(SD)                                                      # 900, 800 … 0
    assert sd.timesteps.tolist() == list(range(900, -1, -100))
    assert timestep_of("noise:0.733", sd) == 600                            # 700 has .769, 600 has .696
    assert timestep_of("noise:1", sd) == 900
    assert timestep_of("noise:0", sd) == -1
    assert [timestep_of(f"steps:{x}", sd) for x in (0, 0.3, 0.31, 0.95, 1)] == [900, 600, 500, -1, -1]
    flow = scheduled(SHIFTED)
    t = timestep_of("noise:0.7", flow)
    assert t <= 700 < flow.timesteps[flow.timesteps.tolist().index(t) - 1]
    assert timestep_of(650, flow) == 650
    heun = scheduled(HeunDiscreteScheduler.from_config(SD.config))          # repeats timesteps, which count once
    assert timestep_of("steps:0.3", heun) == pytest.approx(sorted(set(heun.timesteps.tolist()), reverse=True)[3])


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    load_source(image_folder(folder / "images", n=8)).save(folder / "manifest.parquet")
    return folder / "manifest.parquet"


@pytest.mark.parametrize(("kind", "name"), [
    *((kind, name) for kind in ("sd", "sd3")
      for name in ("og-stp:transition={}", "og-stp-layout:transition={}", "dtp:min_drop=9,latest={}")),
    ("sd", "sharpness-step:radius=5,transition={}"), ("sd", "og-recall:training=DATA,transition={0},warm_up={0}")])
def test_a_point_gives_the_images_of_its_timestep(kind, name, training):
    """Where a warm-up ends as the transition comes, it does not matter who was recognised."""
    pipe, found = cached_pipeline(kind), {}
    more = {"max_sequence_length": TOKENS} if kind == "sd3" else {}
    pipe.scheduler.set_timesteps(5)
    third = pipe.scheduler.timesteps[2].item()
    for point in (third, "steps:0.4", f"noise:{noise_share(pipe.scheduler, third) + 1e-6}"):
        with mitigated(pipe, name.format(point).replace("DATA", str(training))) as run:
            found[point] = pipe(["a cat", "a bus"], guidance_scale=7.5, num_inference_steps=5, output_type="latent", height=16,
                                width=16, generator=[torch.Generator().manual_seed(i) for i in range(2)], **more).images
        assert run.transition_timesteps == [pytest.approx(third)] * 2
    first, *others = found.values()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", ["stp:transition=noise:1.2", "stp:transition=steps:", "stp:transition=half", "dtp:latest=soon",
                                  "dtp:earliest=dynamic", "stp:transition=1000.5"])
def test_no_point_is_refused(name):
    with pytest.raises(InputError, match="give a timestep from|is not"):
        get_mitigation(name)


def test_a_setting_that_takes_no_point_is_named_before_anything_is_loaded():
    check_names(["og-stp:transition=noise:0.7", "dtp:earliest=steps:0.1"])
    with pytest.raises(InputError, match="before='noise:0.5' is not a number"):
        check_names(["og-stp:before=noise:0.5"])
