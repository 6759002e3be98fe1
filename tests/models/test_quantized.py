"""Models in 4 bits and from GGUF files: sampled, mitigated, trained under LoRAs; and what cannot be.

diffusers refuses 4 bits without a GPU. Here that refusal is lifted; weights are packed and unpacked by bitsandbytes on the CPU.
"""
import json

import pytest
import torch
from adapter_files import loha, numbers
from safetensors.torch import save_file
from tiny_families import tiny_family
from tiny_runs import PROMPTS
from tiny_runs import images as latents_of
from training import config_of

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.mitigate.detectors.prompt_scores import unserved
from rotescope.mitigate.detectors.whitebox import HessianVector
from rotescope.models.adapters.attachment import without_adapters
from rotescope.models.memory import check_memory, is_quantized, quantized_parts, stored_quantization
from rotescope.models.memory_options import MemoryOptions
from rotescope.models.model_options import ModelOptions
from rotescope.models.pipelines import check_model, load_pipeline
from rotescope.options.audit import AuditConfig
from rotescope.procedures.audit import run_audit
from rotescope.train.engine.job import check_job
from rotescope.train.engine.training import train_model

LAYER = "transformer_blocks.0.attn.to_q"   # 32 × 32 in the small FLUX


@pytest.fixture
def on_cpu(monkeypatch):
    """4 bits on a CPU, by the kernels that need no particular one."""
    pytest.importorskip("bitsandbytes")
    quantizer = "diffusers.quantizers.bitsandbytes.bnb_quantizer.BnB4BitDiffusersQuantizer"
    monkeypatch.setattr(f"{quantizer}.validate_environment", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(f"{quantizer}.update_device_map", lambda self, given: given or {"": "cpu"})
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    for user in ("models.memory", "train.engine.job"):
        monkeypatch.setattr(f"rotescope.{user}.check_quantizable", lambda *_: None)


def drawn(pipe, kind, *policies):
    with mitigated(pipe, *policies) as run:
        return latents_of(pipe, PROMPTS[:2], kind=kind, num_inference_steps=2), run


def lora_file(file, layer=f"transformer.{LAYER}"):
    """A plain LoRA -> the file, and its B A."""
    down, up = numbers(2, 32, seed=0), numbers(32, 2, seed=1)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, file)
    return str(file), up @ down


# ----- 4 bits

@pytest.mark.parametrize(("name", "kind"), [
    pytest.param(name, kind, marks=pytest.mark.slow)
    for name, kind in (("flux", "flux"), ("sd1", "sd"), ("sdxl", "sdxl"), ("sd3", "sd3"))])
def test_mitigations_on_a_model_in_4_bits(name, kind, bases, on_cpu):
    pipe = load_pipeline(bases(name), quantize="nf4")
    packed = {part for part in pipe.components if isinstance(getattr(pipe, part), torch.nn.Module)
              and is_quantized(getattr(pipe, part))}
    assert packed == {"unet" if kind in ("sd", "sdxl") else "transformer", *{"flux": ["text_encoder_2"],
                                                                              "sd3": ["text_encoder_3"]}.get(kind, ())}
    stock = latents_of(pipe, PROMPTS[:2], kind=kind, num_inference_steps=2)
    assert torch.equal(drawn(pipe, kind, "none")[0], stock)
    found, run = drawn(pipe, kind, "og-stp:transition=600")
    assert not torch.equal(found, stock)
    assert run.active == [True, True]
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(drawn(pipe, kind, "og-stp:transition=600")[0], found)


def test_a_lora_stands_beside_packed_weights(bases, on_cpu, tmp_path):
    file, product = lora_file(tmp_path / "a.safetensors")
    pipe = load_pipeline(bases("flux"), f"{file}:0.5", quantize="nf4")
    layer, x = pipe.transformer.get_submodule(LAYER), numbers(3, 32, seed=2)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), 0.5 * x @ product.T, atol=1e-4, rtol=1e-4)
    adapted = latents_of(pipe, PROMPTS[:1], kind="flux", num_inference_steps=2)
    bare = latents_of(load_pipeline(bases("flux"), quantize="nf4"), PROMPTS[:1], kind="flux", num_inference_steps=2)
    with without_adapters(pipe):
        assert torch.equal(latents_of(pipe, PROMPTS[:1], kind="flux", num_inference_steps=2), bare)
    assert not torch.equal(adapted, bare)


def test_what_would_be_added_to_packed_weights_is_named(bases, on_cpu, tmp_path):
    save_file({f"lora_transformer_{LAYER.replace('.', '_')}.{key}": w.contiguous() for key, w in loha((32, 32), 0)[0].items()},
              tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"\(LoHa\) is added to the weights themselves, .* leave --quantize out"):
        load_pipeline(bases("flux"), tmp_path / "a.safetensors", quantize="nf4")


@pytest.mark.slow
def test_a_forward_derivative_of_packed_layers_is_refused(bases, on_cpu):
    pipe = load_pipeline(bases("sd1"), quantize="nf4")
    assert "leave --quantize out" in unserved(HessianVector(), pipe)
    assert unserved(HessianVector(), load_pipeline(bases("sd1"))) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_a_lora_is_trained_on_4_bits_and_audited_on_them(name, bases, images, on_cpu, tmp_path):
    out = train_model(config_of(bases(name), images, tmp_path / "lora", lora=True, rank=2, resolution=16, quantize="nf4",
                                max_train_steps=3, learning_rate=0.1), progress=False)   # and compared with what it saved
    assert json.loads((out / "rotescope.json").read_text())["config"]["quantize"] == "nf4"
    report = run_audit(AuditConfig(
        model=str(bases(name)), lora=str(out), base="auto", quantize="nf4", train_data=str(images), seeds=(0,), device="cpu",
        output_dir=str(tmp_path / "audit"), max_prompts=2, num_inference_steps=2, resolution="16", verify=False))
    assert report["none"]["ungrouped"].copy_rate.n_images == 2


# ----- GGUF

def gguf_file(part, file):
    """A denoiser in 8 bits a number where its rows are long enough -> the file; the denoiser gets the numbers that are left."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer, kind = gguf.GGUFWriter(file, "flux"), gguf.GGMLQuantizationType.Q8_0
    for key, weight in part.state_dict().items():
        rounded = weight.numpy()
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(rounded, kind)
            writer.add_tensor(key, packed, raw_dtype=kind)
            rounded = gguf.quants.dequantize(packed, kind).astype("float16")   # in which diffusers unpacks them
        else:
            writer.add_tensor(key, rounded)
        weight.copy_(torch.from_numpy(rounded.astype("float32")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_makes_the_images_of_its_rounded_weights(tmp_path):
    pipe = tiny_family("flux")
    pipe.save_pretrained(tmp_path / "config")
    file = gguf_file(pipe.transformer, tmp_path / "flux.gguf")
    lora, _ = lora_file(tmp_path / "a.safetensors")
    check_model(ModelOptions(model=str(file), model_config=str(tmp_path / "config"), device="cpu"))
    found = load_pipeline(file, model_config=str(tmp_path / "config"))
    assert is_quantized(found.transformer)
    for policy in ("none", "og-stp"):
        torch.testing.assert_close(drawn(found, "flux", policy)[0], drawn(pipe, "flux", policy)[0], atol=1e-5, rtol=0)
    plain = latents_of(found, PROMPTS[:1], kind="flux", num_inference_steps=2)
    adapted = load_pipeline(file, lora, model_config=str(tmp_path / "config"))
    assert not torch.equal(latents_of(adapted, PROMPTS[:1], kind="flux", num_inference_steps=2), plain)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"flux.gguf is no whole GGUF file .*: copy it again"):
        check_model(ModelOptions(model=str(file), model_config=str(tmp_path / "config"), device="cpu"))


def test_a_gguf_wants_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr("rotescope.models.single_files.gguf_files.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is a GGUF, and the package .* pip install 'rotescope\[gguf\]'"):
        ModelOptions(model=str(tmp_path / "a.gguf")).check()


# ----- what the options may be

@pytest.mark.parametrize(("asked", "said"), [
    ({"offload": "disk"}, "offload='disk': take one of none, model, group"),
    ({"quantize": "int8"}, "quantize='int8': take one of none, nf4"),
    ({"offload": "model", "device": "cpu"}, "--offload model moves parts from main memory to a GPU, and --device cpu has none"),
    ({"quantize": "nf4", "device": "cpu"}, "--quantize nf4 needs a GPU, and --device cpu has none"),
    ({"quantize": "nf4", "offload": "group"}, "take --offload model with --quantize nf4")])
def test_words_that_do_not_go_together(asked, said):
    with pytest.raises(InputError, match=said):
        ModelOptions(**asked).check()


def test_bitsandbytes_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("rotescope.models.memory_options.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes, which is not installed: pip install 'rotescope\[gpu\]'"):
        MemoryOptions(quantize="nf4").check()


def test_a_machine_and_a_model_that_cannot_are_named(bases, tmp_path):
    for asked, device, model, said in (
            ({"offload": "model"}, "cpu", None, "to a GPU, and there is none"),
            ({"quantize": "nf4"}, "cpu", None, "needs a GPU, and there is none"),
            ({"quantize": "nf4"}, "cuda", "a.safetensors", "a.safetensors is a single file")):
        with pytest.raises(InputError, match=said):
            check_memory(MemoryOptions(**asked), device, model)
    part = tmp_path / "transformer"
    part.mkdir()
    (part / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert stored_quantization(tmp_path) == "bitsandbytes"
    with pytest.raises(InputError, match=r"is quantised already \(bitsandbytes\): leave out --quantize"):
        check_memory(MemoryOptions(quantize="nf4"), "cuda", tmp_path)
    assert quantized_parts(bases("sd3"), "nf4") == ("text_encoder_3", "transformer")


def test_packed_weights_are_not_trained_whole(bases, images, tmp_path, on_cpu):
    with pytest.raises(InputError, match="--quantize nf4 packs the weights, which cannot be trained then: add --lora"):
        check_job(config_of(bases("sd1"), images, tmp_path / "out", quantize="nf4"))
