"""Whether what was saved is what was trained: stock diffusers opens it again, and both predict from one noise."""
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError, RunError
from rotescope.common.quiet_libraries import quiet
from rotescope.models.adapters.adapter_file import read_adapter
from rotescope.models.memory import DENOISERS
from rotescope.models.model_files import LORA_FILE, find_lora
from rotescope.models.pipelines import DTYPES, load_pipeline
from rotescope.train.objective.families import Predictor, family_of

CAPTION, TIMESTEP = "a photograph", 500.0
LATENT = 16          # the side at which both predict, at most
ROUNDING = 1e-5      # of a prediction's size: what the order of sums may change
OF_THE_LORA = 0.01   # of what the LoRA changes in a prediction: more than that is missing from its file


@dataclass(frozen=True)
class Reloaded:
    """Largest differences between predictions, as shares of the largest number in one."""
    saved: float         # between the model in memory and the one that was saved
    adapter: float       # between the model in memory with its LoRA and without; 0 if there is none

    @property
    def is_equal(self):
        """NaN is never equal."""
        return self.saved <= max(ROUNDING, OF_THE_LORA * self.adapter)


def check_saved(job, folder):
    """Raise RunError if the result in `folder` predicts something else than the trained model in memory, which stays on the CPU
    and in float32 afterwards."""
    try:
        found = reloaded(job, folder)
    except InputError as error:
        raise RunError(f"what was saved in {folder} is not what was trained: it cannot be opened again ({error})") from error
    if not found.is_equal:
        lora = f", of which its LoRA makes {found.adapter:.2g}" if found.adapter else ""
        raise RunError(f"what was saved in {folder} is not what was trained: from one noise it predicts another picture, off by "
                       f"{found.saved:.2g}{lora}; do not use it, and report this with its config.yaml")


@torch.no_grad()
def reloaded(job, folder):
    """-> Reloaded. Only the trained parts are loaded again; the others, which did not change, serve both."""
    config, names = job.config, tuple(job.predictor.parts)
    shared = {name: part for name, part in job.pipe.components.items() if name not in names and part is not None}
    for part in job.frozen():
        part.cpu()
    again = _with_lora(config, folder, shared) if config.lora else \
        load_pipeline(folder, dtype=DTYPES[config.save_dtype], parts=shared)
    for name in names:
        _in_one_precision(job.pipe.components[name], again.components[name])
    noise = _noise(job)
    trained = _prediction(job, job.pipe, noise)
    size = trained.abs().max().clamp(min=1e-12)
    return Reloaded(_largest(_prediction(job, again, noise) - trained, size),
                    _largest(_without(job, names, noise) - trained, size) if config.lora else 0.0)


def _with_lora(config, folder, shared):
    """diffusers' format by its own loader, as whoever downloads the file has it; kohya's, whose text encoders that one does not
    take, by ours."""
    base = {"quantize": config.quantize, "quantized": DENOISERS}
    if config.lora_format == "kohya":
        return load_pipeline(config.pretrained_model_name_or_path, folder, parts=shared, **base)
    read_adapter(find_lora(folder))  # or says what it lacks
    pipe = load_pipeline(config.pretrained_model_name_or_path, parts=shared, **base)
    with quiet():
        pipe.load_lora_weights(folder, weight_name=LORA_FILE, local_files_only=True)
    return pipe


def _largest(difference, size):
    return float(difference.abs().max() / size)


def _in_one_precision(trained, saved):
    """What lies under a LoRA may have been rounded to half precision while it was trained; from there both go to float32. Buffers
    that no file holds, such as Chroma's table of places, are those of the model that was opened: saving may have rounded ours."""
    kinds = {name: weight.dtype for name, weight in trained.named_parameters()}
    for name, weight in saved.named_parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(kinds.get(name, weight.dtype)).float()
    stored, rebuilt = trained.state_dict().keys(), dict(saved.named_buffers())
    for name, buffer in trained.named_buffers():
        if name in rebuilt and name not in stored:
            buffer.data = rebuilt[name].detach().clone()
    for part in (trained, saved):
        for layer in (module for module in part.modules() if getattr(module, "compute_dtype", None)):
            layer.compute_dtype = torch.float32
        torch.nn.Module.to(part, "cpu", torch.float32)  # diffusers' own `to` warns of parts that it would keep


def _without(job, names, noise):
    """-> the prediction with the LoRAs off."""
    parts = [job.pipe.components[name] for name in names]
    for part in parts:
        part.disable_adapters()
    try:
        return _prediction(job, job.pipe, noise)
    finally:
        for part in parts:
            part.enable_adapters()


def _side(job):
    """Of the picture that is predicted, in pixels."""
    return min(LATENT * job.pipe.vae_scale_factor, job.preprocessing.resolution)


def _noise(job):
    """-> (1, C, h, w), like the latents of one picture."""
    blank = torch.zeros(1, 3, _side(job), _side(job), dtype=job.pipe.vae.dtype)
    like, _ = job.predictor.family.moments(job.pipe.vae, blank).chunk(2, 1)
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


def _prediction(job, pipe, noise):
    """Of one caption, noise and timestep -> (1, C, h, w)."""
    condition = {name: value.float() for name, value in family_of(pipe).encode(pipe, [CAPTION], torch.device("cpu")).items()}
    pixels = float(_side(job))
    condition["geometry"] = torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]])
    predictor = Predictor(pipe, tuple(job.predictor.parts), job.config.guidance_scale).eval()
    return predictor(noise, torch.tensor([TIMESTEP]), condition).float()
