"""Models in diffusers' layout, from a folder or the hub: what is missing is said before anything is loaded."""
import json
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines import pipeline_utils
from safetensors.torch import load_file, save_file

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.quiet_libraries import quiet
from rotescope.models.adapters.description import describe_adapter
from rotescope.models.adapters.embeddings import add_embedding
from rotescope.models.adapters.header import read_header
from rotescope.models.lora import attach_lora
from rotescope.models.memory import check_memory, place_pipeline, quantization_config, quantized_parts
from rotescope.models.model_files import find_embedding, find_lora, is_single_file, lora_names, lora_strength, read_index
from rotescope.models.schedulers import set_scheduler
from rotescope.models.single_files.checks import find_model_path
from rotescope.models.single_files.contents import describe_model
from rotescope.models.single_files.opening import open_single_file, set_prediction_type

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPE_OPTION = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"  # the newer name, where it is known
NOT_IN_TIMESTEPS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler",
                    "CMStochasticIterativeScheduler", "SCMScheduler", "IPNDMScheduler", "ScoreSdeVeScheduler")  # functions of σ


def check_model(options):
    """Raise InputError if open_model could not."""
    if options.dtype not in DTYPES:
        raise InputError(f"dtype={options.dtype!r}: take one of {', '.join(DTYPES)}")
    check_memory(options, chosen_device(options.device), find_model_path(options.model, options.model_config))
    for name in lora_names(options.lora):
        find_lora(name)
    for name in options.embedding or ():
        find_embedding(name)


def open_model(options):
    """ModelOptions -> the pipeline, where it is to run; what was understood of the user's files is told on stderr."""
    for line in understood(options):
        say(line)
    pipe = load_pipeline(options.model, options.lora, DTYPES[options.dtype], allow_unused_keys=options.allow_unused_keys,
                         embeddings=options.embedding or (), model_config=options.model_config,
                         prediction_type=options.prediction_type, quantize=options.quantize)
    for line in prediction_lines(options, pipe):
        say(f"warning: {line}")
    if options.scheduler:
        set_scheduler(pipe, options.scheduler)
    return place_pipeline(pipe, chosen_device(options.device), options)


def open_checkpoint(options, model, lora=None):
    """A model beside MemoryOptions and a device -> its pipeline in fp32, where it is to run."""
    return place_pipeline(load_pipeline(model, lora, quantize=options.quantize), chosen_device(options.device), options)


def prediction_lines(options, pipe):
    """-> a sentence on each LoRA whose header says that it was trained on another kind of prediction than the model's."""
    predicts = pipe.scheduler.config.get("prediction_type")
    for name in lora_names(options.lora):
        said = read_header(find_lora(name)).prediction_type
        if said and predicts and said != predicts and "flow" not in predicts:
            yield (f"the header of {name} says that it was trained on {said}, and {options.model} predicts {predicts}: if the "
                   f"model does not say what it is, pass --prediction_type {said}")


def understood(options):
    """-> lines on the single file and the LoRAs that ModelOptions names: what they are, by their headers."""
    lines = describe_model(options.model).lines()[:1] if is_single_file(options.model) else []
    for text in lora_names(options.lora):
        first, second, *header = describe_adapter(find_lora(text)).lines()
        lines += [first, f"  {second}; attached at strength {lora_strength(text)[1]:g}", *(f"  {line}" for line in header)]
    return lines


def chosen_device(name):
    """What --device names -> torch's name for it: auto is a GPU where there is one. InputError if there is no such device."""
    name = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except Exception as error:  # no such word, no such number, no driver, a torch that was built without: one kind each
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--device {name} is not there ({first}): take auto, cpu, or one that this machine has") from error
    return name


def load_pipeline(name, lora=None, dtype=torch.float32, parts=None, allow_unused_keys=False, *, embeddings=(), model_config=None,
                  prediction_type=None, quantize="none", quantized=None):
    """-> a pipeline of its own class, without safety checker, its parts frozen, in eval mode.

    lora: files or folders, one or several, as lora_names takes them; allow_unused_keys: though some of it belongs to no layer.
    parts: {component: what stands for it}, which are not loaded. embeddings: files of textual inversions. model_config: the
    folder of configurations for a single file. prediction_type: what the denoiser predicts, if not what the model says.
    quantize: as --quantize has it, of a folder. quantized: the components that this means, if not all that are large.
    """
    path, loras = find_model_path(name, model_config), [(find_lora(text), lora_strength(text)[1]) for text in lora_names(lora)]
    options = {DTYPE_OPTION: dtype} | (parts or {})
    if quantize != "none":
        options["quantization_config"] = quantization_config(quantized or quantized_parts(path, quantize), dtype)
    pipe = open_single_file(path, model_config, options) if path.is_file() else _open_folder(name, path, options)
    if prediction_type:
        set_prediction_type(pipe, prediction_type)
    for file, strength in loras:
        with quiet():
            attach_lora(pipe, file, name, allow_unused_keys, strength)
    for text in embeddings:
        add_embedding(pipe, *find_embedding(text))
    for part in (p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
        part.requires_grad_(False).eval()
    return pipe


def _open_folder(name, folder, options):
    kind = read_index(folder)["_class_name"]
    if not hasattr(diffusers, kind):
        raise InputError(f"{name} is a {kind}, which diffusers {diffusers.__version__} does not have: install a newer one")
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if kind == "StableDiffusionPipeline" else {}
    try:
        with quiet():
            return getattr(diffusers, kind).from_pretrained(
                folder, **unchecked | options, use_safetensors=True, local_files_only=True)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"{name} cannot be loaded ({error}): copy it again") from error


def portable_text_encoder(folder):
    """Rewrite a saved CLIPTextModel so that every transformers loads it: 5.0 wants the prefix that 5.23 leaves out, and takes
    the file's half precision for the model's unless the config says otherwise."""
    file, config = Path(folder) / "model.safetensors", Path(folder) / "config.json"
    weights = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def counts_timesteps(scheduler):
    """Whether its timesteps run from 1000 to 0, and not over levels of noise, as EDM's do."""
    return type(scheduler).__name__ not in NOT_IN_TIMESTEPS and scheduler.config.get("timestep_type") != "continuous"
