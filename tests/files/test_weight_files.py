"""What is understood of a file of weights, or the one line that is said: format × good, damaged, contradictory."""
import json
import pickle
import struct
import zipfile

import pytest
import torch
from adapter_files import PARTS, numbers, with_magnitude
from safetensors.torch import save, save_file

from rotescope.common.errors import InputError
from rotescope.models.adapters.description import describe_adapter
from rotescope.models.model_files import find_lora
from rotescope.models.pipelines import load_pipeline
from rotescope.models.single_files.contents import describe_model

QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SD1 = {f"lora_unet_{QUERY}": (320, 768), "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}
XL = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048),
      "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
      "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)}


def adapter(layers, form):
    """{layer: shape of its weight} in a format -> tensors."""
    return {f"{layer}.{end}": w.contiguous() for n, (layer, shape) in enumerate(layers.items())
            for end, w in PARTS[form](shape, 10 * n)[0].items()}


def written(tensors, file, metadata=None):
    save_file(tensors, file, metadata=metadata)
    return file


# ----- what is understood of a good file

UNDERSTOOD = [  # layers, format, what the two lines say
    (SD1, "alpha", "LoRA for Stable Diffusion 1 (texts of width 768), named as kohya does",
     "rank 2, strength 0.5 (alpha/rank); 1 layer of the denoiser, 1 layer of the text encoder"),
    (SD1, "no alpha", "LoRA for Stable Diffusion 1", "rank 2, strength 1 (alpha/rank)"),
    (XL, "alpha", "LoRA for SDXL (texts of width 2048), named as kohya does", "1 layer of the second text encoder"),
    (SD1, "LoHa", "LoHa for Stable Diffusion 1 (texts of width 768), named as LyCORIS does", "rank 2, strength 0.5"),
    (SD1, "LoKr, both factored", "LoKr for Stable Diffusion 1", "rank 2, strength 0.5"),
    (SD1, "LoKr", "LoKr for Stable Diffusion 1", "1 layer of the denoiser, 1 layer of the text encoder"),
    (SD1, "full", "full for Stable Diffusion 1", "1 layer of the denoiser"),
    ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 1024)}, "PEFT",
     "LoRA for Stable Diffusion 2 (texts of width 1024), named as diffusers does", "rank 2"),
    ({"base_model.model.unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 768)}, "PEFT, named",
     "LoRA for Stable Diffusion 1 (texts of width 768), named as PEFT does", "rank 2"),
    ({"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072)}, "PEFT", "LoRA for FLUX (by the layer", "original names"),
    ({"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}, "PEFT", "LoRA for FLUX", "rank 2"),
    ({"transformer.transformer_blocks.3.attn.to_q": (3072, 3072)}, "PEFT", "LoRA for FLUX (4 blocks of width 3072)", "rank 2"),
    ({"transformer.transformer_blocks.40.attn.to_q": (3072, 3072)}, "PEFT", "LoRA for Qwen-Image", "rank 2"),
    ({"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)}, "PEFT", "LoRA for SD3", "rank 2"),
    ({"lora_unet_joint_blocks_0_x_block_attn_qkv": (4608, 1536)}, "alpha", "LoRA for SD3", "rank 2"),
    ({"diffusion_model.layers.0.attention.to_q": (3840, 3840)}, "PEFT", "LoRA for Z-Image", "rank 2"),
    ({"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": (27648, 3072)}, "PEFT", "LoRA for FLUX.2", "rank 2"),
    ({"transformer.transformer_blocks.0.attn1.to_q": (1152, 1152)}, "PEFT", "LoRA for PixArt", "rank 2"),
]


@pytest.mark.parametrize(("layers", "form", "first", "second"), UNDERSTOOD, ids=lambda v: v if isinstance(v, str) else "")
def test_an_adapter_is_told(layers, form, first, second, tmp_path):
    lines = describe_adapter(written(adapter(layers, form), tmp_path / "a.safetensors")).lines()
    assert lines[0].startswith(f"{tmp_path}/a.safetensors: ") and first in lines[0]  # noqa: PT018
    assert second in " ".join(lines)
    assert len(lines) == 2


def test_dora_and_bundled_embeddings_are_told(tmp_path):
    keys, _ = PARTS["alpha"]((320, 768), 0)
    keys, _ = with_magnitude(keys, torch.ones(320, 768), torch.zeros(320, 768), "rows")
    tensors = {f"lora_unet_{QUERY}.{end}": w for end, w in keys.items()}
    tensors["bundle_emb.sks.string_to_param.*"] = torch.ones(2, 768)
    lines = describe_adapter(written(tensors, tmp_path / "a.safetensors")).lines()
    assert lines[0].endswith("DoRA for Stable Diffusion 1 (texts of width 768), named as kohya does")
    assert lines[1].endswith("; brings the embeddings sks")


# ----- what is refused

def changed(number, end=None):
    """A good file, cut or with another length of its header."""
    def make(folder):
        whole = save(adapter(SD1, "alpha"))
        (folder / "a.safetensors").write_bytes(whole[:number] if end is None else whole + end)
        return folder / "a.safetensors"
    return make


def header_of(entries, bytes_behind=16):
    def make(folder):
        text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
        (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * bytes_behind)
        return folder / "a.safetensors"
    return make


def pickled(name):
    def make(folder):
        (folder / name).write_bytes(pickle.dumps({"state_dict": {}}))
        return folder / name
    return make


def zipped(folder):
    with zipfile.ZipFile(folder / "a.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return folder / "a.safetensors"


def holding(tensors):
    return lambda folder: written(tensors if isinstance(tensors, dict) else tensors(), folder / "a.safetensors")


TINY = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (16, 16)}
CHECKPOINT = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
              "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
              "first_stage_model.decoder.conv_in.weight": torch.zeros(1), "cond_stage_model.transformer.x": torch.zeros(1)}
REFUSED = [  # what the file is, what is said of it as a LoRA
    ("a pickle, .pt", pickled("a.pt"), "is a pickle by its name, which may run any program .* weights_only=True"),
    *((f"a pickle, .{end}", pickled(f"a.{end}"), "is a pickle by its name") for end in ("ckpt", "bin", "pth")),
    ("a pickle under another name", pickled("a.safetensors"), "is a pickle under another name"),
    ("a zip of a pickle", zipped, "is a pickle under another name"),
    ("a GGUF", lambda f: holding_bytes(f, b"GGUF" + b"\0" * 99), "is a GGUF"),
    *((what, lambda f, start=start: holding_bytes(f, start), "is no safetensors file") for what, start in (
        ("nothing", b""), ("a picture", b"\x89PNG" + b"\0" * 99))),
    ("cut in its header", changed(100), "is cut short within its header: copy it again"),
    ("cut in its tensors", changed(-500), "is cut short: its header says .* bytes of tensors, and .* are there"),
    ("with bytes behind", changed(0, b"more"), "4 bytes follow its last tensor"),
    ("a header of no JSON", header_of(b"{nonsense}"), "its header cannot be read"),
    ("a header as long as the disk", lambda f: holding_bytes(f, struct.pack("<Q", 2 ** 60) + b"{}" * 9), "its header would have"),
    ("a tensor of a size that it has not", header_of({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}),
     "contradicts itself: its header gives a 16 bytes from 0 on, for 36"),
    ("two tensors in one place", header_of({k: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for k in "ab"}),
     "contradicts itself"),
    ("a tensor below 0", header_of({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}), "contradicts itself"),
    ("a checkpoint", holding(CHECKPOINT), "is a single-file checkpoint of Stable Diffusion 1 .*: name it with --model"),
    ("an embedding", holding({"emb_params": torch.zeros(1, 768)}), "is a textual inversion: name it with --embedding"),
    ("OFT", holding({"lora_unet_x.oft_blocks": torch.zeros(2, 2)}), "holds OFT, which is not read"),
    ("T-LoRA", holding({"lora_unet_x.lambda_layer": torch.zeros(1, 2), "lora_unet_x.q_layer.weight": torch.zeros(2, 2)}),
     "holds T-LoRA, which does not say what its layers were started from"),
    ("anything", holding({"x.y": torch.zeros(2)}), "holds no adapter: none of its 1 keys"),
    ("a LoRA of SDXL", lambda f: written(adapter(XL, "alpha"), f / "a.safetensors"),
     "4 of the 6 weights of .*, and none of the denoiser's attaches: it would fit SDXL"),
    ("a LoRA of FLUX", holding(lambda: adapter({"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}, "PEFT")),
     r"no weight of .* belongs to .*: it is a LoRA of another model \(it would fit FLUX"),
    ("of another width", holding(lambda: adapter({next(iter(TINY)): (32, 16)}, "alpha")),
     "is a LoRA of another model .* has the size 32 × 16, and its layer 16 × 16"),
    ("LoKr of another width", holding(lambda: adapter({next(iter(TINY)): (32, 16)}, "LoKr")), "is a LoRA of another model"),
    ("half of a layer", holding(lambda: {k: w for k, w in adapter(TINY, "alpha").items() if "up" not in k}),
     "so it is not whole: copy it again"),
    *((f"{form} of two ranks", holding(lambda form=form: {
        k: w[:1] if k.endswith(("_down.weight", "w1_b", "w2_b")) else w for k, w in adapter(TINY, form).items()}),
       "whose sizes do not fit each other .*: copy it again") for form in ("alpha", "LoHa", "LoKr, both factored")),
    ("half of a LoKr", holding(lambda: {k: w for k, w in adapter(TINY, "LoKr").items() if "w1" not in k}), "it is not whole"),
    ("one layer in two formats", holding(lambda: adapter(TINY, "alpha") | adapter(
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16)}, "PEFT")), "two formats for one layer"),
    ("one layer by two names", holding(lambda: adapter(TINY, "alpha") | adapter(
        {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (16, 16)}, "alpha")), "two formats for one layer"),
    ("a layer that is not there", holding(lambda: adapter(TINY | {"lora_unet_down_blocks_9_x": (16, 16)}, "alpha")),
     "2 of the 4 weights of .* attach to nothing in .*: lora_unet_down_blocks_9_x.lora_down.weight"),
    ("a folder with nothing", lambda f: f, "no LoRA at .*: name a .safetensors file, or a folder with pytorch_lora_weights"),
    ("not there", lambda f: f / "b.safetensors", "no LoRA at .*b.safetensors"),
]


def holding_bytes(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    return folder / "a.safetensors"


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_attached_is_one_line(make, said, bases, tmp_path):
    file = make(tmp_path)
    with pytest.raises(InputError, match=said) as refused:
        load_pipeline(bases("sd1"), file)
    assert "\n" not in str(refused.value)
    assert str(file).rpartition(":")[0] in str(refused.value) or str(tmp_path) in str(refused.value)


MODELS = [  # what the file is, what is said of it as a model, with and without a configuration
    ("a LoRA", holding(lambda: adapter(SD1, "alpha")), "is an adapter for Stable Diffusion 1 .*, no model: name it with --lora"),
    ("an embedding", holding({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}), "name it with --embedding"),
    ("a VAE", holding({"encoder.down.0.block.0.conv1.weight": torch.zeros(1)}), "is a VAE alone, no model"),
    ("a denoiser", holding({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}),
     "is the denoiser of FLUX .* alone, without text encoder and VAE: name a whole folder"),
    ("a model for inpainting", holding(CHECKPOINT | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)}),
     "for inpainting, which wants a picture and a mask"),
    ("a checkpoint of SD3", holding({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(3, 1),
                                     "first_stage_model.x": torch.zeros(1)}), "whose configuration does not ship: name a folder"),
    ("a checkpoint that lacks nearly all", holding(CHECKPOINT), "cannot be loaded|is missing|are needed"),
    ("a pickle", pickled("a.ckpt"), "is a pickle by its name"), ("not there", lambda f: f / "b.safetensors", "cannot be read"),
    ("a mistyped path", lambda f: str(f / "modle"), "no model at .*modle: name a folder"),
]


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS])
def test_what_cannot_be_opened_is_one_line(make, said, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *a, **k: pytest.fail("a download"))
    with pytest.raises(InputError, match=said) as refused:
        load_pipeline(make(tmp_path))
    assert "\n" not in str(refused.value)


DESCRIBED = [
    ({}, "a single-file checkpoint of Stable Diffusion 1 (texts of width 768)", None),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "a single-file checkpoint of Stable Diffusion 1", "zero terminal SNR"),
    ({"conditioner.embedders.1.model.x": torch.zeros(1), "model.diffusion_model.label_emb.0.0.weight": torch.zeros(1, 2816),
      "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 2048)},
     "a single-file checkpoint of SDXL (texts of width 2048)", None),
]


@pytest.mark.parametrize(("more", "what", "third"), DESCRIBED, ids=["SD 1", "v-prediction", "SDXL"])
def test_a_checkpoint_is_told(more, what, third, tmp_path):
    lines = describe_model(written(CHECKPOINT | more, tmp_path / "m.safetensors")).lines()
    assert what in lines[0]
    assert "denoiser" in lines[1]
    assert third is None or third in lines[2]


@pytest.mark.parametrize(("name", "words"), [
    ("sd1", ["a model folder of Stable Diffusion (texts of width 16)", "denoiser 267,172", "predicts epsilon"]),
    ("sd2", ["a model folder of Stable Diffusion", "VAE 1", "predicts v_prediction"]),
    ("sdxl", ["a model folder of SDXL", "second text encoder", "StableDiffusionXLPipeline"]),
    ("sd3", ["a model folder of SD3", "third text encoder", "StableDiffusion3Pipeline"]),
    ("flux", ["a model folder of FLUX", "in F32", "FluxPipeline"])])
def test_a_folder_is_told(name, words, bases):
    lines = describe_model(bases(name)).lines()
    assert len(lines) == 3
    assert not [word for word in words if word not in " ".join(lines)], lines


@pytest.mark.parametrize(("text", "strength"), [("a.safetensors:0.8", 0.8), ("a.safetensors", 1.0), ("a.safetensors:-1", -1.0),
                                                ("a.safetensors:0", 0.0)])
def test_a_strength_stands_behind_a_colon(text, strength, bases, tmp_path):
    written(adapter(TINY, "alpha"), tmp_path / "a.safetensors")
    assert find_lora(f"{tmp_path}/{text}") == tmp_path / "a.safetensors"
    plain, pipe = (load_pipeline(bases("sd1"), *more).unet for more in ((), (f"{tmp_path}/{text}",)))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    x = numbers(3, 16, seed=5)
    expected = plain.get_submodule(name)(x) + strength * x @ PARTS["alpha"]((16, 16), 0)[1].T
    assert torch.allclose(pipe.get_submodule(name)(x), expected, atol=1e-5)


def test_a_strength_that_is_none_is_named():
    with pytest.raises(InputError, match="nan is no strength"):
        find_lora("a.safetensors:nan")
