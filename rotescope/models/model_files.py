"""Which files a model and a LoRA consist of, and what is missing of them; no library is loaded for it."""
import json
from pathlib import Path

from rotescope.common.errors import InputError

LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
             "PixArtAlphaPipeline", "PixArtSigmaPipeline")
WEIGHTS = (("config.json",), ("*.safetensors",))
TOKENIZER = (("tokenizer_config.json",), ("tokenizer.json", "vocab.json", "spiece.model"))
PARTS = {  # component -> files of which it needs one of each group
    "unet": WEIGHTS, "transformer": WEIGHTS, "vae": WEIGHTS,
    "text_encoder": WEIGHTS, "text_encoder_2": WEIGHTS, "text_encoder_3": WEIGHTS,
    "tokenizer": TOKENIZER, "tokenizer_2": TOKENIZER, "tokenizer_3": TOKENIZER,
    "scheduler": (("scheduler_config.json",),),
}
ALWAYS = ("vae", "text_encoder", "tokenizer", "scheduler")  # the others if model_index.json names them


def find_model(name, kinds=PIPELINES):
    """A folder, or a model's name on the hub -> its folder, with every part that its pipeline needs; else InputError."""
    if not isinstance(name, str | Path) or not str(name):
        raise InputError(f"{name!r} names no model: give a folder in diffusers' layout, or a name on the hub")
    folder = Path(name)
    check_utf8(folder)
    if may_be_on_hub(name):
        folder = _download(name)
    index = read_index(folder)
    if not index:
        raise InputError(f"no model at {name}: name a folder in diffusers' layout, with a model_index.json")
    if index.get("_class_name") not in kinds:
        raise InputError(f"{name} is a {index.get('_class_name')}: what is served here is {', '.join(kinds)}")
    for part, groups in PARTS.items():
        if part in ALWAYS or (index.get(part) or [None])[0]:
            _check_part(name, folder / part, groups)
    return folder


def check_utf8(path):
    """Raise InputError if a model cannot lie at `path`: the libraries that write and load one take names in UTF-8 alone."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} has a name that is no UTF-8, under which no model can be kept: name another folder") from error


def _check_part(name, folder, groups):
    for group in groups:
        if not any(True for pattern in group for _ in folder.glob(pattern)):
            raise InputError(f"the model {name} has no {folder.name} ({' or '.join(group)}): copy the whole model folder")


def read_index(folder):
    """model_index.json, or nothing."""
    try:
        found = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_lora(path):
    """A LoRA file, or the folder that holds pytorch_lora_weights.safetensors -> the file; else InputError."""
    check_utf8(path)
    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        raise InputError(f"no LoRA at {path}: name a .safetensors file, or a folder with {LORA_FILE}")
    return file


def _download(name):
    import diffusers
    try:
        return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no model at {name}, and the hub does not give it ({error}): name a local folder") from error


def may_be_on_hub(name):
    """OWNER/NAME of which nothing lies here."""
    return not Path(name).exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
