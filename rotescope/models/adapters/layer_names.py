"""A key of an adapter's file taken apart: which part of a pipeline, which layer of it, which factor."""
import re
from dataclasses import dataclass

ADAPTER_ENDS = tuple((re.compile(f"^(.+?){pattern}$"), factors) for pattern, factors in (
    (r"[._]lora(?:_linear_layer)?\.(down|up)\.weight", {"down": "down", "up": "up"}),   # older diffusers
    (r"\.lora_(down|up|mid)\.weight", {"down": "down", "up": "up", "mid": "mid"}),       # kohya
    (r"\.lora_([AB])(?:\.(?!weight$|bias$)\w+)?\.weight", {"A": "down", "B": "up"}),     # PEFT, with an adapter's name or without
    (r"\.lora_(B)(?:\.(?!weight$|bias$)\w+)?\.bias", {"B": "up_bias"}),
    (r"\.lora_(magnitude_vector)(?:\.(?!weight$)\w+)?(?:\.weight)?", {"magnitude_vector": "magnitude_vector"}),
    (r"\.(dora_scale|alpha|scale|scalar)", None),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", None),              # LyCORIS
    (r"\.(diff|diff_b|w_norm|b_norm)", None),
))
UNREAD = {  # an end that tells it -> what is not read
    "oft_blocks": "OFT", "oft_diag": "OFT", "oft_R.weight": "OFT", "boft": "BOFT", "on_input": "IA3", "b1.weight": "GLoRA",
    "lambda_layer": "T-LoRA, which does not say what its layers were started from", "vera_lambda_b": "VeRA",
    "lora_embedding_A": "a LoRA on an embedding", "hypernet": "a hypernetwork",
}
PARTS = (  # how a name begins -> the part: "denoiser", "text_encoder" and so on, or "" where the name does not say it
    ("lora_unet_", "denoiser"), ("lora_transformer_", "denoiser"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"), ("lora_te_", "text_encoder"), ("lycoris_unet_", "denoiser"), ("lycoris_", ""),
    ("model.diffusion_model.", "denoiser"), ("diffusion_model.", "denoiser"), ("unet.", "denoiser"), ("transformer.", "denoiser"),
    ("text_encoder_2.", "text_encoder_2"), ("text_encoder_3.", "text_encoder_3"), ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"), ("text_encoders.clip_g.transformer.", "text_encoder_2"),
)
WRAPPED = ("base_model.model.", "base_model.")  # PEFT puts a whole model inside its own
XLABS = re.compile(r"^(.*(?:double|single)_blocks\.\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")
XLABS_SIDES = {"": "", "1": "img_attn.", "2": "txt_attn."}  # of FLUX: which stream a number means
OLD_ATTENTION = re.compile(r"^(.*)\.processor\.(\w+)$")
OLD_LAYERS = {"to_out": "to_out.0"}
OLD_TEXT_LAYERS = {"self_attn.to_q": "self_attn.q_proj", "self_attn.to_k": "self_attn.k_proj",
                   "self_attn.to_v": "self_attn.v_proj", "self_attn.to_out": "self_attn.out_proj"}
FORMATS = ("kohya", "LyCORIS", "original names (ai-toolkit, ComfyUI)", "PEFT", "diffusers")


@dataclass(frozen=True)
class AdapterKey:
    """A key of a file: the layer as the file names it, its part and its name therein, and the factor."""
    key: str
    layer: str
    part: str
    name: str
    factor: str


def parse_key(key: str) -> AdapterKey | None:
    """A key -> what it says, or None if it is no adapter's."""
    if found := XLABS.match(key):
        part, block = split_part(found[1])
        name = f"{block}.{XLABS_SIDES[found[3]]}{found[2]}"
        return AdapterKey(key, key.partition("_lora")[0] + f"_lora{found[3]}", part or "denoiser", name, found[4])
    for pattern, factors in ADAPTER_ENDS:
        if found := pattern.match(key):
            part, name = split_part(found[1])
            return AdapterKey(key, found[1], part, name, (factors or {}).get(found[2], found[2]))
    return None


def split_part(layer: str) -> tuple[str, str]:
    """`lora_te1_text_model_…` -> ("text_encoder", "text_model_…"); an old name of an attention's layer becomes today's."""
    for prefix in WRAPPED:
        layer = layer.removeprefix(prefix)
    start, part = next(((start, part) for start, part in PARTS if layer.startswith(start)), ("", ""))
    name = layer[len(start):]
    if found := OLD_ATTENTION.match(name):
        name = f"{found[1]}.{OLD_LAYERS.get(found[2], found[2])}"
    for old, new in OLD_TEXT_LAYERS.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return part, name


def format_of(keys) -> str:
    """Which program's way of naming the keys follow, one of FORMATS."""
    keys = list(keys)
    if any(key.startswith(WRAPPED) for key in keys):
        return "PEFT"
    if any(key.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) for key in keys):
        return "LyCORIS" if any(re.search(r"\.(hada|lokr)_|\.(w_norm|diff)$", key) for key in keys) else "kohya"
    if any(key.startswith(("diffusion_model.", "model.diffusion_model.")) for key in keys):
        return "original names (ai-toolkit, ComfyUI)"
    return "diffusers"


def unread_kind(keys) -> str | None:
    """The name of a kind of adapter that these keys tell and that is not read, or None."""
    return next((what for key in keys for end, what in UNREAD.items() if key.endswith(end) or f".{end}." in key), None)
