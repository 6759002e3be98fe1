"""The families after FLUX.1: their loss is that of diffusers' example scripts, and what is saved loads in a stock pipeline."""
import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from families.example_scripts import SCRIPTS
from families.more_families import SIDES, more_family
from families.more_families import images as sampled
from safetensors.torch import load_file
from torchvision.transforms.functional import resize, to_tensor
from training import arguments_of, config_of, in_processes, largest_difference

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine import training as module
from rotescope.train.engine.job import check_job
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.families import Predictor
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.objective.training_mitigations import TrainingMitigation

PROMPT, HASHES, CPU = "a cat on a red background", {"vae": "v", "text": "t"}, torch.device("cpu")
QUICK = [pytest.param(name, marks=pytest.mark.slow if name == "sana" else ()) for name in SCRIPTS]  # Sana's instruction is long
NOT_TOLD = ("attention_kwargs", "joint_attention_kwargs", "return_dict")


def small(name):
    """A small pipeline, whose VAE has seen something where it counts what it sees."""
    pipe = more_family(name)
    if name == "flux2-klein":
        generator = torch.Generator().manual_seed(0)
        pipe.vae.bn.running_mean.uniform_(-1, 1, generator=generator)
        pipe.vae.bn.running_var.uniform_(0.5, 2, generator=generator)
    return pipe


@pytest.fixture(scope="module")
def more_bases(tmp_path_factory):
    """A family's name -> the folder of its small model, made on first use."""
    folders = {}

    def base(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            small(name).save_pretrained(folders[name])
        return folders[name]
    return base


def encoded_batch(name, pipe, folder, size=4, scheme="cosmap"):
    """-> a manifest, its encodings, the schedule and a batch."""
    manifest, schedule = load_source(folder), noise_schedule(pipe.scheduler)
    encoded = encode(manifest, pipe, Preprocessing(SIDES.get(name, 16)), HASHES)
    return manifest, encoded, schedule, next(GlobalBatches(encoded, [1] * 6, size, draw_levels(schedule, scheme)))


@pytest.mark.parametrize("name", QUICK)
def test_the_loss_is_that_of_diffusers_script(name, images):
    pipe, (latents, output) = small(name), SCRIPTS[name]
    manifest, encoded, schedule, batch = encoded_batch(name, pipe, images)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas, timesteps = scheduler.sigmas[batch.levels].view(-1, 1, 1, 1), scheduler.timesteps[batch.levels]
    side = SIDES.get(name, 16)
    pixels = torch.stack([to_tensor(resize(manifest[i].open(), side, 1)) * 2 - 1 for i in batch.images])
    with torch.no_grad():
        x = latents(pipe, pixels, batch.posterior_noise)
        prediction = output(pipe, (1 - sigmas) * x + sigmas * batch.noise, timesteps,
                            [manifest[i].captions[0] for i in batch.images])
        weighting = compute_loss_weighting_for_sd3(weighting_scheme="cosmap", sigmas=sigmas)
        expected = (weighting * (prediction - (batch.noise - x)) ** 2).mean((1, 2, 3))
        ours = DenoisingLoss(encoded, schedule, CPU, None, "cosmap")(Predictor(pipe, ("transformer",)), batch)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# ----- what the pipeline tells its denoiser

def told(module, call):
    """What the first call of a module is given while call() runs, by name, but what changes nothing."""
    return {name: value for name, value in arguments_of(module, call).items() if name not in NOT_TOLD and value is not None}


@pytest.mark.parametrize("name", QUICK)
def test_the_denoiser_is_told_what_the_pipeline_tells_it(name, images):
    pipe, side = small(name), SIDES.get(name, 16)
    pipe.set_progress_bar_config(disable=True)
    binned, off = {"use_resolution_binning": False} if name == "sana" else {}, 0.0 if name == "z-image" else 1.0
    theirs = told(pipe.transformer, lambda: pipe(
        prompt=PROMPT, num_inference_steps=1, guidance_scale=off, height=side, width=side, **binned))
    _, encoded, schedule, batch = encoded_batch(name, pipe, images, 1)
    object.__setattr__(batch, "captions", torch.tensor([encoded.words.index(PROMPT)]))
    object.__setattr__(batch, "levels", torch.tensor([0]))
    loss = DenoisingLoss(encoded, schedule, CPU)
    ours = told(pipe.transformer, lambda: loss(Predictor(pipe, ("transformer",)), batch))
    assert ours.keys() == theirs.keys()
    for key in theirs.keys() - {"hidden_states", "x", "timestep", "t"}:
        torch.testing.assert_close(ours[key], theirs[key], msg=key, check_dtype=False)
    time = "t" if name == "z-image" else "timestep"
    torch.testing.assert_close(ours[time], theirs[time], rtol=2e-3, atol=1e-6, check_dtype=False)
    first = [(latents[0] if isinstance(latents, list) else latents).shape
             for latents in (told.get("hidden_states", told.get("x")) for told in (ours, theirs))]
    assert first[0] == first[1]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("z-image", "qwen-image") else pytest.mark.slow) for name in SCRIPTS])
def test_a_sample_has_its_loss_whatever_captions_stand_beside_it(name, images):
    pipe = small(name)
    _, encoded, schedule, batch = encoded_batch(name, pipe, images)
    batch.captions[1] = 0     # the shortest of all
    loss, predictor = DenoisingLoss(encoded, schedule, CPU), Predictor(pipe, ("transformer",))
    with torch.no_grad():
        alone = torch.cat([loss(predictor, part) for part in batch.split(4)])
        torch.testing.assert_close(loss(predictor, batch), alone, rtol=1e-4, atol=1e-5)


# ----- from end to end

def kept_and_saved(config, monkeypatch):
    """-> the pipeline in memory after the last step, and the folder that finetune left."""
    kept = []
    for function in ("save_full", "save_lora"):
        save = getattr(module, function)
        monkeypatch.setattr(module, function, lambda job, *rest, save=save: kept.append(job.pipe) or save(job, *rest))
    out = train_model(config, progress=False)
    return kept[0], out


def run_of(name, base, folder, out, **changes):
    small = {"resolution": SIDES.get(name, 16), "max_train_steps": 2, "train_batch_size": 2}
    return config_of(base, folder, out, **small | changes)


@pytest.mark.parametrize(("name", "lora"), [
    pytest.param(name, lora, marks=() if (name, lora) == ("z-image", True) else pytest.mark.slow)
    for name in SCRIPTS for lora in (True, False)])
def test_what_is_trained_loads_in_a_stock_pipeline_with_equal_output(name, lora, more_bases, images, tmp_path, monkeypatch):
    changes = {"lora": True, "rank": 3, "lora_alpha": 5, "adam_epsilon": 1e-8} if lora else {}
    kept, out = kept_and_saved(run_of(name, more_bases(name), images, tmp_path / "out", **changes), monkeypatch)
    stock = DiffusionPipeline.from_pretrained(more_bases(name) if lora else out)
    plain = sampled(DiffusionPipeline.from_pretrained(more_bases(name)), name)
    if lora:
        stock.load_lora_weights(out)
    assert abs(sampled(stock, name) - sampled(kept, name)).max() < 1e-6
    assert abs(sampled(stock, name) - plain).max() > 1e-5


def test_a_lora_of_klein_reaches_its_single_blocks_as_diffusers_script_does(more_bases, images, tmp_path):
    job = check_job(run_of("flux2-klein", more_bases("flux2-klein"), images, tmp_path / "out", lora=True))
    layers = {name for name, part in job.pipe.transformer.named_modules() if hasattr(part, "lora_A")}
    single = {layer for layer in layers if layer.startswith("single_transformer_blocks")}
    assert single == {f"single_transformer_blocks.0.attn.{layer}" for layer in ("to_qkv_mlp_proj", "to_out")}
    assert "transformer_blocks.0.attn.to_out.0" in layers


def test_families_that_share_a_vae_do_not_share_latents(images, tmp_path):
    """Z-Image is trained without the posterior's deviation, Chroma with it; both have the VAE of FLUX.1."""
    source, stds = load_source(images), {}
    for name in ("chroma", "z-image"):
        encoded = encode(source, more_family(name), Preprocessing(16), HASHES, tmp_path, texts=False)
        stds[name] = encoded.images["moments"][torch.tensor([0])].chunk(2, 2)[1]
    assert stds["chroma"].min() > 0
    assert stds["z-image"].abs().max() == 0


def test_a_blend_of_captions_counts_the_tokens_of_both(images):
    pipe = small("z-image")
    _, encoded, _, batch = encoded_batch("z-image", pipe, images)
    short, long = sorted((0, 1), key=lambda row: encoded.texts["mask"][torch.tensor([row])].sum())
    pairs = replace(batch, captions=torch.tensor([short] * 4), partners=torch.tensor([long] * 4),
                    shares=torch.tensor([0.5, 1, 0.9, 1]))
    mixed = TrainingMitigation(mixup_noise_lam=1.0).disturbed(encoded.condition(pairs), pairs, encoded.texts)
    counted = [int(encoded.texts["mask"][torch.tensor([row])].sum()) for row in (short, long)]
    assert counted[0] < counted[1]
    assert mixed["mask"].sum(1).tolist() == [counted[1], counted[0], counted[1], counted[0]]


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("z-image", {"train_text_encoder": True, "lora": True}, "a ZImagePipeline has none: leave it out"),
    ("sana", {"snr_gamma": 5.0}, "--snr_gamma is for diffusion"),
    ("qwen-image", {"lora": True, "lora_format": "kohya"}, "--lora_format kohya is written for Stable Diffusion"),
    ("chroma", {"resolution": 18}, "take a multiple of 4"),
    ("pixart-sigma", {}, "is a PixArtSigmaPipeline: what is served here is .*ChromaPipeline")])
def test_what_a_family_cannot_do_is_bad_input(name, changes, message, more_bases, images, tmp_path):
    with pytest.raises(InputError, match=message):
        check_job(run_of(name, more_bases(name), images, tmp_path / "out", **changes))


@pytest.fixture
def another_launch():
    """Accelerate keeps the precision that a process had first for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.slow
@pytest.mark.usefixtures("another_launch")
@pytest.mark.parametrize(("name", "changes"), [
    *((name, {"mixed_precision": "bf16", "gradient_checkpointing": True, "lora": True}) for name in SCRIPTS),
    *((name, {"mixed_precision": "bf16", "save_dtype": "bf16"}) for name in SCRIPTS),
    ("qwen-image", {"mixup_noise_lam": 1.0, "rand_noise_lam": 0.1}), ("z-image", {"hard_threshold": 50.0, "random_flip": True}),
    ("sana", {"caption_perturbation": "caption_word_repetition", "mem_ratio": 1.25, "validation_prompts": (PROMPT,)}),
    ("chroma", {"use_ema": True, "noise_offset": 0.1}),
    ("flux2-klein", {"validation_prompts": (PROMPT,), "lora": True})], ids=str)
def test_other_options_end_in_a_good_checkpoint(name, changes, more_bases, images, tmp_path):
    """What is saved is compared with what was trained at the end of every run."""
    out = train_model(run_of(name, more_bases(name), images, tmp_path / "out", **changes), progress=False)
    assert torch.tensor(json.loads((out / "rotescope.json").read_text())["losses"]).isfinite().all()


@pytest.mark.slow
def test_the_release_of_sana_is_trained_by_flow_matching(more_bases, images, tmp_path):
    """Its scheduler is a solver of diffusion's that is told so; diffusers' script reads it as flow matching's, unshifted."""
    pipe = DiffusionPipeline.from_pretrained(more_bases("sana"))
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe.save_pretrained(tmp_path / "sana")
    schedule = noise_schedule(pipe.scheduler)
    torch.testing.assert_close(schedule.sigma[[0, 500]], torch.tensor([1.0, 0.5]))
    train_model(run_of("sana", tmp_path / "sana", images, tmp_path / "out", lora=True), progress=False)


@pytest.mark.slow
def test_two_processes_train_what_the_loss_leaves_in_part_without_a_gradient(more_bases, images, tmp_path):
    """Of Qwen-Image's last block the text's half: processes would wait for each other's gradients of it."""
    settings = {"base": more_bases("qwen-image"), "folder": images}
    in_processes(run_of("qwen-image", **settings, out=tmp_path / "two", train_batch_size=1), 2, tmp_path)
    one = train_model(run_of("qwen-image", **settings, out=tmp_path / "one"), progress=False)
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert largest_difference(load_file(one / file), load_file(tmp_path / "two" / file)) < 1e-5
