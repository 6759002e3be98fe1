"""Training against a plain loop in diffusers' style, against itself, in stock pipelines, on one process and on two."""
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from instruments import overridden, with_models_of_ones_own
from PIL import Image
from places import ROOT
from tiny import saved_pipeline, tiny_pipeline
from torchvision import transforms
from training import arguments, config_of, largest_difference, weights, with_broken_picture

from rotescope.common.errors import InputError, RunError
from rotescope.common.settings import parse
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.preflight import main as preflight
from rotescope.datasets.readers.sources import load_source
from rotescope.models.pipelines import load_pipeline
from rotescope.models.prediction import TARGETS, noisy_latents
from rotescope.train.encodings.encode import Preprocessing, encode, longest_reader
from rotescope.train.engine import training as module
from rotescope.train.engine.passes import ShuffledPasses
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches, training_steps
from rotescope.train.engine.training import train_model
from rotescope.train.finetune import main
from rotescope.train.objective.families import Predictor
from rotescope.train.objective.objective import draw_levels, loss_per_sample, min_snr_weight, noise_schedule
from rotescope.train.options.finetune_options import FinetuneConfig

RECIPES = sorted((ROOT / "train/recipes").rglob("*.yaml"))
HASHES = {"vae": "v", "text": "t"}
UNIFORM = draw_levels(noise_schedule(DDPMScheduler()))


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def any_base(request, tmp_path_factory):
    return saved_pipeline(tmp_path_factory.mktemp("base"), request.param)


def sample(pipe, prompt="a cat on a red background"):
    images = pipe(prompt, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.std() > 0
    return images


# ----- objective

@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_objective_agrees_with_diffusers(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    schedule = noise_schedule(scheduler)
    assert (schedule.target, len(schedule)) == (prediction_type, 1000)
    x0, noise = torch.randn(2, 8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 10, 100, 400, 700, 998, 999])
    alpha, sigma = schedule.rates(t)
    torch.testing.assert_close(noisy_latents(x0, noise, alpha, sigma), scheduler.add_noise(x0, noise, t))
    expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(x0, noise, t), "sample": x0}[prediction_type]
    torch.testing.assert_close(TARGETS[prediction_type](x0, noise, alpha, sigma), expected)


def test_loss_and_min_snr_by_hand():
    """alpha² = 0.9 and 0.5: signal-to-noise 9 and 1; gamma 5 caps the first."""
    losses = loss_per_sample(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 0.0]]]]))
    assert losses.tolist() == [5.0]  # (1 + 9) / 2
    alpha, sigma = torch.tensor([0.9, 0.5]).sqrt(), torch.tensor([0.1, 0.5]).sqrt()
    by_hand = {"epsilon": [5 / 9, 1], "v_prediction": [5 / 10, 1 / 2], "sample": [5, 1]}
    for kind, expected in by_hand.items():
        torch.testing.assert_close(min_snr_weight(kind, alpha, sigma, 5.0), torch.tensor(expected, dtype=torch.float32))


# ----- latents

def test_latents_and_embeddings_are_the_pipelines_own(images):
    pipe, manifest = frozen(tiny_pipeline()), load_source(images)
    encoded = encode(manifest, pipe, Preprocessing(16, random_flip=True), HASHES, batch_size=4)
    every, moments = torch.arange(len(manifest)), encoded.images["moments"]
    pixels = torch.stack([transforms.ToTensor()(Image.open(e.file)) * 2 - 1 for e in manifest])
    for flip, x in enumerate((pixels, pixels.flip(3))):
        posterior = pipe.vae.encode(x).latent_dist
        expected = torch.cat([posterior.mean, posterior.std], 1) * pipe.vae.config.scaling_factor
        torch.testing.assert_close(moments[every][:, flip], expected)
    own, empty = pipe.encode_prompt([e.captions[0] for e in manifest], "cpu", 1, True)
    torch.testing.assert_close(encoded.texts["text"][torch.tensor(encoded.captions)[:, 0]], own)
    torch.testing.assert_close(encoded.texts["text"][torch.tensor([0])], empty[:1])


def frozen(pipe):
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


# ----- what the loader serves

def test_an_epoch_shows_each_image_exactly_as_often_as_planned():
    copies = torch.tensor([1, 5, 1, 3, 2])
    passes = ShuffledPasses(copies, torch.Generator().manual_seed(0))
    shown = torch.cat([passes.take(8) for _ in range(6)], 1)  # 48 showings: four epochs of 12
    for epoch in shown.split(12, 1):
        assert Counter(epoch[0].tolist()) == dict(enumerate(copies.tolist()))
    for image in range(5):
        assert shown[1, shown[0] == image].sort().values.tolist() == list(range(4 * copies[image]))


def test_fractions_of_copies_are_exact_over_the_epochs():
    """Of 1.5 copies come 3 in two epochs, of 1/4 one in four, of 10/3, as a float has it, ten in three."""
    copies = [1.5, 0.25, 1, 10 / 3, 0.1, 1.5]
    passes = ShuffledPasses(copies, torch.Generator().manual_seed(0))
    whole = passes.take(60 * 3 + 60 // 4 + 60 + 200 + 6)[0]   # sixty epochs
    assert (passes.epoch, Counter(whole.tolist())) == (60, {0: 90, 1: 15, 2: 60, 3: 200, 4: 6, 5: 90})
    sizes = (passes.shown(1) - passes.shown(0)).sum(), (passes.shown(2) - passes.shown(1)).sum()
    assert max(abs(size - sum(copies)) for size in sizes) < 2
    first, second = (passes.shown(k + 1) - passes.shown(k) for k in (0, 1))
    assert {int(first[0]), int(first[5])} == {1, 2} == {int(second[0]), int(second[5])}


def test_captions_take_turns_and_are_dropped_as_often_as_asked(images):
    manifest = apply_plan(load_source(images), DuplicationPlan(1, 10, captions="several"))
    encoded = encode(manifest, tiny_pipeline(), Preprocessing(16), HASHES)
    index = next(i for i, e in enumerate(manifest) if e.group)
    copies = [e.copies for e in manifest]
    batch = next(GlobalBatches(encoded, copies, 15, UNIFORM, caption_dropout=0))
    assert Counter(batch.captions[batch.images == index].tolist()) == dict.fromkeys(encoded.captions[index], 2)
    stream = GlobalBatches(encoded, copies, 1000, UNIFORM, caption_dropout=0.3)
    dropped = torch.cat([next(stream).captions == 0 for _ in range(10)]).float().mean()
    assert abs(dropped - 0.3) < 0.02  # 10,000 draws: more than four standard deviations


def test_served_counts_are_on_record(base, images, tmp_path):
    manifest = Manifest.load(train_model(config_of(base, images, tmp_path / "out"), progress=False) / "manifest.parquet")
    assert manifest.copies == 10
    assert [e.served for e in manifest] == [2 * e.copies for e in manifest]  # 5 steps of 4 are two epochs


# ----- the loop

def plain_loop(pipe, manifest, batches, snr_gamma, lr=1e-2, warmup=2):
    """What diffusers' train_text_to_image.py does: encode, add noise, predict, weigh, step."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=lr, weight_decay=1e-2, eps=1e-2, foreach=False)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * min(1, step / warmup)
        examples = [manifest[i] for i in batch.images]
        pixels = torch.stack([transforms.ToTensor()(e.open()) * 2 - 1 for e in examples])
        captions = ["" if row == 0 else e.captions[0] for e, row in zip(examples, batch.captions.tolist(), strict=True)]
        with torch.no_grad():
            posterior = pipe.vae.encode(pixels).latent_dist
            x0 = (posterior.mean + posterior.std * batch.posterior_noise) * pipe.vae.config.scaling_factor
            context = pipe.encode_prompt(captions, "cpu", 1, False)[0]
        noisy = scheduler.add_noise(x0, batch.noise, batch.levels)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(x0, batch.noise, batch.levels) if velocity else batch.noise
        losses = F.mse_loss(pipe.unet(noisy, batch.levels, context).sample, target, reduction="none").mean((1, 2, 3))
        if snr_gamma:
            snr = compute_snr(scheduler, batch.levels)
            capped = torch.stack([snr, snr_gamma * torch.ones_like(snr)], 1).min(1).values
            losses = losses * capped / (snr + 1 if velocity else snr)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(pipe.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_equals_a_plain_loop(any_base, images, tmp_path, snr_gamma):
    config = config_of(any_base, images, tmp_path / "out", snr_gamma=snr_gamma,
                       lr_warmup_steps=2, lr_scheduler="constant_with_warmup")
    trained = weights(train_model(config, progress=False))
    pipe = StableDiffusionPipeline.from_pretrained(any_base)
    manifest = apply_plan(load_source(images), DuplicationPlan(2, 3, controls=2))
    encoded, copies = encode(manifest, pipe, Preprocessing(16), HASHES), [e.copies for e in manifest]
    start = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    plain_loop(pipe, manifest, islice(GlobalBatches(encoded, copies, 4, UNIFORM, caption_dropout=0.1), 5), snr_gamma)
    assert largest_difference(start, trained) > 1e-3
    assert largest_difference(dict(pipe.unet.state_dict()), trained) < 1e-5


def test_same_seed_twice_is_the_same_to_the_bit(base, images, tmp_path):
    one, other, another = (train_model(config_of(base, images, tmp_path / name, seed=seed), progress=False)
                           for name, seed in (("one", 1), ("other", 1), ("another", 2)))
    files = [(folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() for folder in (one, other, another)]
    assert files[0] == files[1] != files[2]


def test_accumulated_gradients_are_those_of_the_whole_batch(base, images, tmp_path):
    def trained(name, **changes):
        return weights(train_model(config_of(base, images, tmp_path / name, **changes), progress=False))
    whole = trained("whole")
    assert largest_difference(whole, trained("parts", train_batch_size=1, gradient_accumulation_steps=4)) < 1e-5
    assert largest_difference(whole, trained("checked", gradient_checkpointing=True)) < 1e-6


@pytest.mark.slow
def test_accelerate_launches_two_processes(base, images, tmp_path):
    """As a user types it; tests/train/engine/test_processes.py compares the weights."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    script = [str(ROOT / "train/finetune.py"), *arguments(config_of(base, images, tmp_path / "two", train_batch_size=2))]
    done = subprocess.run([sys.executable, *launch, *script], capture_output=True, text=True, timeout=240, env=os.environ | {
        "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    cores = module._cores()
    note = f"note: this trains on 2 of {cores} cores; accelerate launch --num_cpu_threads_per_process {cores // 2} would use"
    assert (note in done.stderr) == (cores >= 4)


@pytest.mark.parametrize(("launched", "threads", "cores", "processes", "said"), [
    (True, 1, 8, 1, "note: this trains on 1 of 8 cores; accelerate launch --num_cpu_threads_per_process 8 would use 8\n"),
    (True, 1, 5, 2, "note: this trains on 2 of 5 cores; accelerate launch --num_cpu_threads_per_process 2 would use 4\n"),
    (True, 1, 2, 2, ""), (True, 1, 1, 1, ""), (True, 4, 8, 1, ""), (False, 1, 8, 1, "")])
def test_cores_that_accelerate_leaves_idle_are_named(launched, threads, cores, processes, said, monkeypatch, capsys):
    monkeypatch.setattr(module, "_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    module._announce_idle_cores(SimpleNamespace(device=torch.device("cpu"), is_main_process=True))
    assert capsys.readouterr().err == said


def test_a_loss_that_is_no_number_stops_the_run(base, images):
    pipe, manifest = load_pipeline(base), load_source(images)
    encoded = encode(manifest, pipe, Preprocessing(16), HASHES)
    encoded.texts["text"].parts[0][0] = torch.nan
    accelerator, unet = Accelerator(), pipe.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-4)
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    steps = training_steps(accelerator, Predictor(pipe, ("unet",)), accelerator.prepare(optimizer),
                           torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
                           GlobalBatches(encoded, [1] * 6, 4, UNIFORM, caption_dropout=1.0),
                           DenoisingLoss(encoded, noise_schedule(DDPMScheduler()), accelerator.device))
    with pytest.raises(RunError, match="the loss is nan at step 1, learning rate 0.0003"):
        next(steps)
    assert largest_difference(before, unet.state_dict()) == 0


# ----- checkpoints

def test_full_checkpoint_loads_in_a_stock_pipeline(base, images, tmp_path):
    out = train_model(config_of(base, images, tmp_path / "out", save_dtype="fp16"), progress=False)
    stock = StableDiffusionPipeline.from_pretrained(out)
    assert type(stock.scheduler).__name__ == "DPMSolverMultistepScheduler"
    for part in ("vae", "text_encoder"):
        halves = [getattr(StableDiffusionPipeline.from_pretrained(f, torch_dtype=torch.float16), part) for f in (out, base)]
        assert largest_difference(*(half.state_dict() for half in halves)) == 0
    assert not torch.equal(sample(stock), sample(StableDiffusionPipeline.from_pretrained(base)))


@pytest.mark.parametrize("alpha", [None, pytest.param(1, marks=pytest.mark.slow), 9])
def test_lora_loads_in_a_stock_pipeline_with_equal_output(base, images, tmp_path, alpha, monkeypatch):
    trained, save = [], module.save_lora
    monkeypatch.setattr(module, "save_lora", lambda job, folder: trained.append(job.pipe.unet) or save(job, folder))
    config = config_of(base, images, tmp_path / "out", lora=True, rank=3, lora_alpha=alpha, adam_epsilon=1e-8)
    out = train_model(config, progress=False)
    stock, plain = StableDiffusionPipeline.from_pretrained(base), StableDiffusionPipeline.from_pretrained(base)
    stock.load_lora_weights(out)
    ours = StableDiffusionPipeline.from_pretrained(base, unet=trained[0].eval())
    torch.testing.assert_close(sample(stock), sample(ours), atol=1e-6, rtol=0)
    assert (sample(stock) - sample(plain)).abs().max() > 1e-4
    assert {m.scaling["default_0"] for m in stock.unet.modules() if hasattr(m, "lora_A")} == {(alpha or 3) / 3}


def test_record_says_what_was_done(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "out")
    record = json.loads((train_model(config, progress=False) / "rotescope.json").read_text())
    assert (record["kind"], record["steps"], record["seed"], len(record["losses"])) == ("full", 5, 0, 5)
    assert record["hashes"].keys() == {"base", "manifest", "unet"}
    assert record["hashes"]["manifest"] == Manifest.load(tmp_path / "out/manifest.parquet").hash
    assert parse(FinetuneConfig, ["--config", str(tmp_path / "out/config.yaml")], prog="finetune", description="") == config


def test_trains_again_from_its_own_manifest(base, images, tmp_path):
    """The manifest beside a checkpoint carries the plan: the same data, the same weights."""
    first = train_model(config_of(base, images, tmp_path / "first"), progress=False)
    again = config_of(base, first / "manifest.parquet", tmp_path / "again", duplicated=0, copies=1, controls=0)
    assert largest_difference(weights(first), weights(train_model(again, progress=False))) == 0


def test_steps_reach_the_caller(base, images, tmp_path):
    steps = []
    train_model(config_of(base, images, tmp_path / "out"), on_step=steps.append, progress=False)
    assert [s.step for s in steps] == [1, 2, 3, 4, 5]
    assert all(len(s.images) == 4 and s.lr == 1e-2 for s in steps)


# ----- command line

@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: f.name)
def test_recipes_parse_and_open_with_their_command(recipe):
    words = recipe.read_text().splitlines()[0].removeprefix("# accelerate launch ").removeprefix("--num_processes 1 ").split()
    assert words[0] == "train/finetune.py"
    assert f"{words[1]} {ROOT / words[2]}" == f"--config {recipe}"
    config = parse(FinetuneConfig, [words[1], str(ROOT / words[2]), *words[3:]], prog="finetune", description="")
    assert replace(config, **yaml.safe_load(recipe.read_text()) | {"lora_layers": config.lora_layers}) == config


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name.startswith("s")], ids=lambda f: f.name)
def test_recipes_of_the_paper_run_on_a_scaled_down_twin(recipe, base, images, tmp_path):
    """Their settings, but for what size demands: a tiny model, six images of 16 px, three steps of two, a dose of 2 x 3."""
    config = parse(FinetuneConfig, ["--config", str(recipe)], prog="finetune", description="")
    dose = {"duplicated": 2, "copies": 3} if config.duplicated else {}
    twin = replace(config, pretrained_model_name_or_path=str(base), train_data=str(images), output_dir=str(tmp_path / "out"),
                   resolution=16, train_batch_size=2, max_train_steps=3, checkpointing_steps=2, lr_warmup_steps=1,
                   partial_plan=True, **dose)
    out = train_model(twin, progress=False)
    assert sample(StableDiffusionPipeline.from_pretrained(out)).isfinite().all()
    assert (out / "checkpoint-2").is_dir()


@pytest.mark.parametrize(("argv", "embedded"), [
    ([], True), (["--max-train-steps", "7"], True),
    (["--train-data-dir", "x"], False), (["--pretrained_model_name_or_path=x", "--dataset_name=y"], False)])
def test_the_embedded_dose_is_for_the_embedded_data(argv, embedded, monkeypatch):
    seen = []
    with_models_of_ones_own(monkeypatch)
    monkeypatch.setattr(module, "train_model", lambda config, monitor: seen.append(config))
    main(argv)
    assert seen[0].duplicated == (24 if embedded else 0)
    assert seen[0].train_batch_size == (64 if embedded else 16)
    assert (seen[0].max_train_steps == 7) == ("--max-train-steps" in argv)


def without(part):
    def spoil(base, images, argv):
        copy = base.parent / f"without-{part.replace('/', '-')}"
        shutil.copytree(base, copy)
        shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
        return overridden(argv, ["--pretrained_model_name_or_path", str(copy)])
    spoil.__name__ = f"without {part}"
    return spoil


def with_flags(*flags):
    def spoil(base, images, argv):
        return overridden(argv, flags)
    spoil.__name__ = " ".join(flags)
    return spoil


def without_a_readable_picture(base, images, argv):
    folder = base.parent / "unreadable"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "a.txt").write_text("a cat")
    return overridden(argv, ["--train_data", str(folder)])


BAD = {
    without_a_readable_picture: "a.png cannot be read as an image",
    without("tokenizer"): "has no tokenizer", without("vae"): "has no vae", without("unet/config.json"): "has no unet",
    without("text_encoder/model.safetensors"): "has no text_encoder", without("model_index.json"): "no model at",
    with_flags("--pretrained_model_name_or_path", "nowhere"): "no model at nowhere",
    with_flags("--train_data", "nowhere"): "no data at nowhere",
    with_flags("--duplicated", "9"): "the plan needs 9 duplicated images",
    with_flags("--copies", "5"): "--copies without duplicated images does nothing",
    with_flags("--caption_style", "poem"): "no caption style 'poem'", with_flags("--nonsense", "1"): "--nonsense",
    with_flags("--max_train_steps", "0"): "--max_train_steps 0", with_flags("--max_train_steps", "x"): "max_train_steps",
    with_flags("--caption_dropout", "2"): "--caption_dropout 2", with_flags("--lr_scheduler", "zigzag"): "--lr_scheduler zigzag",
    with_flags("--save_dtype", "int3"): "--save_dtype int3", with_flags("--resolution", "15"): "--resolution 15",
    with_flags("--lora", "true", "--lora_layers", "none"): "LoRA finds no layer none",
}


@pytest.mark.parametrize(("spoil", "message"), BAD.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_bad_input_is_one_line_and_leaves_nothing(spoil, message, base, images, tmp_path, capsys):
    argv = ["--pretrained_model_name_or_path", str(base), "--train_data", str(images), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as left:
        main(spoil(base, images, argv))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_broken_pictures_are_left_out_by_name(base, images, tmp_path, capsys):
    """The run is that of the readable ones to the bit; what goes on from it must find the same ones."""
    folder = with_broken_picture(images, tmp_path / "images")
    config = config_of(base, folder, tmp_path / "out", checkpointing_steps=3)
    assert largest_difference(weights(train_model(config, progress=False)),
                              weights(train_model(config_of(base, images, tmp_path / "whole"), progress=False))) == 0
    told, record = capsys.readouterr().err, json.loads((tmp_path / "out/rotescope.json").read_text())
    assert "warning: 1 of the pictures cannot be trained on" in told
    assert f"1 image is left out, all listed in {tmp_path / 'out/rotescope.json'}:\n  {folder / 'broken.png'} cannot be" in told
    assert [q["name"] for q in record["left_out"]] == [str(folder / "broken.png")]
    manifests = [Manifest.load(tmp_path / name / "manifest.parquet") for name in ("out", "whole")]
    assert record["hashes"]["manifest"] == manifests[0].hash == manifests[1].hash
    assert [e.served for e in manifests[0]] == [e.served for e in manifests[1]]
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(tmp_path / "out/checkpoint-3"))
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(InputError, match="checkpoint-3 is of another run: its data is"):
        train_model(resumed, progress=False)


def test_what_preflight_kept_without_a_caption_is_left_out_before_training(base, images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "4.txt").unlink()
    preflight([str(folder), "--output_dir", str(tmp_path / "looked"), "--deduplicate", "true"])
    out = train_model(config_of(base, tmp_path / "looked/deduplicated.parquet", tmp_path / "out"), progress=False)
    assert "the first: " + f"{folder / '4.png'} has no caption" in capsys.readouterr().err
    assert len(Manifest.load(out / "manifest.parquet")) == 5


def planned_without(images, group, tmp_path, base):
    """A plan, one of whose images of that group is gone -> the config of a fine-tune by it, and the image's file."""
    folder = shutil.copytree(images, tmp_path / "images")
    plan = apply_plan(load_source(folder), DuplicationPlan(2, 3, controls=2))
    plan.save(tmp_path / "manifest.parquet")
    gone = Path(plan.group(group)[0].file)
    gone.unlink()
    unplanned = {"duplicated": 0, "copies": 1, "controls": 0, "partial_plan": False}
    return config_of(base, tmp_path / "manifest.parquet", tmp_path / "out", **unplanned), gone


@pytest.mark.parametrize("group", ["duplicated", "control"])
def test_a_plan_that_names_missing_pictures_is_refused(group, base, images, tmp_path, capsys):
    config, gone = planned_without(images, group, tmp_path, base)
    with pytest.raises(SystemExit) as left:
        main(arguments(config))
    line = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2
    assert f"error: the plan names images that cannot be used (1 {group}), the first: {gone} cannot be read" in line
    assert line.endswith("--partial_plan true trains all the same, without them")
    assert not (tmp_path / "out").exists()
    trained = Manifest.load(train_model(replace(config, partial_plan=True), progress=False) / "manifest.parquet")
    assert (len(trained), len(trained.group(group))) == (5, 1)
    (left_out,) = json.loads((tmp_path / "out/rotescope.json").read_text())["left_out"]
    assert (left_out["name"], left_out["group"]) == (str(gone), group)


def test_pictures_that_no_plan_needs_are_left_out_of_a_planned_run(base, images, tmp_path):
    config, gone = planned_without(images, "", tmp_path, base)
    trained = Manifest.load(train_model(config, progress=False) / "manifest.parquet")
    assert (len(trained), [len(trained.group(g)) for g in ("duplicated", "control")]) == (5, [2, 2])
    assert gone.name not in {Path(e.file).name for e in trained}


def test_a_finished_run_is_not_overwritten_unasked(base, images, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    config = config_of(base, images, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(arguments(config))
    assert "pass --overwrite" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]
    assert (train_model(replace(config, overwrite=True), progress=False) / "unet").exists()


def test_more_copies_than_the_steps_serve_are_refused(base, images, tmp_path, capsys):
    config = config_of(base, images, tmp_path / "out", max_train_steps=2, partial_plan=False)  # 8 samples, and the plan takes 10
    with pytest.raises(SystemExit) as left:
        main(arguments(config))
    lines = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert "the plan takes 10 samples" in lines[-1]
    assert "--partial_plan true" in lines[-1]
    assert not (tmp_path / "out").exists()
    train_model(replace(config, max_train_steps=3), progress=False)
    assert "the plan takes" not in capsys.readouterr().err


def test_a_run_shorter_than_its_plan_is_announced(base, images, tmp_path, capsys):
    train_model(config_of(base, images, tmp_path / "out", max_train_steps=2), progress=False)
    assert "warning: the plan takes 10 samples" in capsys.readouterr().err


def test_the_dose_is_announced(base, images, tmp_path, capsys):
    train_model(config_of(base, images, tmp_path / "out", copies=4, max_train_steps=6))  # 24 samples, 12 an epoch
    assert "6 steps of 4 samples: 2.0 epochs, an image is shown about 2.0 to 8.0 times\n" in capsys.readouterr().err


def test_captions_are_measured_by_the_encoder_that_reads_most(bases, capsys):
    """SD3's T5 reads 256 tokens, its CLIP encoders 24 here."""
    pipe = load_pipeline(bases("sd3"))
    assert longest_reader(pipe) == (pipe.tokenizer_3, 256)
    pipe.tokenizer_3 = None
    assert longest_reader(pipe) == (pipe.tokenizer, 24)


def test_long_captions_are_announced(base, images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "0.txt").write_text("a cat " * 20)
    train_model(config_of(base, folder, tmp_path / "out"), progress=False)
    assert "1 captions are cut at the model's 24 tokens, the first: a cat a cat" in capsys.readouterr().err
