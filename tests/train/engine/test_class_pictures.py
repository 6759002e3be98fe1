"""Prior preservation: its loss is that of diffusers' DreamBooth scripts; class pictures are read or drawn, and never audited."""
import json
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from families.more_families import SIDES, more_family
from PIL import Image
from tiny_families import tiny_family
from torchvision import transforms
from training import config_of, in_processes, largest_difference, weights

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine.class_pictures import read_class_pictures
from rotescope.train.engine.run_state import CLASS_STREAM
from rotescope.train.engine.sharding import check_sharding
from rotescope.train.engine.steps import GlobalBatches
from rotescope.train.engine.training import train_model
from rotescope.train.objective.objective import draw_levels, noise_schedule
from rotescope.train.options.limits import check_values

HASHES, UNIFORM = {"vae": "v", "text": "t"}, draw_levels(noise_schedule(DDPMScheduler()))
PROMPT = "a dog on a blue background"


@pytest.fixture(scope="module")
def dogs(tmp_path_factory):
    """Four pictures without captions."""
    folder = tmp_path_factory.mktemp("dogs")
    for i in range(4):
        pixels = np.random.default_rng(100 + i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"dog-{i}.png")
    return folder


def dreambooth(pipe, batches, weight, lr=1e-2):
    """What diffusers' train_dreambooth.py does with prior preservation: both kinds in one batch, the losses apart."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=lr, weight_decay=1e-2, eps=1e-2, foreach=False)
    for pair in batches:
        samples = []
        for manifest, batch in pair:
            examples = [manifest[i] for i in batch.images]
            pixels = torch.stack([transforms.ToTensor()(e.open()) * 2 - 1 for e in examples])
            with torch.no_grad():
                posterior = pipe.vae.encode(pixels).latent_dist
                x0 = (posterior.mean + posterior.std * batch.posterior_noise) * pipe.vae.config.scaling_factor
                context = pipe.encode_prompt([e.captions[0] for e in examples], "cpu", 1, False)[0]
            samples.append((scheduler.add_noise(x0, batch.noise, batch.levels), batch.levels, context, batch.noise))
        noisy, timesteps, context, noise = (torch.cat(each) for each in zip(*samples, strict=True))
        model_pred, model_pred_prior = torch.chunk(pipe.unet(noisy, timesteps, context).sample, 2)
        target, target_prior = torch.chunk(noise, 2)
        prior_loss = F.mse_loss(model_pred_prior, target_prior, reduction="mean")
        (F.mse_loss(model_pred, target, reduction="mean") + weight * prior_loss).backward()
        torch.nn.utils.clip_grad_norm_(pipe.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_the_loss_is_that_of_diffusers_dreambooth_script(base, images, dogs, tmp_path):
    config = config_of(base, images, tmp_path / "out", class_data=str(dogs), class_prompt=PROMPT, prior_loss_weight=0.7,
                       caption_dropout=0.0, gradient_accumulation_steps=2, train_batch_size=2)
    out = train_model(config, progress=False)
    pipe = StableDiffusionPipeline.from_pretrained(base)
    training = apply_plan(load_source(images), DuplicationPlan(2, 3, controls=2))
    classes = Manifest(tuple(replace(e, captions=(PROMPT,)) for e in load_source(dogs, need_captions=False)))
    encoded = {manifest: encode(manifest, pipe, Preprocessing(16), HASHES) for manifest in (training, classes)}
    streams = [GlobalBatches(encoded[manifest], [e.copies for e in manifest], 4, UNIFORM, seed=seed)
               for manifest, seed in ((training, 0), (classes, CLASS_STREAM))]
    batches = (((training, one), (classes, other)) for one, other in zip(*streams, strict=True))
    dreambooth(pipe, islice(batches, 5), 0.7)
    assert largest_difference(weights(base), weights(out)) > 1e-3
    assert largest_difference(dict(pipe.unet.state_dict()), weights(out)) < 1e-5
    manifest, record = Manifest.load(out / "manifest.parquet"), json.loads((out / "rotescope.json").read_text())
    assert {e.sha256 for e in manifest} == {e.sha256 for e in training}   # what an audit takes for the training set
    assert [e.served for e in manifest] == [2 * e.copies for e in manifest]
    assert record["class_pictures"] == {"images": 4, "manifest": classes.hash}


def test_what_is_drawn_comes_from_the_base_and_is_drawn_once(base, images, tmp_path, capsys):
    config = config_of(base, images, tmp_path / "out", num_class_images=2, class_prompt=PROMPT, max_train_steps=2,
                       checkpointing_steps=1, lora=True)
    train_model(config, progress=False)
    folder, = tmp_path.glob("out-class-*")
    assert f"note: the base draws 2 class pictures of {PROMPT!r} into {folder}" in capsys.readouterr().err
    stock = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    first, second = sorted(folder.iterdir())
    expected = stock(PROMPT, height=16, width=16, generator=torch.Generator().manual_seed(1)).images[0]
    assert np.abs(np.asarray(Image.open(second), int) - np.asarray(expected, int)).max() <= 1
    assert first.read_bytes() != second.read_bytes()
    train_model(replace(config, max_train_steps=3, resume_from_checkpoint="latest", overwrite=True), progress=False)
    assert "the base draws" not in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 2


def test_class_pictures_among_the_training_pictures_are_set_aside(base, images, dogs, tmp_path):
    for source, place in ((images, "all"), (dogs, "all/class")):
        (tmp_path / place).mkdir()
        for file in source.iterdir():
            (tmp_path / place / file.name).write_bytes(file.read_bytes())
    out = train_model(config_of(base, tmp_path / "all", tmp_path / "out", class_data=str(tmp_path / "all/class"),
                                class_prompt=PROMPT, max_train_steps=1), progress=False)
    assert len(Manifest.load(out / "manifest.parquet")) == 6


@pytest.mark.parametrize(("changes", "message"), [
    ({"class_data": "dogs", "num_class_images": 2, "class_prompt": "a dog"}, "give one of the two"),
    ({"num_class_images": 2}, "say of what with --class_prompt"),
    ({"num_class_images": -1}, "it should be 0 or more"),
    ({"class_data": "dogs", "class_prompt": " "}, "--class_prompt is empty"),
    ({"prior_loss_weight": 0.5}, "--prior_loss_weight is for class pictures"),
    ({"class_prompt": "a dog"}, "--class_prompt is for class pictures")])
def test_class_pictures_that_are_not_clear_are_refused(base, images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        check_values(config_of(base, images, tmp_path / "out", **changes))


def test_class_pictures_that_cannot_be_used_are_refused(base, images, dogs, tmp_path):
    config = config_of(base, images, tmp_path / "out", class_data=str(dogs))
    with pytest.raises(InputError, match=r"--class_data: .* has no caption.*, or give one to all with --class_prompt"):
        read_class_pictures(config, ())
    with pytest.raises(InputError, match="6 of the pictures are training pictures, too"):
        read_class_pictures(replace(config, class_data=str(images)), load_source(images))
    with pytest.raises(InputError, match="class pictures do not go with DEEPSPEED"):
        check_sharding(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, gradient_accumulation_steps=1,
                                       state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config={}))), config)


@pytest.mark.slow
def test_resumed_it_ends_as_if_it_had_not_stopped(base, images, dogs, tmp_path):
    config = config_of(base, images, tmp_path / "whole", class_data=str(dogs), class_prompt=PROMPT, max_train_steps=6,
                       checkpointing_steps=3)
    whole = train_model(replace(config, checkpoints_total_limit=2), progress=False)
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(whole / "checkpoint-3"))
    assert largest_difference(weights(whole), weights(train_model(resumed, progress=False))) == 0
    for changes, what in (({"prior_loss_weight": 2.0}, "--prior_loss_weight"),
                          ({"class_data": None, "class_prompt": None}, "class pictures")):
        with pytest.raises(InputError, match=f"another run: its {what} is"):
            train_model(replace(resumed, output_dir=str(tmp_path / "refused"), **changes), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), [
    ("sdxl", True), ("sd3", False), ("flux", True), ("flux2-klein", True), ("z-image", True),
    ("qwen-image", False), ("sana", True), ("chroma", False)])
def test_every_family_draws_and_keeps_its_class(name, lora, images, tmp_path):
    pipe = tiny_family(name) if name in ("sdxl", "sd3", "flux") else more_family(name)
    pipe.save_pretrained(tmp_path / "base")
    out = train_model(config_of(tmp_path / "base", images, tmp_path / "out", num_class_images=1, class_prompt=PROMPT, lora=lora,
                                resolution=SIDES.get(name, 16), max_train_steps=1, train_batch_size=2), progress=False)
    folder, = tmp_path.glob("out-class-*")
    assert np.asarray(Image.open(folder / "00000.png")).std() > 0
    assert json.loads((out / "rotescope.json").read_text())["class_pictures"]["images"] == 1


@pytest.mark.slow
def test_two_processes_train_as_one(base, images, tmp_path):
    config = config_of(base, images, tmp_path / "one", num_class_images=3, class_prompt=PROMPT, gradient_accumulation_steps=2,
                       train_batch_size=2)
    one = train_model(config, progress=False)
    in_processes(replace(config, output_dir=str(tmp_path / "two"), train_batch_size=1), 2, tmp_path)
    assert largest_difference(weights(one), weights(tmp_path / "two")) < 1e-5
    drawn = [sorted(folder.iterdir()) for folder in sorted(tmp_path.glob("*-class-*"))]
    assert [file.read_bytes() for file in drawn[0]] == [file.read_bytes() for file in drawn[1]]
