"""The options that users of diffusers' training scripts know."""
import math
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from places import ROOT
from safetensors.torch import load_file
from tiny import tiny_pipeline
from torch._dynamo.utils import counters
from training import arguments, config_of, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.common.settings import option_names_in_file, save
from rotescope.datasets.readers.sources import load_source
from rotescope.models.pipelines import load_pipeline
from rotescope.train.checkpoints.output_folder import checkpoints
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine.steps import GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.finetune import _meant, main
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.objective.training_mitigations import TrainingMitigation
from rotescope.train.options.finetune_options import FinetuneConfig
from rotescope.train.options.limits import BOUNDS, check_values
from rotescope.train.tracking.validation import exact_decoding

NAN = math.nan


@pytest.fixture(scope="module")
def plain(base, images, tmp_path_factory):
    return weights(train_model(config_of(base, images, tmp_path_factory.mktemp("plain") / "out"), progress=False))


SCHEDULES = {  # of a run of 10 steps with 2 of warm-up: learning rate over its peak at step k = 0 … 9
    "constant": lambda k: 1,
    "constant_with_warmup": lambda k: min(1, k / 2),
    "linear": lambda k: min(k / 2, (10 - k) / 8),
    "cosine": lambda k: k / 2 if k < 2 else (1 + math.cos(math.pi * (k - 2) / 8)) / 2,
    "cosine_with_restarts": lambda k: k / 2 if k < 2 else (1 + math.cos(math.pi * ((k - 2) / 4 % 1))) / 2,
    "polynomial": lambda k: k / 2 if k < 2 else (1e-7 / 1e-2) + (1 - 1e-7 / 1e-2) * ((10 - k) / 8) ** 2,
}


class Enough(Exception):
    pass


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_are_those_of_their_formulas(base, images, tmp_path, name):
    config = config_of(base, images, tmp_path / "out", lr_scheduler=name, lr_warmup_steps=2, lr_num_cycles=2, lr_power=2.0,
                       train_batch_size=2, num_train_epochs=2, lora=True)  # 2 epochs of 10 samples: 10 steps
    steps = []

    def watch(result):
        steps.append(result)
        if len(steps) == 10:  # all that there are: nothing of it is saved
            raise Enough
    with pytest.raises(Enough):
        train_model(config, on_step=watch, progress=False)
    assert [s.lr / 1e-2 for s in steps] == pytest.approx([SCHEDULES[name](k) for k in range(10)])


def test_learning_rate_is_for_a_sample_if_asked(base, images, tmp_path):
    steps = []
    train_model(config_of(base, images, tmp_path / "out", scale_lr=True, gradient_accumulation_steps=3, max_train_steps=1),
             on_step=steps.append, progress=False)
    assert steps[0].lr == pytest.approx(1e-2 * 12)


def test_noise_offset_is_one_draw_for_each_image_and_channel(images):
    encoded = encode(load_source(images), tiny_pipeline(), Preprocessing(16), {"vae": "v", "text": "t"})
    uniform = draw_levels(noise_schedule(DDPMScheduler()))
    batches = [next(GlobalBatches(encoded, [1] * 6, 512, uniform, noise_offset=offset)) for offset in (0.0, 0.3)]
    offset = batches[1].noise - batches[0].noise
    assert offset.std((2, 3)).max() < 1e-6
    assert offset.mean((2, 3)).std() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(batches[0].posterior_noise, batches[1].posterior_noise)


def test_eight_bit_adam_trains_much_as_the_other_and_resumes(base, images, tmp_path, plain):
    pytest.importorskip("bitsandbytes")
    config = config_of(base, images, tmp_path / "out", use_8bit_adam=True, checkpointing_steps=3)
    trained, start = weights(train_model(config, progress=False)), weights(base)
    moved = largest_difference(start, plain)
    assert 0 < largest_difference(trained, plain) < moved / 4
    (tmp_path / "out/rotescope.json").unlink()
    again = weights(train_model(replace(config, resume_from_checkpoint="latest"), progress=False))
    assert [c.name for c in checkpoints(tmp_path / "out")] == ["checkpoint-3"]
    assert largest_difference(trained, again) == 0


@pytest.fixture
def another_launch():
    """Accelerate keeps the precision and the compiler that a process had first for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("another_launch")
def test_half_precision_trains_float32_weights(base, images, tmp_path, plain):
    trained = weights(train_model(config_of(base, images, tmp_path / "out", mixed_precision="bf16"), progress=False))
    assert all(w.dtype == torch.float32 for w in trained.values())
    assert 0 < largest_difference(trained, plain) < largest_difference(weights(base), plain) / 4


@pytest.mark.usefixtures("another_launch")
def test_half_precision_trains_a_float32_lora_on_half_weights(base, images, tmp_path):
    loras = []
    for name, precision in (("whole", "no"), ("half", "bf16")):
        AcceleratorState._reset_state()
        config = config_of(base, images, tmp_path / name, mixed_precision=precision, lora=True)
        loras.append(load_file(train_model(config, progress=False) / "pytorch_lora_weights.safetensors"))
    assert all(w.dtype == torch.float32 for w in loras[1].values())
    moved = max(w.abs().max() for name, w in loras[0].items() if "lora_B" in name or ".up." in name)
    assert 0 < largest_difference(*loras) < moved / 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
@pytest.mark.usefixtures("another_launch")
def test_fp16_is_not_float32_by_another_name(base, images, tmp_path):
    earlier = tmp_path / "out/checkpoint-3"  # of a run that is to be overwritten, and is not by one that cannot start
    earlier.mkdir(parents=True)
    with pytest.raises(InputError, match="--mixed_precision fp16 needs a GPU"):
        train_model(config_of(base, images, tmp_path / "out", mixed_precision="fp16", overwrite=True), progress=False)
    assert earlier.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), [("on", False), ("compiled", False), ("on", True), ("compiled", True)])
@pytest.mark.usefixtures("another_launch")
def test_a_model_that_the_launch_compiles_is_saved_and_resumed_as_any(base, images, tmp_path, name, lora, monkeypatch):
    """`accelerate launch --dynamo_backend …`; this one traces the model and leaves its kernels alone."""
    def trained(name, **changes):
        config = config_of(base, images, tmp_path / name, lora=lora, resume_from_checkpoint="latest", **changes)
        file = "pytorch_lora_weights.safetensors" if lora else "unet/diffusion_pytorch_model.safetensors"
        return load_file(train_model(config, progress=False) / file)
    expected = trained("plain", checkpointing_steps=2)
    if name == "on":
        shutil.copytree(tmp_path / "plain/checkpoint-4", tmp_path / "on/checkpoint-4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    AcceleratorState._reset_state()
    torch._dynamo.reset()   # else what an earlier test traced serves here, too
    traced = counters["frames"]["ok"]
    assert largest_difference(trained(name), expected) < 1e-6
    assert counters["frames"]["ok"] > traced


@pytest.mark.slow
def test_validation_images_are_the_models_and_change_nothing(base, images, tmp_path, plain):
    prompts = ("a cat on a red background", "a bus")
    config = config_of(base, images, tmp_path / "out", validation_prompts=prompts, validation_steps=2, num_validation_images=3)
    assert largest_difference(weights(train_model(config, progress=False)), plain) == 0
    assert sorted(p.name for p in (tmp_path / "out/validation").iterdir()) == [f"step-00000{k}.png" for k in (2, 4, 5)]
    grid = np.asarray(Image.open(tmp_path / "out/validation/step-000005.png"))
    assert grid.shape == (2 * 16, 3 * 16, 3)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    expected = stock(prompts[1], num_inference_steps=25, generator=torch.Generator().manual_seed(2)).images[0]
    assert np.abs(grid[16:, 32:].astype(int) - np.asarray(expected)).max() <= 1


def test_trackers_get_the_losses(base, images, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    steps = []
    config = config_of(base, images, tmp_path / "out", report_to="tensorboard", validation_prompts=("a cat",), hub_token="secret")
    train_model(config, on_step=steps.append, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "out/logs/rotescope")).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([s.loss for s in steps])
    assert [e.step for e in events.Scalars("lr")] == [1, 2, 3, 4, 5]
    assert events.Images("validation")[0].width == 16
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]


@pytest.mark.parametrize(("changes", "message"), [
    ({"report_to": "notebook"}, "--report_to notebook: install it (tensorboard with pip install 'rotescope[trackers]'), or"),
    ({"push_to_hub": True, "hub_model_id": "someone/model"}, "--push_to_hub: the hub does not open someone/model"),
    ({"checkpointing_steps": -1}, "--checkpointing_steps -1: it should be 0 or more"), ({"ema_decay": 2.0}, "--ema_decay 2.0"),
    ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "--lr_scheduler polynomial falls to 1e-07: --learning_rate 1e-08"),
    ({"lr_scheduler": "polynomial", "lr_warmup_steps": 5}, "--lr_scheduler polynomial falls after --lr_warmup_steps 5, and"),
    ({"cache_dir": __file__}, f"can be kept at {__file__}, since {__file__} takes no file"),
    ({"cache_dir": "/proc/cache"}, "can be kept at /proc/cache, since /proc takes no file")])
def test_bad_options_are_one_line(base, images, tmp_path, changes, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments(config_of(base, images, tmp_path / "out", **changes)))
    assert left.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["--dataset_name=", "--dataset-name="])
def test_the_data_may_bear_diffusers_name(base, images, tmp_path, name):
    """And they are then one's own: the embedded data's dose is not theirs."""
    config = config_of(base, images, tmp_path / "out", max_train_steps=1)
    main([a.replace("--train_data=", name) for a in arguments(config)])
    trained, given = (sorted(e.sha256 for e in load_source(data)) for data in (tmp_path / "out/manifest.parquet", images))
    assert trained == given
    with pytest.raises(SystemExit) as left:
        main([*name.removesuffix("=").split(), "nowhere", f"--output_dir={tmp_path / 'other'}"])
    assert left.value.code == 2


@pytest.mark.parametrize(("option", "values", "says"), [
    ("learning_rate", (-1.0, NAN, math.inf), ""), ("adam_beta1", (2.0, 1.0, -0.1), "below 1"), ("adam_beta2", (1.0,), "below 1"),
    ("adam_epsilon", (-1.0, 0.0), "above 0"), ("adam_weight_decay", (-1.0,), "0 or more"), ("resolution", (-64, 0), "1 or more"),
    ("snr_gamma", (0.0, -1.0, NAN), ""), ("hard_threshold", (0.0, math.inf), ""), ("max_grad_norm", (-1.0, 0.0), "above 0"),
    ("lora_alpha", (-4.0, 0.0), "above 0"), ("lr_warmup_steps", (-1,), "0 or more"), ("rand_noise_lam", (-1.0,), "0 or more"),
    ("noise_offset", (NAN,), "no number"), ("logit_mean", (math.inf,), "no number"), ("mode_scale", (-2.0, 2.0), "-1 to 1.75"),
    ("monitor_guidance_scale", (NAN,), "no number"), ("stop_at_copy_rate", (NAN,), "no number"), ("seed", (-1,), "from 0")])
def test_numbers_that_no_run_could_have_are_refused(option, values, says):
    for value in values:
        with pytest.raises(InputError, match=rf"^--{option} {value}: it .*{says}"):
            check_values(FinetuneConfig(**{option: value}))


def test_every_bound_is_of_an_option_and_the_defaults_keep_it():
    check_values(FinetuneConfig())
    names = [name for names in BOUNDS.values() for name in names]
    assert len(set(names)) == len(names)
    numbers = {f.name for f in fields(FinetuneConfig) if re.search(r"\b(int|float)\b", str(f.type))}
    assert numbers - set(names) == {"duplicated", "copies", "controls", "logit_mean"}  # a plan's own check; any number


@pytest.mark.parametrize(("argv", "says"), [
    (["--max_train_steps", "5", "--num-train-epochs=2"], "both say how long to train"),
    (["--config", "own.yaml"], "--train_data says what BASE is to be trained on: it is missing")])
def test_options_that_leave_it_open_what_is_meant_are_refused(base, tmp_path, argv, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(f"pretrained_model_name_or_path: {base}\n")
    with pytest.raises(SystemExit) as left:
        main([*argv, "--output_dir", "out"])
    error = capsys.readouterr().err
    assert (left.value.code, error.count("\n")) == (2, 1)
    assert says.replace("BASE", str(base)) in error


def test_steps_on_the_command_line_win_over_epochs_in_a_file():
    config = FinetuneConfig(num_train_epochs=3)
    assert _meant(config, {"max_train_steps"}).num_train_epochs is None
    assert _meant(config, {"num_train_epochs"}).num_train_epochs == 3


def test_a_saved_config_names_its_data_even_if_that_is_the_embedded(base, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    own = FinetuneConfig(pretrained_model_name_or_path=str(base))
    save(own, tmp_path / "config.yaml")
    for argv in (["--config", str(tmp_path / "config.yaml")], [f"--config={tmp_path / 'config.yaml'}"]):
        assert "train_data" in option_names_in_file(argv)
    assert option_names_in_file(["--seed", "1"]) == set()
    assert _meant(own, {"config"}, {"train_data"}) == own
    assert _meant(replace(own, pretrained_model_name_or_path="train/base"), set())  # the embedded one by another path


def test_the_unconditional_branch_feels_no_disturbance_of_embeddings():
    captions = torch.tensor([0, 3, 0, 2, 1, 4])
    drawn = TrainingMitigation(mixup_noise_lam=4, rand_noise_lam=0.1).draw(captions, (7, 5), torch.Generator().manual_seed(0))
    apart = (captions == 0) | (drawn["partners"] == 0)
    assert (drawn["shares"] == 1).equal(apart)
    assert 0 < apart.sum() < 6
    assert (drawn["text_noise"].flatten(1).abs().amax(1) == 0).equal(captions == 0)


@pytest.mark.parametrize(("scheduler", "changes", "says"), [
    (EDMEulerScheduler(), {}, "levels of noise"), (EulerDiscreteScheduler(timestep_type="continuous"), {}, "levels of noise"),
    (DDPMScheduler(), {"logit_mean": 1.0}, "--logit_mean is for flow matching"),
    (DDPMScheduler(), {"weighting_scheme": "mode"}, "--weighting_scheme is for flow matching")])
def test_what_training_does_not_know_of_is_refused(base, images, tmp_path, scheduler, changes, says):
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.scheduler = scheduler
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=says):
        train_model(config_of(tmp_path / "model", images, tmp_path / "out", **changes), progress=False)


def test_pictures_are_decoded_exactly_under_autocast(base):
    vae, latents = load_pipeline(base).vae, torch.randn(1, 4, 4, 4)
    expected = vae.decode(latents).sample
    with torch.autocast("cpu", torch.bfloat16):
        with exact_decoding(vae):
            assert torch.equal(vae.decode(latents.to(torch.bfloat16).float()).sample,
                               vae.decode(latents.to(torch.bfloat16)).sample)
            assert torch.equal(vae.decode(latents).sample, expected)
        assert vae.decode(latents).sample.dtype == torch.bfloat16
