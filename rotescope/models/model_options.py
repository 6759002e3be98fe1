"""Which model a command opens: options that load no library."""
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.models.memory_options import MemoryOptions
from rotescope.models.model_files import find_embedding, find_lora, find_model, lora_names, lora_paths, may_be_on_hub
from rotescope.models.schedulers import check_scheduler_name
from rotescope.models.single_files.checks import find_model_path

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DTYPE_NAMES = ("fp32", "fp16", "bf16")
BASE = (Path(__file__).resolve().parent.parent / "train" / "base").resolve()  # in a clone, rotescope/train is a link


@dataclass(frozen=True, kw_only=True)
class ModelOptions(MemoryOptions):
    """What every command that opens a model lets a user choose alike."""
    HEADINGS: ClassVar = {"model": "the model"}
    model: str = str(BASE)
    """model folder in diffusers' layout (any pipeline that makes pictures of prompts), a single-file checkpoint, or its name on
    the hub (OWNER/NAME, or hub:OWNER/NAME)"""
    model_config: str | None = None
    """for a single file: a folder in diffusers' layout with the configurations and tokenizers of its family, and with weights of
    what the file lacks; SD 1, 2 and XL need none"""
    prediction_type: str | None = None
    """what the denoiser predicts, if the model says it wrong or not at all: epsilon, v_prediction or sample"""
    lora: tuple[str, ...] | str | None = None
    """LoRAs on top of the model, files or folders (diffusers, PEFT, kohya, ai-toolkit, LyCORIS, DoRA); a strength may follow a
    colon: a.safetensors:0.8 b.safetensors"""
    embedding: tuple[str, ...] | None = None
    """textual inversions (.safetensors), each called by its file's name or the name inside; NAME=FILE gives another"""
    scheduler: str | None = None
    """another sampler than the model's own: ddim, ddpm, pndm, lms, euler, euler-a, heun, dpm++, dpm++-karras, dpm++-sde, unipc,
    or a scheduler's class in diffusers"""
    allow_unused_keys: bool = False
    """go on though some weights of the LoRA belong to no layer of the model, and so change no image"""
    dtype: str = "fp32"
    """number format of the weights: fp32, fp16 or bf16"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, …: where the model runs"""

    def check(self):
        super().check()
        if self.dtype not in DTYPE_NAMES:
            raise InputError(f"dtype={self.dtype!r}: take one of {', '.join(DTYPE_NAMES)}")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise InputError(f"prediction_type={self.prediction_type!r}: take one of {', '.join(PREDICTION_TYPES)}")
        check_scheduler_name(self.scheduler)
        if not may_be_on_hub(self.model):
            find_model_path(self.model, self.model_config)
        for name in lora_names(self.lora):
            find_lora(name)
        for name in self.embedding or ():
            find_embedding(name)

    @property
    def model_inputs(self):
        """The files and folders that are read for the model, which no output may replace."""
        named = [find_embedding(name)[1] for name in self.embedding or ()]
        return (self.model, self.model_config, *lora_paths(self.lora), *map(str, named))


def check_model_name(name):
    """InputError if there is no model at a local path; one on the hub is asked for later."""
    if not may_be_on_hub(name):
        find_model(name)
