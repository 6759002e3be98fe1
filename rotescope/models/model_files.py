"""Which files a model and a LoRA consist of, what is missing of them, and what is a name on the hub; no library is loaded."""
import json
import math
import re
from pathlib import Path

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.models.tensor_files import PICKLES, check_tensor_file

LORA_FILE = "pytorch_lora_weights.safetensors"
HUB = "hub:"  # before a name that is on the hub whatever lies here
FILE_ENDS = (".safetensors", ".gguf", ".json", ".yaml", ".zip", *PICKLES)
LORA_FILES = (LORA_FILE, "adapter_model.safetensors")  # diffusers' name, and PEFT's
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
             "PixArtAlphaPipeline", "PixArtSigmaPipeline")
OTHER_USES = re.compile(  # in a pipeline's name: it wants a picture, a video or a sound beside the prompt, or makes one
    "Img2Img|ImageToImage|Inpaint|Control|Adapter|Depth2Img|Upscale|Edit|Kontext|Fill|Redux|Layered|Variation|Pix2Pix|Prior|"
    "Refiner|Reference|Video|I2V|V2V|Animat|Audio|Music|^Wan|^LTX|^Mochi|^Allegro|^Latte|^Cosmos|^Skyreels|^Motif|^Ledits")
WEIGHTS = (("config.json",), ("*.safetensors",))
TOKENIZER = (("tokenizer_config.json",), ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"))
PARTS = {  # component -> files of which it needs one of each group
    "unet": WEIGHTS, "transformer": WEIGHTS, "vae": WEIGHTS,
    "text_encoder": WEIGHTS, "text_encoder_2": WEIGHTS, "text_encoder_3": WEIGHTS,
    "tokenizer": TOKENIZER, "tokenizer_2": TOKENIZER, "tokenizer_3": TOKENIZER,
    "scheduler": (("scheduler_config.json",),),
}
ALWAYS = ("vae", "text_encoder", "tokenizer", "scheduler")  # of PIPELINES; others if model_index.json names them


def check_text_to_image(name, kind, kinds=None):
    """InputError for a pipeline's class, by its name, that is none of `kinds`, or none that makes pictures of prompts alone."""
    if kinds is not None and kind not in kinds:
        raise InputError(f"{name} is a {kind}: what is served here is {', '.join(kinds)}")
    if not str(kind).endswith("Pipeline"):
        raise InputError(f"{name} is a {kind}, no pipeline of diffusers: name a text-to-image model")
    if found := OTHER_USES.search(kind):
        raise InputError(f"{name} is a {kind}, which is for more or other than a prompt and a picture of it ({found[0]}): name a "
                         "text-to-image model")


def find_model(name, kinds=None):
    """A folder, or a model's name on the hub -> its folder, with every part that its pipeline needs; else InputError.

    kinds: names of the pipelines that may be; None: every one that makes pictures of prompts.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise InputError(f"{name!r} names no model: give a folder in diffusers' layout, or a name on the hub")
    folder = Path(name)
    check_utf8(folder)
    if is_single_file(name):
        check_tensor_file(folder)
        raise InputError(f"{name} is a single file, and a folder in diffusers' layout is wanted here: open it once with "
                         "from_single_file of its pipeline, and save_pretrained")
    if may_be_on_hub(name):
        folder = _download(name)
    index = read_index(folder)
    if not index:
        raise InputError(f"no model at {name}: name a folder in diffusers' layout, with a model_index.json, or hub:OWNER/NAME")
    check_text_to_image(name, index.get("_class_name"), kinds)
    if not any(part.startswith(("text_encoder", "tokenizer")) for part in index):
        raise InputError(f"{name} is a {index['_class_name']}, which takes no prompt: name a text-to-image model")
    for part, groups in PARTS.items():
        if part in ALWAYS and index["_class_name"] in PIPELINES or (index.get(part) or [None])[0]:
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


def lora_strength(text):
    """`a.safetensors:0.8` -> ("a.safetensors", 0.8); without a number behind its last colon, or where such a file is there, 1."""
    name, colon, number = str(text).rpartition(":")
    try:
        strength = float(number) if colon and name and not Path(text).exists() else None
    except (ValueError, OSError):
        strength = None
    if strength is None:
        return str(text), 1.0
    if not math.isfinite(strength):
        raise InputError(f"{text}: {number} is no strength; give a number such as 0.8 behind the colon")
    return name, strength


def lora_names(given):
    """What --lora holds, one name or several or nothing -> a tuple of names, each with its strength if it has one."""
    return () if not given else (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


def lora_paths(given):
    """The same without strengths."""
    return tuple(lora_strength(text)[0] for text in lora_names(given))


def find_lora(text):
    """A LoRA file, or the folder that holds one, with a strength behind a colon or without -> the file; else InputError."""
    path = Path(lora_strength(text)[0])
    check_utf8(path)
    file = next((path / name for name in LORA_FILES if (path / name).is_file()), path / LORA_FILE) if path.is_dir() else path
    if file.suffix.lower() in PICKLES and file.is_file():
        check_tensor_file(file)
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        raise InputError(f"no LoRA at {path}: name a .safetensors file, or a folder with {LORA_FILE}")
    return file


def find_embedding(text):
    """A textual inversion as --embedding names it, FILE or TOKEN=FILE -> (the token or None, the file); else InputError."""
    token, equals, path = str(text).rpartition("=")
    if not equals or Path(text).is_file():
        token, path = None, text
    file = check_tensor_file(path)
    if token == "" or (token and token.split() != [token]):
        raise InputError(f"--embedding {text}: the token {token!r} is no word; give one without spaces, as in sks={path}")
    return token, file


# ----- the hub

def hub_name(name):
    """`hub:OWNER/NAME`, or OWNER/NAME of which nothing lies here -> the model's name on the hub; else None.

    What looks like a path is never a name on the hub: with a suffix of a file, a separator more than one, a beginning with
    . / or ~, or in a folder that lies here.
    """
    text = str(name)
    if text.startswith(HUB):
        return text.removeprefix(HUB)
    owner, separator, rest = text.partition("/")
    is_path = text.startswith((".", "/", "~")) or "/" in rest or "\\" in text or not rest or not owner or not separator
    if is_path or Path(text).exists() or Path(text).suffix.lower() in FILE_ENDS or Path(owner).exists():
        return None
    return text


def may_be_on_hub(name):
    """Whether hub_name finds one."""
    return hub_name(name) is not None


def _download(name):
    import diffusers
    found = hub_name(name)
    if found == str(name):
        say(f"there is no folder {name} here: it is taken as a model's name on the hub")
    try:
        return Path(diffusers.DiffusionPipeline.download(found, use_safetensors=True))
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no model at {name}, and the hub does not give it ({error}): name a local folder") from error


def is_single_file(name):
    """Whether a name means a file of weights, there or not, and no folder."""
    return Path(name).is_file() or (Path(name).suffix.lower() in (".safetensors", ".gguf", *PICKLES) and not Path(name).is_dir())
