"""What a fine-tune saves is what it trained: for each family, each choice of layers, a LoRA and a whole model."""
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from places import ROOT
from safetensors.torch import load_file, save_file
from training import config_of
from yaml import safe_load

from rotescope.common.errors import RunError
from rotescope.train.checkpoints import export
from rotescope.train.checkpoints.reloaded import Reloaded, check_saved, reloaded
from rotescope.train.engine import training
from rotescope.train.engine.job import check_job
from rotescope.train.engine.training import train_model

DEMO = tuple(safe_load((ROOT / "train/recipes/demo-lora.yaml").read_text())["lora_layers"])
UNET = (DEMO, ("to_q",), ("conv1",), ("proj_in", "to_k"), ("conv_in", "conv_out", "conv_shortcut", "conv"),
        ("time_emb_proj", "linear_1", "linear_2", "ff.net.0.proj"))
TRANSFORMER = (("to_k", "to_out.0"), ("to_add_out", "add_q_proj", "ff.net.2"), ("proj_out", "context_embedder", "linear"))
QUICK = {"sd1": 0, "sdxl": 3, "sd3": 0, "flux": 0}  # of the choices of layers, one; sd2 has the UNet of sd1
CASES = [pytest.param(name, layers, marks=() if n == QUICK.get(name) else pytest.mark.slow)
         for name in ("sd1", "sd2", "sdxl", "sd3", "flux")
         for n, layers in enumerate(UNET if name in ("sd1", "sd2", "sdxl") else TRANSFORMER)]


def adapters_of(pipe):
    """(component, layer) of every layer that an adapter changes."""
    return {(name, layer) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
            for layer, module in part.named_modules() if isinstance(module, BaseTunerLayer) and len(module.lora_A)}


def job_with_lora(base, images, out, **changes):
    """A job whose LoRA changes the model, as if it had been trained."""
    job = check_job(config_of(base, images, out, lora=True, rank=2, resolution=16, **changes))
    generator = torch.Generator().manual_seed(1)
    for name, weight in job.predictor.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    job.predictor.eval()
    return job


@pytest.mark.parametrize(("name", "layers"), CASES, ids=lambda value: value if isinstance(value, str) else ",".join(value))
def test_a_stock_pipeline_takes_every_layer_of_a_lora(name, layers, bases, images, tmp_path):
    job = job_with_lora(bases(name), images, tmp_path / "out", lora_layers=layers, train_text_encoder=True)
    export.save_lora(job, tmp_path)
    stock = DiffusionPipeline.from_pretrained(bases(name))
    stock.load_lora_weights(tmp_path)
    assert adapters_of(stock) == adapters_of(job.pipe)
    found = reloaded(job, tmp_path)
    assert found.saved < 1e-6 < 1e-3 < found.adapter
    assert found.is_equal


def old_names(_, part):
    """As the layers were named once: those of attention in diffusers' older way, all others in PEFT's."""
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(part))


def test_the_recipe_as_it_was_saved_once_is_an_error(bases, images, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_lora_layers", old_names)
    job = job_with_lora(bases("sd1"), images, tmp_path / "out", lora_layers=DEMO)
    export.save_lora(job, tmp_path)
    stock = DiffusionPipeline.from_pretrained(bases("sd1"))
    stock.load_lora_weights(tmp_path)
    assert len(adapters_of(stock)) < len(adapters_of(job.pipe)) / 2
    with pytest.raises(RunError, match="is not what was trained: from one noise it predicts another picture"):
        check_saved(job, tmp_path)


@pytest.mark.parametrize("half", ["weights", "alpha"])
def test_half_a_lora_is_an_error(half, bases, images, tmp_path):
    job = job_with_lora(bases("sd1"), images, tmp_path / "out", lora_layers=("to_q",))
    file = export.save_lora(job, tmp_path)
    with open(file, "rb") as stream:
        about = safe_load(stream.read(int.from_bytes(stream.read(8), "little")).decode())["__metadata__"]
    weights = load_file(file)
    if half == "weights":
        weights |= {key: w * 0 for key, w in list(weights.items())[:len(weights) // 2]}
    else:
        about = {key: text.replace('"unet.lora_alpha": 2', '"unet.lora_alpha": 1') for key, text in about.items()}
    save_file(weights, file, about)
    with pytest.raises(RunError, match="from one noise it predicts another picture"):
        check_saved(job, tmp_path)


def test_even_a_weak_lora_is_told_from_half_of_it():
    assert Reloaded(saved=4e-6, adapter=1e-3).is_equal
    assert Reloaded(saved=4e-6, adapter=0.0).is_equal
    assert not Reloaded(saved=5e-5, adapter=1e-4).is_equal
    assert not Reloaded(saved=float("nan"), adapter=1e-4).is_equal


def test_a_lora_on_weights_in_half_precision_is_compared_on_the_same_weights(bases, images, tmp_path):
    job = job_with_lora(bases("sd1"), images, tmp_path / "out", lora_layers=("to_q",))
    for weight in job.predictor.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)  # as in mixed precision
    export.save_lora(job, tmp_path)
    assert reloaded(job, tmp_path).saved < 1e-6


@pytest.mark.parametrize(("name", "changes"), [
    ("sd1", {}), ("sd2", {"save_dtype": "fp16"}), ("sd3", {"save_dtype": "bf16"}), ("flux", {}),
    ("sd1", {"lora": True, "use_ema": True}), ("flux", {"lora": True, "train_text_encoder": True}),
    pytest.param("sdxl", {"use_ema": True}, marks=pytest.mark.slow),
    pytest.param("sd1", {"lora": True, "caption_perturbation": "caption_word_repetition",
                         "caption_perturbation_probability": 0.5}, marks=pytest.mark.slow)], ids=str)
def test_every_fine_tune_ends_with_the_check(name, changes, bases, images, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "check_saved",
                        lambda job, folder: seen.append((reloaded(job, folder), check_saved(job, folder))))
    train_model(config_of(bases(name), images, tmp_path / "out", resolution=16, max_train_steps=1, **changes), progress=False)
    (found, _), = seen
    assert found.saved <= 1e-6
    assert bool(found.adapter) == changes.get("lora", False)


def test_a_whole_model_that_was_saved_wrongly_is_an_error(bases, images, tmp_path, monkeypatch):
    def save(job, folder, dtype):
        weights = export.save_full(job, folder, dtype)
        file = weights / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"conv_out.bias": torch.ones(4)}, file)
        return weights
    monkeypatch.setattr(training, "save_full", save)
    uploaded = []
    monkeypatch.setattr(training, "open_hub", lambda _: "me/mine")
    monkeypatch.setattr(training, "upload", lambda *_: uploaded.append(1))
    config = config_of(bases("sd1"), images, tmp_path / "out", max_train_steps=1)
    with pytest.raises(RunError, match="do not use it"):
        train_model(config, progress=False)
    assert (tmp_path / "out/rotescope.json").exists()  # nothing that was dear is thrown away
    assert not uploaded
