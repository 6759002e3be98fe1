"""What `finetune --lora_format kohya` writes is the LoRA that diffusers' format holds, for stock diffusers and for us."""
import pytest
import torch
from safetensors import safe_open
from tiny_families import tiny_family
from training import config_of

from rotescope.common.errors import InputError
from rotescope.models.adapters.description import describe_adapter
from rotescope.models.pipelines import load_pipeline
from rotescope.train.checkpoints import export
from rotescope.train.checkpoints.reloaded import check_saved
from rotescope.train.engine.job import check_job

LAYERS = ("to_q", "to_out.0", "proj_in", "conv1")


def image_of(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat", num_inference_steps=2, height=16, width=16, output_type="latent",
                generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(("name", "text"), [("sd1", True), ("sdxl", False), pytest.param("sd1", False, marks=pytest.mark.slow),
                                            pytest.param("sdxl", True, marks=pytest.mark.slow)])
def test_both_formats_make_the_same_images(name, text, bases, images, tmp_path):
    files = {}
    for form in ("diffusers", "kohya"):
        job = check_job(config_of(bases(name), images, tmp_path / "out", lora=True, rank=2, lora_alpha=3, resolution=16,
                                  lora_layers=LAYERS, train_text_encoder=text, lora_format=form))
        for n, (key, weight) in enumerate(job.predictor.named_parameters()):
            if "lora_B" in key:
                weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(n)) * 0.5
        (tmp_path / form).mkdir()
        files[form] = export.save_lora(job, tmp_path / form)
        check_saved(job, tmp_path / form)
    ours = {form: image_of(load_pipeline(bases(name), file)) for form, file in files.items()}
    assert torch.allclose(ours["kohya"], ours["diffusers"], atol=1e-5 * float(ours["diffusers"].abs().max()))
    stock = tiny_family(name)
    assert not torch.allclose(image_of(stock), ours["kohya"], atol=1e-3)
    if not text:  # stock diffusers 0.42 fails on text encoders' keys in this format, whoever wrote them
        stock.load_lora_weights(tmp_path / "kohya", weight_name=files["kohya"].name)
        assert torch.allclose(image_of(stock), ours["kohya"], atol=1e-5 * float(ours["kohya"].abs().max()))
    found = describe_adapter(files["kohya"])
    assert (found.format, found.ranks.keys(), found.scales, found.header.network_dim) == ("kohya", {2}, (1.5,), 2)
    assert found.header.is_sdxl == (name == "sdxl")
    assert (found.header.pictures, found.header.shown) == (len(job.manifest), sum(e.copies for e in job.manifest))
    with safe_open(files["kohya"], "pt") as opened:
        assert all(key.endswith((".alpha", ".lora_down.weight", ".lora_up.weight")) for key in opened.keys())  # noqa: SIM118
        starts = {key[:key.index("_", 5)] for key in opened.keys()}  # noqa: SIM118
    encoders = {"sd1": {"lora_te"}, "sdxl": {"lora_te1", "lora_te2"}}[name] if text else set()
    assert starts == {"lora_unet"} | encoders


def test_other_families_have_no_such_names(bases, images, tmp_path):
    with pytest.raises(InputError, match="--lora_format kohya is written for Stable Diffusion 1, 2 and XL, not FluxPipeline"):
        check_job(config_of(bases("flux"), images, tmp_path / "out", lora=True, rank=2, resolution=16, lora_format="kohya"))
    with pytest.raises(InputError, match="--lora_format kohya is a LoRA's: add --lora"):
        check_job(config_of(bases("sd1"), images, tmp_path / "out", lora_format="kohya"))
    with pytest.raises(InputError, match="--lora_format webui: take one of diffusers, kohya"):
        check_job(config_of(bases("sd1"), images, tmp_path / "out", lora=True, lora_format="webui"))
