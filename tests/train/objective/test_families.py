"""Every family trains, end to end, on a tiny pipeline of the real classes, and what it leaves loads in a stock pipeline."""
import shutil
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from packaging.version import Version
from safetensors.torch import load_file
from tiny_families import FAMILIES, tiny_family
from torchvision.transforms.functional import to_tensor
from training import arguments_of, config_of
from transformers.integrations.peft import MIN_PEFT_VERSION

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.train.checkpoints.export import component_hashes
from rotescope.train.checkpoints.output_folder import checkpoints
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine import training as module
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.families import Predictor, family_of
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.options.limits import WEIGHTING_SCHEMES

needs_peft = pytest.mark.skipif(Version(version("peft")) < Version(MIN_PEFT_VERSION),
                                reason="transformers asks for a newer peft: no LoRA on text encoders")
PROMPT = "a cat on a red background"
HASHES = {"vae": "v", "text": "t"}


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    images = pipe(PROMPT, num_inference_steps=2, guidance_scale=3.0, height=16, width=16, output_type="pt",
                  generator=torch.Generator().manual_seed(0)).images
    assert images.isfinite().all()
    assert images.std() > 0
    return images


def trained(config, monkeypatch):
    """-> the pipeline in memory after the last step, and the folder that finetune left."""
    kept = []
    for name in ("save_full", "save_lora"):
        save = getattr(module, name)
        monkeypatch.setattr(module, name, lambda job, *rest, save=save: kept.append(job.pipe) or save(job, *rest))
    return kept, train_model(config, progress=False)


@pytest.mark.parametrize("name", [  # the two that share one UNet train whole in test_finetune.py, too
    pytest.param(name, marks=pytest.mark.slow if name in ("sd1", "sd2") else ()) for name in FAMILIES])
def test_whole_models_load_in_a_stock_pipeline_with_equal_output(name, bases, images, tmp_path, monkeypatch):
    kept, out = trained(config_of(bases(name), images, tmp_path / "out", resolution=16, max_train_steps=2), monkeypatch)
    stock = sample(DiffusionPipeline.from_pretrained(out))
    torch.testing.assert_close(stock, sample(kept[0]), atol=1e-6, rtol=0)
    assert (stock - sample(DiffusionPipeline.from_pretrained(bases(name)))).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "text"), [
    *(pytest.param(name, False, marks=pytest.mark.slow if name in ("sd2", "sdxl", "flux") else ()) for name in FAMILIES),
    *(pytest.param(name, True, marks=needs_peft) for name in ("sd1", "sdxl", "sd3", "flux"))])
def test_loras_load_in_a_stock_pipeline_with_equal_output(name, text, bases, images, tmp_path, monkeypatch):
    config = config_of(bases(name), images, tmp_path / "out", resolution=16, max_train_steps=2, lora=True, rank=3, lora_alpha=5,
                       train_text_encoder=text, adam_epsilon=1e-8)
    kept, out = trained(config, monkeypatch)
    stock = DiffusionPipeline.from_pretrained(bases(name))
    plain = sample(stock)
    stock.load_lora_weights(out)
    torch.testing.assert_close(sample(stock), sample(kept[0]), atol=1e-6, rtol=0)
    assert (sample(stock) - plain).abs().max() > 1e-5
    adapted = {part for part, module in stock.components.items() if isinstance(module, torch.nn.Module)
               and any("lora_B" in n and w.abs().max() > 0 for n, w in module.named_parameters())}
    family = family_of(stock)
    assert adapted == {family.denoiser, *(family.encoders if text else ())}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_denoiser_is_told_what_the_pipeline_tells_it(name, images):
    """The oracle is the stock pipeline: the same caption, the same conditions, the same first timestep."""
    pipe = tiny_family(name)
    denoiser, schedule = pipe.components[family_of(pipe).denoiser], noise_schedule(pipe.scheduler)
    theirs = arguments_of(denoiser, lambda: pipe(PROMPT, num_inference_steps=1, guidance_scale=1.0, height=16, width=16))
    encoded = encode(load_source(images), pipe, Preprocessing(16), HASHES)
    first = theirs["timestep"].flatten()[0].item()
    level = torch.tensor([0 if schedule.target == "flow" else round(first)])
    batch = next(GlobalBatches(encoded, [1] * 6, 1, lambda size, _: level))
    object.__setattr__(batch, "captions", torch.tensor([encoded.words.index(PROMPT)]))
    loss = DenoisingLoss(encoded, schedule, torch.device("cpu"))
    ours = arguments_of(denoiser, lambda: loss(Predictor(pipe, (family_of(pipe).denoiser,), guidance_scale=1.0), batch))
    for key in ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids", "guidance"):
        assert (theirs.get(key) is None) == (ours.get(key) is None), key
        if theirs.get(key) is not None:
            torch.testing.assert_close(ours[key], theirs[key], msg=key)
    for key, value in (theirs.get("added_cond_kwargs") or {}).items():
        torch.testing.assert_close(ours["added_cond_kwargs"][key], value, msg=key)
    assert ours["timestep"].flatten()[0].item() == pytest.approx(first, rel=2e-3)
    assert ours[next(iter(ours))].shape == theirs[next(iter(theirs))].shape


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_flow_matching_is_that_of_diffusers_script(scheme, images):
    """train_dreambooth_sd3.py without preconditioning: x_t = (1 - sigma) x + sigma n, target n - x, weighted by the scheme."""
    pipe, manifest = tiny_family("sd3"), load_source(images)
    encoded, schedule = encode(manifest, pipe, Preprocessing(16), HASHES), noise_schedule(pipe.scheduler)
    batch = next(GlobalBatches(encoded, [1] * 6, 4, draw_levels(schedule, scheme)))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas = scheduler.sigmas[batch.levels].view(4, 1, 1, 1)
    pixels = torch.stack([to_tensor(manifest[i].open()) * 2 - 1 for i in batch.images])
    captions = [manifest[i].captions[0] for i in batch.images]
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
        x = posterior.mean + posterior.std * batch.posterior_noise
        x = (x - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        text, _, pooled, _ = pipe.encode_prompt(captions, None, None, device="cpu", do_classifier_free_guidance=False)
        prediction = pipe.transformer(hidden_states=(1 - sigmas) * x + sigmas * batch.noise, encoder_hidden_states=text,
                                      timestep=scheduler.timesteps[batch.levels], pooled_projections=pooled).sample
        expected = compute_loss_weighting_for_sd3(scheme, sigmas) * F.mse_loss(prediction, batch.noise - x, reduction="none")
        ours = DenoisingLoss(encoded, schedule, torch.device("cpu"), None, scheme)(Predictor(pipe, ("transformer",)), batch)
    torch.testing.assert_close(ours, expected.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_levels_follow_their_density():
    """logit_normal(0, 1) by its quartiles: sigmoid(±0.6745) = 0.3375, 0.6625; uniform without a scheme."""
    schedule = noise_schedule(FlowMatchEulerDiscreteScheduler())
    for scheme, quartiles in (("logit_normal", (337.5, 500, 662.5)), ("none", (250, 500, 750)),
                              ("symmetric_exponential", (160.8, 500, 839.2))):  # where its integral is a quarter
        levels = draw_levels(schedule, scheme)(20_000, torch.Generator().manual_seed(0))
        assert levels.float().quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(quartiles, abs=12)
        assert (levels.min() >= 0) & (levels.max() <= 999)


def test_the_empty_caption_is_sdxls_unconditional_branch(images):
    pipe = tiny_family("sdxl")
    encoded = encode(load_source(images), pipe, Preprocessing(16), HASHES)
    _, empty, _, pooled = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=True)
    assert torch.equal(encoded.texts["text"][torch.tensor([0])], empty)
    assert torch.equal(encoded.texts["pooled"][torch.tensor([0])], pooled)
    assert encoded.texts["text"][torch.tensor([1])].abs().max() > 0


def test_a_peft_that_is_too_old_for_a_text_lora_is_one_line(bases, images, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")  # every peft is too old
    with pytest.raises(InputError, match=r"no LoRA on the text encoder with this peft .* pip install 'transformers<5\.24'"):
        train_model(config_of(bases("sd1"), images, tmp_path / "out", lora=True, train_text_encoder=True), progress=False)


@needs_peft
def test_a_text_lora_resumes_to_the_bit(bases, images, tmp_path):
    config = config_of(bases("sd1"), images, tmp_path / "out", lora=True, train_text_encoder=True, checkpointing_steps=2)
    files = []
    for resumed in (None, "checkpoint-2"):
        (tmp_path / "out/rotescope.json").unlink(missing_ok=True)
        train_model(replace(config, resume_from_checkpoint=resumed), progress=False)
        files.append(load_file(tmp_path / "out/pytorch_lora_weights.safetensors"))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    assert any(k.startswith("text_encoder") for k in files[0])
    assert len(checkpoints(tmp_path / "out")) == 2


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("sd3", {"snr_gamma": 5.0}, "--snr_gamma is for diffusion"), ("flux", {"resolution": 18}, "take a multiple of 4"),
    ("sd1", {"train_text_encoder": True}, "add --lora")])
def test_what_a_family_cannot_do_is_bad_input(name, changes, message, bases, images, tmp_path):
    with pytest.raises(InputError, match=message):
        train_model(config_of(bases(name), images, tmp_path / "out", **changes), progress=False)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3", "vae"])
def test_a_missing_part_is_named(part, bases, images, tmp_path):
    copy = shutil.copytree(bases("sd3"), tmp_path / "model")
    shutil.rmtree(copy / part)
    with pytest.raises(InputError, match=f"has no {part}"):
        train_model(config_of(copy, images, tmp_path / "out"), progress=False)


def test_hashes_tell_every_text_part(bases):
    one = component_hashes(bases("sdxl"))
    assert len(one["text"]) == 4 * 64  # two encoders, two tokenizers
