"""Every format of adapter on three families: ΔW of each layer, and the images, against sums written out by hand."""
import pytest
import torch
from adapter_files import PARTS, numbers, with_magnitude
from safetensors.torch import save_file
from tiny_families import tiny_family

from rotescope.models.adapters.attachment import switch_adapters, without_adapters
from rotescope.models.lora import attach_lora

STRENGTH = 0.6
UNET = {  # diffusers' name -> the original one, as they stand in the tiny UNets
    "sd1": {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q": "input_blocks.1.1.transformer_blocks.0.attn2.to_q",
            "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0":
                "output_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
            "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
            "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
            "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
            "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1"},
    "sdxl": {"down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_k": "input_blocks.3.1.transformer_blocks.1.attn1.to_k",
             "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v": "output_blocks.1.1.transformer_blocks.0.attn2.to_v",
             "up_blocks.1.resnets.0.conv_shortcut": "output_blocks.2.0.skip_connection",
             "down_blocks.1.attentions.0.proj_out": "input_blocks.3.1.proj_out",
             "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
             "add_embedding.linear_1": "label_emb.0.0", "time_embedding.linear_2": "time_embed.2"},
}
UNET |= {"flux": {name: name for name in (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff_context.net.2", "single_transformer_blocks.0.proj_mlp")}}
TEXT = {"text_encoder": ("lora_te1", "encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"),
        "text_encoder_2": ("lora_te2", "text_model.encoder.layers.0.self_attn.v_proj", "text_model.encoder.layers.1.mlp.fc2")}
SPELLINGS = ("kohya", "kohya, original names", "diffusers", "PEFT wrapped", "ai-toolkit")
CASES = [("kohya", "alpha"), ("kohya", "no alpha"), ("kohya", "core"), ("kohya, original names", "alpha"), ("diffusers", "PEFT"),
         ("diffusers", "PEFT, named"), ("diffusers", "older"), ("PEFT wrapped", "PEFT"), ("ai-toolkit", "PEFT"),
         *(("kohya", form) for form in PARTS if form.startswith("Lo")), ("kohya, original names", "LoKr"), ("kohya", "full"),
         ("diffusers", "LoKr, both factored"), ("ai-toolkit", "LoKr")]

EVERYWHERE = (("kohya", "alpha"), ("kohya, original names", "alpha"), ("diffusers", "PEFT"), ("kohya", "LoKr, both factored"))


@pytest.fixture(scope="module")
def pipes():
    """A family's name -> its tiny pipeline; each test leaves it as it found it, by making it again."""
    def pipe(family):
        found = tiny_family(family)
        found.set_progress_bar_config(disable=True)
        return found
    return pipe


def image_of(pipe):
    more = {"max_sequence_length": 24} if "Flux" in type(pipe).__name__ else {}
    return pipe("a cat on a red background", num_inference_steps=1, height=16, width=16, output_type="latent",
                generator=torch.Generator().manual_seed(0), **more).images


def spelled(spelling, component, name, original):
    """The layer's name in a file."""
    if component.startswith("text_encoder"):
        full = name if name.startswith("text_model.") else f"text_model.{name}"
        number = TEXT[component][0]
        return f"{number}_{full.replace('.', '_')}" if spelling.startswith("kohya") else \
            f"base_model.model.{component}.{full}" if spelling == "PEFT wrapped" else f"{component}.{full}"
    if spelling == "kohya, original names":
        return f"lora_unet_{original.replace('.', '_')}"
    if spelling == "kohya":
        return f"lora_unet_{name.replace('.', '_')}"
    part = "unet" if "blocks.0.attn." not in name and "single_" not in name and "ff_context" not in name else "transformer"
    return {"diffusers": f"{part}.{name}", "PEFT wrapped": f"base_model.model.{part}.{name}",
            "ai-toolkit": f"diffusion_model.{original}"}[spelling]


def layers_of(pipe, family):
    """-> (component, its name there, its original name, the module), for the layers that get an update."""
    denoiser = "transformer" if family == "flux" else "unet"
    for name, original in UNET[family].items():
        yield denoiser, name, original, getattr(pipe, denoiser).get_submodule(name)
    for component in ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",):
        part = getattr(pipe, component)
        for name in TEXT[component][1:]:
            if name in dict(part.named_modules()):
                yield component, name, name, part.get_submodule(name)


def written(pipe, family, spelling, form, file):
    """An adapter's file -> {(component, layer): ΔW}."""
    keys, deltas = {}, {}
    for n, (component, name, original, module) in enumerate(layers_of(pipe, family)):
        found, delta = PARTS[form](tuple(module.weight.shape), 10 * n)
        keys |= {f"{spelled(spelling, component, name, original)}.{end}": w for end, w in found.items()}
        deltas[component, name] = delta
    save_file({key: w.contiguous() for key, w in keys.items()}, file)
    return deltas


def by_hand(pipe, weights):
    """Write weights into the layers themselves."""
    for (component, name), weight in weights.items():
        getattr(pipe, component).get_submodule(name).weight.data = weight
    return pipe


def own_weight(pipe, component, name):
    """What a layer multiplies by, with whatever stands beside it."""
    layer = getattr(pipe, component).get_submodule(name)
    beside = [layer.get_delta_weight(a) for a in layer.active_adapters] if hasattr(layer, "base_layer") else []
    return layer.weight + sum(beside)


def close(one, other):
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max().clamp(min=1))


@pytest.mark.parametrize(("family", "spelling", "form"), [
    pytest.param(family, *case, marks=[pytest.mark.slow] * (family != "sd1" and case not in EVERYWHERE))
    for family in ("sd1", "sdxl", "flux") for case in CASES], ids=lambda v: v)
def test_weights_and_images_are_those_of_the_sums(spelling, form, family, pipes, tmp_path):
    pipe, twin = pipes(family), pipes(family)
    deltas = written(pipe, family, spelling, form, tmp_path / "a.safetensors")
    weights = {(part, name): getattr(pipe, part).get_submodule(name).weight + STRENGTH * delta
               for (part, name), delta in deltas.items()}
    plain = image_of(pipe)
    attach_lora(pipe, tmp_path / "a.safetensors", "it", strength=STRENGTH)
    for (component, name), weight in weights.items():
        assert close(own_weight(pipe, component, name), weight), name
    assert close(image_of(pipe), image_of(by_hand(twin, weights)))
    assert not close(image_of(pipe), plain)
    with without_adapters(pipe):
        assert torch.equal(image_of(pipe), plain)
    assert all(close(own_weight(pipe, *place), weight) for place, weight in weights.items())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("by", "form"), [
    ("rows", "alpha"), ("columns", "alpha"), ("PEFT", "PEFT"), ("rows", "LoHa"), ("rows", "LoKr")])
def test_dora_sets_the_norms(by, form, family, pipes, tmp_path):
    pipe, twin, keys, weights = pipes(family), pipes(family), {}, {}
    for n, (component, name, original, module) in enumerate(layers_of(pipe, family)):
        found, delta = PARTS[form](tuple(module.weight.shape), 10 * n)
        found, weight = with_magnitude(found, module.weight, delta, by)
        keys |= {f"{spelled('kohya', component, name, original)}.{end}": w.contiguous() for end, w in found.items()}
        weights[component, name] = module.weight + STRENGTH * (weight - module.weight)
    save_file(keys, tmp_path / "a.safetensors")
    attach_lora(pipe, tmp_path / "a.safetensors", "it", strength=STRENGTH)
    assert all(close(own_weight(pipe, *place), weight) for place, weight in weights.items())
    assert close(image_of(pipe), image_of(by_hand(twin, weights)))


def test_biases_norms_and_scalars_are_added(pipes, tmp_path):
    pipe, twin = pipes("sd1"), pipes("sd1")
    norm, conv, query = "mid_block.resnets.0.norm1", "conv_out", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    found, delta = PARTS["alpha"](tuple(twin.unet.get_submodule(query).weight.shape), 0)
    w, b, diff = numbers(32, seed=1), numbers(32, seed=2), numbers(4, seed=3)
    save_file({"lora_unet_mid_block_resnets_0_norm1.w_norm": w, "lora_unet_mid_block_resnets_0_norm1.b_norm": b,
               "lora_unet_conv_out.diff_b": diff, f"lora_unet_{query.replace('.', '_')}.scalar": torch.tensor(0.5),
               f"lora_unet_{query.replace('.', '_')}.diff_b": numbers(32, seed=4)} |
              {f"lora_unet_{query.replace('.', '_')}.{end}": x for end, x in found.items()}, tmp_path / "a.safetensors")
    attach_lora(pipe, tmp_path / "a.safetensors", "it")
    for module, name, change in ((norm, "weight", w), (norm, "bias", b), (conv, "bias", diff), (query, "weight", delta / 2)):
        layer = twin.unet.get_submodule(module)
        getattr(layer, name).data += change
    twin.unet.get_submodule(query).bias = torch.nn.Parameter(numbers(32, seed=4))
    assert close(image_of(pipe), image_of(twin))
    switch_adapters(pipe, False)
    assert close(image_of(pipe), image_of(pipes("sd1")))


FUSED = [  # an original layer and those that its rows are; SD3's and FLUX's last modulation stand the other way round
    ("flux", "lora_unet_double_blocks_0_img_attn_qkv", [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"], False),
    ("flux", "diffusion_model.double_blocks.0.txt_attn.qkv", [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"], False),
    ("flux", "lora_unet_single_blocks_0_linear1",
     [*(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.0.proj_mlp"], False),
    ("flux", "double_blocks.0.processor.qkv_lora1", [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"], False),
    ("flux", "double_blocks.0.processor.proj_lora2", ["transformer_blocks.0.attn.to_add_out"], False),
    ("flux", "single_blocks.0.processor.qkv_lora", [f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"], False),
    ("flux", "lora_unet_final_layer_adaLN_modulation_1", ["norm_out.linear"], True),
    ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"], False),
    ("sd3", "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1", ["transformer_blocks.0.norm1_context.linear"], False),
    ("sd3", "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1", ["transformer_blocks.1.norm1_context.linear"], True),
]


@pytest.mark.parametrize(("family", "name", "layers", "swapped"), FUSED, ids=[f"{case[0]}-{case[1]}" for case in FUSED])
@pytest.mark.parametrize("form", ["alpha", "LoKr"])
def test_a_layer_that_is_one_in_the_original_is_cut(form, family, name, layers, swapped, pipes, tmp_path):
    pipe = pipes(family)
    before = [own_weight(pipe, "transformer", layer).clone() for layer in layers]
    found, delta = PARTS[form if "processor" not in name else "no alpha"](
        (sum(w.shape[0] for w in before), before[0].shape[1]), 0)
    ends = {end: end.removeprefix("lora_") if "processor" in name else end for end in found}  # XLabs: qkv_lora1.down.weight
    save_file({f"{name}.{ends[end]}": w for end, w in found.items()}, tmp_path / "a.safetensors")
    attach_lora(pipe, tmp_path / "a.safetensors", "it")
    parts = delta.split([w.shape[0] for w in before])
    if swapped:
        parts = [torch.cat(delta.chunk(2)[::-1])]
    for layer, weight, part in zip(layers, before, parts, strict=True):
        assert close(own_weight(pipe, "transformer", layer), weight + part)


def test_several_adapters_add_up_with_their_strengths(pipes, tmp_path):
    pipe, twin = pipes("sd1"), pipes("sd1")
    for n, (form, strength) in enumerate((("alpha", 0.5), ("LoKr", 2.0), ("no alpha", -1.0))):
        file = tmp_path / f"{n}.safetensors"
        for (component, name), delta in written(twin, "sd1", "kohya", form, file).items():
            getattr(twin, component).get_submodule(name).weight.data += strength * delta
        attach_lora(pipe, file, "it", strength=strength)
    assert close(image_of(pipe), image_of(twin))
    switch_adapters(pipe, False)
    assert torch.equal(image_of(pipe), image_of(pipes("sd1")))
