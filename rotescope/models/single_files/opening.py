"""A single-file checkpoint -> a pipeline, without a network."""
import re
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import torch

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.quiet_libraries import quiet
from rotescope.models.model_files import read_index
from rotescope.models.single_files.configuration import configuration_folder
from rotescope.models.single_files.contents import ModelDescription, describe_model
from rotescope.models.single_files.gguf_files import is_gguf, load_gguf_denoiser
from rotescope.models.single_files.text_encoders import text_encoders_of
from rotescope.models.tensor_files import load_tensors, read_tensor_file


def open_single_file(file: Path, config: str | None, options: dict[str, Any]) -> Any:
    """A file that check_single_file takes -> its pipeline.

    Parameters
    ----------
    file : Path
    config : str, optional
        A folder in diffusers' layout, whose configurations and tokenizers are used, and whose weights for
        parts that the file lacks.
    options : dict
        What from_single_file takes: the number format, and parts that stand for the file's own.
    """
    about = describe_model(file)
    with configuration_folder(about.family.name, config) as folder:
        index = read_index(folder)
        kind, dtype = getattr(diffusers, index["_class_name"]), options.get("dtype", options.get("torch_dtype"))
        try:
            with quiet():
                own = _unchecked(index) | _parts_of(file, folder, index, about, dtype or torch.float32)
                pipe = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **own | options)
        except InputError:
            raise
        except Exception as error:  # a part that is missing or has another size shows in as many ways as there are parts
            raise InputError(f"{file} cannot be loaded as {kind.__name__} ({_first_line(error)}): it is {about.what}; name a "
                             "folder of that family with --model_config, with weights of what the file lacks") from error
    _set_training(pipe, about, told=config is None)
    return pipe


def _parts_of(file: Path, folder: Path, index: dict[str, Any], about: ModelDescription, dtype: torch.dtype) -> dict[str, Any]:
    """Component -> what the file holds of it, whole; the rest is the folder's."""
    found: dict[str, Any] = {} if is_gguf(file) else dict(text_encoders_of(file, folder, index, dtype))
    for name, word in (("unet", "denoiser"), ("transformer", "denoiser"), ("vae", "VAE")):
        listed = index.get(name) or [None]
        if listed[0] and word in about.parts:
            found[name] = _part_of(file, folder / name, getattr(diffusers, listed[1]), dtype)
            _check_whole(found[name], word, about)
    return found


def _part_of(file: Path, config: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A denoiser or VAE of the file: alone in diffusers' names it is taken as it is, and diffusers' loader knows the others."""
    if is_gguf(file):
        return load_gguf_denoiser(file, config, kind, dtype)
    if any(re.match(r"(down_blocks|transformer_blocks|encoder\.down_blocks)\.", key) for key in read_tensor_file(file).shapes):
        part = kind.from_config(kind.load_config(config)).to(dtype)
        part.load_state_dict(load_tensors(file))
        return part
    return kind.from_single_file(str(file), config=str(config.parent), subfolder=config.name, local_files_only=True,
                                 torch_dtype=dtype)


def _check_whole(part: torch.nn.Module, name: str, about: ModelDescription) -> None:
    """InputError if the file has fewer numbers for a part than the part: diffusers leaves those as they lay in memory."""
    wanted, n = sum(_numbers(p) for p in part.parameters()), about.parts[name]
    if n < wanted or any(p.is_meta for p in part.parameters()):
        raise InputError(f"{about.path} holds {n:,} numbers for its {name}, and {wanted:,} are needed: copy it again, or name "
                         "another --model_config")


def _numbers(parameter: Any) -> int:
    """How many numbers a parameter stands for, packed or not."""
    return prod(getattr(parameter, "quant_shape", None) or parameter.shape)


def _unchecked(index: dict[str, Any]) -> dict[str, Any]:
    if index["_class_name"] != "StableDiffusionPipeline":
        return {}
    return {"safety_checker": None, "requires_safety_checker": False}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _set_training(pipe: Any, about: ModelDescription, told: bool) -> None:
    """Put what the file says of its training into the scheduler. The two kinds of SD 2 look alike: what is assumed is told."""
    if about.prediction_type:
        set_prediction_type(pipe, about.prediction_type)
    elif told and about.family.name == "Stable Diffusion 2":
        say(f"{about.path} does not say what it predicts: taken as SD 2.1 for 768 px, which predicts v; for the 512 px base pass "
            "--prediction_type epsilon")
    if about.zero_terminal_snr:
        pipe.scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def set_prediction_type(pipe: Any, kind: str) -> None:
    """Let the scheduler of a pipeline take what the denoiser predicts as `kind`. InputError where it has no such setting."""
    scheduler = pipe.scheduler
    if "prediction_type" not in scheduler.config or "FlowMatch" in type(scheduler).__name__:
        raise InputError(f"--prediction_type is for diffusion models, and this one has {type(scheduler).__name__}: leave it out")
    pipe.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
