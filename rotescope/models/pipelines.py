"""Models in diffusers' layout, from a folder or the hub: what is missing is said before anything is loaded."""
import json
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines import pipeline_utils
from safetensors.torch import load_file, save_file

from rotescope.common.errors import InputError
from rotescope.common.quiet_libraries import quiet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPE_OPTION = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"  # the newer name, where it is known
LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
             "PixArtAlphaPipeline", "PixArtSigmaPipeline")
NOT_IN_TIMESTEPS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler",
                    "CMStochasticIterativeScheduler", "SCMScheduler", "IPNDMScheduler", "ScoreSdeVeScheduler")  # functions of σ
WEIGHTS = (("config.json",), ("*.safetensors",))
TOKENIZER = (("tokenizer_config.json",), ("tokenizer.json", "vocab.json", "spiece.model"))
PARTS = {  # component -> files of which it needs one of each group
    "unet": WEIGHTS, "transformer": WEIGHTS, "vae": WEIGHTS,
    "text_encoder": WEIGHTS, "text_encoder_2": WEIGHTS, "text_encoder_3": WEIGHTS,
    "tokenizer": TOKENIZER, "tokenizer_2": TOKENIZER, "tokenizer_3": TOKENIZER,
    "scheduler": (("scheduler_config.json",),),
}
ALWAYS = ("vae", "text_encoder", "tokenizer", "scheduler")  # the others if model_index.json names them


def check_model(options):
    """Raise InputError if open_model could not."""
    if options.dtype not in DTYPES:
        raise InputError(f"dtype={options.dtype!r}: take one of {', '.join(DTYPES)}")
    find_model(options.model)
    if options.lora:
        find_lora(options.lora)


def open_model(options):
    """ModelOptions -> the pipeline, where it is to run."""
    return load_pipeline(options.model, options.lora, DTYPES[options.dtype]).to(chosen_device(options.device))


def chosen_device(name):
    """What --device names -> torch's name for it: auto is a GPU where there is one."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def find_model(name, kinds=PIPELINES):
    """A folder, or a model's name on the hub -> its folder, with every part that its pipeline needs; else InputError."""
    folder = Path(name)
    check_utf8(folder)
    if not folder.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        folder = _download(name)
    index = _index(folder)
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


def _index(folder):
    """model_index.json, or nothing."""
    try:
        found = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def load_pipeline(name, lora=None, dtype=torch.float32):
    """-> a pipeline of its own class, without safety checker, its parts frozen, in eval mode; `lora`: a file or folder."""
    folder, lora = find_model(name), find_lora(lora) if lora else None
    kind = _index(folder)["_class_name"]
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if kind == "StableDiffusionPipeline" else {}
    try:
        with quiet():
            pipe = getattr(diffusers, kind).from_pretrained(
                folder, **{DTYPE_OPTION: dtype}, use_safetensors=True, local_files_only=True, **unchecked)
            if lora:
                pipe.load_lora_weights(lora.parent, weight_name=lora.name, local_files_only=True)
                attached = any(pipe.get_list_adapters().values())
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"{lora or name} cannot be loaded ({error}): copy it again") from error
    if lora and not attached:  # the libraries only remark on it
        raise InputError(f"no weight of {lora} belongs to {name}: it is a LoRA of another model, or of a format that is not read")
    for part in (p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
        part.requires_grad_(False).eval()
    return pipe


def find_lora(path):
    """A LoRA file, or the folder that holds pytorch_lora_weights.safetensors -> the file; else InputError."""
    check_utf8(path)
    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        raise InputError(f"no LoRA at {path}: name a .safetensors file, or a folder with {LORA_FILE}")
    return file


def portable_text_encoder(folder):
    """Rewrite a saved CLIPTextModel so that every transformers loads it: 5.0 wants the prefix that 5.23 leaves out, and takes
    the file's half precision for the model's unless the config says otherwise."""
    file, config = Path(folder) / "model.safetensors", Path(folder) / "config.json"
    weights = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def _download(name):
    try:
        return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no model at {name}, and the hub does not give it ({error}): name a local folder") from error


def counts_timesteps(scheduler):
    """Whether its timesteps run from 1000 to 0, and not over levels of noise, as EDM's do."""
    return type(scheduler).__name__ not in NOT_IN_TIMESTEPS and scheduler.config.get("timestep_type") != "continuous"
