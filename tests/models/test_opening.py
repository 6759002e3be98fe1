"""Every family from a folder, through the commands: opened, sampled, scored; and what cannot be opened."""
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from tiny_families import tiny_family

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import guidance_arguments
from rotescope.mitigate.detectors.options import DetectConfig
from rotescope.mitigate.detectors.scores import write_scores
from rotescope.mitigate.sampling.generation import generate_to_folder
from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.mitigate.sampling.options import GenerateConfig
from rotescope.models.model_files import find_model
from rotescope.models.model_options import ModelOptions
from rotescope.models.pipelines import check_model, load_pipeline, open_model
from rotescope.options.audit import AuditConfig
from rotescope.procedures.audit import run_audit
from rotescope.train.objective.families import FAMILIES

TEXTS = ("a cat", "a bus on a red background")


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return str(tmp_path / "prompts.txt")


@pytest.mark.parametrize("name", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl", "sd3", "flux"])
def test_generate_makes_what_the_pipeline_makes_alone(name, bases, prompts, tmp_path):
    model = str(bases(name))
    out = generate_to_folder(GenerateConfig(prompts, str(tmp_path / "out"), model=model,
                                            mitigation=("none", "stp:transition=600"), seeds=(3,), guidance_scale=7.5,
                                            num_inference_steps=3, resolution=16, device="cpu"))
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    for record in pq.read_table(out / "records.parquet").to_pylist():
        if record["method"] == "none":
            alone = pipe(record["prompt"], **guidance_arguments(pipe, 1, 7.5), num_inference_steps=3, height=16, width=16,
                         generator=torch.Generator().manual_seed(noise_seed(record["prompt"], 3))).images[0]
            made = np.asarray(Image.open(out / record["image"]), int)
            assert np.abs(made - np.asarray(alone, int)).max() <= 1
        else:
            assert record["denoiser_rows"] < 6


def test_an_audit_of_another_family_at_another_size_and_precision(bases, images, tmp_path):
    report = run_audit(AuditConfig(model=str(bases("sdxl")), train_data=str(images), output_dir=str(tmp_path / "out"), seeds=(0,),
                               max_prompts=2, num_inference_steps=2, resolution=32, dtype="bf16", device="cpu"))
    assert report["none"]["ungrouped"].copy_rate.n_images == 2
    run = json.loads((tmp_path / "out/samples/run.json").read_text())
    assert (run["resolution"], run["config"]["dtype"]) == (32, "bf16")
    assert {Image.open(f).size for f in (tmp_path / "out/samples/none/images").iterdir()} == {(32, 32)}


def test_detectors_that_see_images_serve_every_family(bases, prompts, tmp_path):
    config = DetectConfig(prompts, str(tmp_path / "out"), model=str(bases("flux")), detector=("edges:n=2",), device="cpu")
    assert len(write_scores(config)) == 2
    with pytest.raises(InputError, match="serves sd, sdxl, not FluxPipeline"):
        write_scores(DetectConfig(prompts, str(tmp_path / "other"), model=str(bases("flux")), detector=("anisotropy",),
                                  device="cpu"))
    assert not (tmp_path / "other").exists()


def test_a_size_that_the_model_cannot_make_is_named(bases, prompts, tmp_path):
    for name, side, said in (("sd1", 50, "take multiples of 8"), ("sd3", 0, "take a side")):
        config = GenerateConfig(prompts, str(tmp_path / "out"), model=str(bases(name)), resolution=side, device="cpu")
        with pytest.raises(InputError, match=f"resolution={side}: {said}"):
            generate_to_folder(config)
        assert not list(tmp_path.glob("*out*"))


def test_weights_come_in_the_format_that_was_asked_for_and_frozen(bases):
    pipe = open_model(ModelOptions(model=str(bases("sd3")), dtype="bf16", device="cpu"))
    parameters = [p for part in pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()]
    assert {(p.dtype, p.requires_grad) for p in parameters} == {(torch.bfloat16, False)}


def test_a_model_that_is_not_whole_or_not_served_is_named(bases, tmp_path):
    with pytest.raises(InputError, match="dtype='fp8': take one of fp32, fp16, bf16"):
        check_model(ModelOptions(model=str(bases("sd1")), dtype="fp8"))
    tiny_family("sdxl").save_pretrained(tmp_path / "broken")
    (tmp_path / "broken/text_encoder_2/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no text_encoder_2 \(\*.safetensors\): copy the whole"):
        find_model(tmp_path / "broken")
    index = {"_class_name": DDPMPipeline.__name__}
    (tmp_path / "broken/model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is a DDPMPipeline, which takes no prompt"):
        find_model(tmp_path / "broken")
    for name, found in (("WanPipeline", "Wan"), ("FluxKontextPipeline", "Kontext"), ("ZImageImg2ImgPipeline", "Img2Img")):
        (tmp_path / "broken/model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(InputError, match=rf"is a {name}, which is for more or other than a prompt .*\({found}\)"):
            find_model(tmp_path / "broken")
    (tmp_path / "broken/model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(InputError, match="is a PixArtSigmaPipeline: what is served here is"):
        find_model(tmp_path / "broken", FAMILIES)
    (tmp_path / "broken/model_index.json").write_text("[1]")
    with pytest.raises(InputError, match="no model at"):
        find_model(tmp_path / "broken")
