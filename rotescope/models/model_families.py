"""Which family of models weights belong to, by the names and widths of their layers. Pure."""
import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL", 1280: "SDXL refiner"}
MARKS = (  # (what a name must hold, with _ for each dot, the family): the first that is found counts
    (r"double_stream_modulation|to_qkv_mlp_proj|single_stream_modulation", "FLUX.2"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"joint_transformer_blocks|double_layers_\d", "AuraFlow"),
    (r"double_stream_blocks", "HiDream"),
    (r"single_transformer_blocks|double_blocks|single_blocks_\d", "FLUX"),
    (r"(noise|context)_refiner_\d.*attention|layers_\d+_attention_(to_|qkv|out)|layers_\d+_feed_forward_w", "Z-Image"),
    (r"(noise|context)_refiner|caption_embedder|layers_\d+_attn_to_", "Lumina 2"),
    (r"transformer_blocks_\d+_(img|txt)_m(lp|od)", "Qwen-Image"),
    (r"joint_blocks_\d|context_block_", "SD3"),
    (r"conv_inverted|conv_depth", "Sana"),
    (r"adaln_single|caption_projection", "PixArt"),
    (r"blocks_\d+_(cross|self)_attn_[qkvo]$", "Wan"),
)
FLAT = (  # transformers whose marks are missing: (hidden width, most blocks) -> family
    (3072, 19, "FLUX"), (3072, 60, "Qwen-Image"), (1536, 24, "SD3"), (2432, 38, "SD3"), (1152, 28, "PixArt"), (2240, 20, "Sana"),
)
UNET_MARK = re.compile(r"(^|_)(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")
UNET, TRANSFORMER, UNKNOWN = "Stable Diffusion", "a transformer", "a model that is not known here"
SERVED_BY = {"Stable Diffusion 1": "SD 1.4 or 1.5", "Stable Diffusion 2": "SD 2.0 or 2.1", "SDXL": "SDXL",
             "SD3": "Stable Diffusion 3", "FLUX": "FLUX.1", "PixArt": "PixArt"}


@dataclass(frozen=True)
class FamilyGuess:
    """A family by name, and what tells it."""
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


def guess_family(shapes: Shapes) -> FamilyGuess:
    """Layers' names and the shapes of their weights, (out, in, …) -> the family that they belong to.

    Names may have dots or underscores, and begin with the part that they belong to.
    """
    joined = {name.replace(".", "_"): shape for name, shape in shapes.items()}
    if any(UNET_MARK.search(name) for name in joined):
        return _unet(joined)
    for pattern, family in MARKS:
        if found := next((name for name in joined if re.search(pattern, name)), None):
            return FamilyGuess(family, f"by the layer {found}")
    blocks = {int(found[1]) for name in joined if (found := re.search(r"transformer_blocks_(\d+)_", name))}
    if blocks:
        return _flat(joined, max(blocks) + 1)
    second = any("te2" in name or "text_encoder_2" in name for name in joined)
    if any("text_model_encoder" in name or "text_encoder" in name for name in joined):
        return FamilyGuess("SDXL" if second else "a text encoder", "by its second text encoder" if second else "")
    return FamilyGuess(UNKNOWN, "")


def _unet(joined: Shapes) -> FamilyGuess:
    widths = {shape[1] for name, shape in joined.items() if re.search(r"attn2_to_[kv]$", name) and len(shape) > 1}
    for width in sorted(widths):
        if width in TEXT_WIDTHS:
            return FamilyGuess(TEXT_WIDTHS[width], f"texts of width {width}")
    if any("te2" in name or "text_encoder_2" in name or "label_emb" in name or "add_embedding" in name for name in joined):
        return FamilyGuess("SDXL", "by its second text encoder" + _with_width(widths))
    deep = any(re.search(r"transformer_blocks_[2-9]_", name) for name in joined)
    return FamilyGuess("SDXL", "by its deep attention") if deep else FamilyGuess(UNET, _with_width(widths).strip(", "))


def _with_width(widths: set[int]) -> str:
    return f", texts of width {max(widths)}" if widths else ""


def _flat(joined: Shapes, blocks: int) -> FamilyGuess:
    """By the width that most layers have in and out, and the number of blocks."""
    widths = [shape[0] for name, shape in joined.items() if re.search(r"(to_[qkv]|to_out_0)$", name) and shape]
    width = max(set(widths), key=widths.count) if widths else 0
    family = next((name for hidden, most, name in FLAT if hidden == width and blocks <= most), None)
    if family is None and any(re.search(r"add_[qkv]_proj|ff_context", name) for name in joined):
        family = "SD3"
    return FamilyGuess(family or TRANSFORMER, f"{blocks} blocks of width {width}")
