"""Layers of diffusers' denoisers under the names of the repositories where the models came out.

Stable Diffusion's UNet (input_blocks, middle_block, output_blocks), FLUX's transformer (double_blocks,
single_blocks) and SD3's (joint_blocks). One original layer may be several here: its rows are cut.
"""
import re
from collections.abc import Iterator

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
        "conv_out": "out.2"}
FLUX = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer"}
FLUX_DOUBLE = {"img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
               "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
               "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "txt_mlp.0": ("ff_context.net.0.proj",),
               "txt_mlp.2": ("ff_context.net.2",), "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)}
FLUX_SINGLE = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
               "modulation.lin": ("norm.linear",),
               "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "proj": ("proj_out",)}  # as XLabs' LoRAs cut them
SD3 = {"pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
       "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
       "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
       "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
       "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2"}
SD3_BLOCK = {"x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.proj": ("attn.to_out.0",),
             "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
             "context_block.attn.proj": ("attn.to_add_out",), "x_block.mlp.fc1": ("ff.net.0.proj",),
             "x_block.mlp.fc2": ("ff.net.2",), "context_block.mlp.fc1": ("ff_context.net.0.proj",),
             "context_block.mlp.fc2": ("ff_context.net.2",), "x_block.adaLN_modulation.1": ("norm1.linear",),
             "context_block.adaLN_modulation.1": ("norm1_context.linear",),
             "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.proj": ("attn2.to_out.0",)}
LAST = "final_layer.adaLN_modulation.1"  # its halves, shift and scale, stand the other way round in diffusers' norm_out


def unet_name(name: str, layers: int) -> str | None:
    """A layer of diffusers' UNet, of so many resnets in a block going down -> its original name, or None."""
    if name in UNET:
        return UNET[name]
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)$", name):
        place = 2 * int(found[2]) + (found[1] == "attentions")
        return f"middle_block.{place}.{_inner(found[1], found[3])}"
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)$", name):
        block, layer = int(found[2]), int(found[4])
        place = 1 + block * (layers + 1) + layer if found[1] == "down" else block * (layers + 1) + layer
        side = "input" if found[1] == "down" else "output"
        return f"{side}_blocks.{place}.{int(found[3] == 'attentions')}.{_inner(found[3], found[5])}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv$", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op"
    if found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv$", name):
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.*.conv"  # behind an attention where there is one
    return None


def _inner(kind: str, name: str) -> str:
    return RESNET.get(name, name) if kind == "resnets" else name


def unet_names(names: set[str], layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """-> pairs of an original name and the layers that it is, here one each."""
    for name in names:
        if original := unet_name(name, layers):
            block = name.partition(".upsamplers")[0]
            attentive = any(other.startswith(f"{block}.attentions.") for other in names)
            yield original.replace("*", str(1 + attentive)), (name,)


def flux_names(names: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """-> pairs of an original name of FLUX and the layers that it is, in the order of its rows."""
    yield from ((original, (name,)) for name, original in FLUX.items())
    yield from _blocks(names, (("transformer_blocks", "double_blocks", FLUX_DOUBLE),
                               ("single_transformer_blocks", "single_blocks", FLUX_SINGLE)))


def sd3_names(names: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """-> pairs of an original name of SD3 and the layers that it is, in the order of its rows."""
    yield from ((original, (name,)) for name, original in SD3.items())
    yield from _blocks(names, (("transformer_blocks", "joint_blocks", SD3_BLOCK),))


def _blocks(names, kinds):
    for here, there, table in kinds:
        numbers = {name.split(".")[1] for name in names if name.startswith(f"{here}.")}
        for number in sorted(numbers, key=int):
            yield from ((f"{there}.{number}.{original}", tuple(f"{here}.{number}.{name}" for name in layers))
                        for original, layers in table.items())
