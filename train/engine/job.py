"""The job that a good config becomes: everything is checked and loaded, and nothing expensive has happened yet."""
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart
from rotescope.common.processes import is_first_process
from rotescope.datasets.images.buckets import bucket_grain, bucket_shapes, nearest_bucket
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan, check_planned, group_by_copies
from rotescope.datasets.readers.sources import Source, read_source
from rotescope.models.memory import DENOISERS, check_quantizable, is_quantized
from rotescope.models.model_files import find_model, read_index
from rotescope.models.pipelines import DTYPES, chosen_device, counts_timesteps, load_pipeline
from rotescope.models.prediction import TARGETS
from rotescope.models.vae_latents import scaled_moments
from rotescope.train.checkpoints.export import TEXT_LAYERS, add_lora, component_hashes, kohya_family
from rotescope.train.checkpoints.output_folder import check_cache, check_place
from rotescope.train.encodings.encode import Preprocessing, longest_reader, too_long
from rotescope.train.encodings.masks import PictureMask, find_masks
from rotescope.train.engine.class_pictures import options_beside_class, read_class_pictures
from rotescope.train.engine.sharding import USUAL_STEPS
from rotescope.train.objective.families import FAMILIES, Predictor, family_of
from rotescope.train.objective.objective import NoiseSchedule, noise_schedule
from rotescope.train.options.finetune_options import FinetuneConfig
from rotescope.train.options.limits import check_values

LATENT_SIDE = 128   # of a pipeline that names none, such as Z-Image's
FLOW_OPTIONS = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "exponential_scale")


@dataclass(frozen=True)
class Job:
    """A run whose input was found good: nothing expensive has happened yet."""
    config: FinetuneConfig
    manifest: Manifest
    pipe: DiffusionPipeline
    predictor: Predictor          # the parts of the pipeline that are trained
    hashes: dict[str, str]        # of the model and of the parts that latents and embeddings depend on
    preprocessing: Preprocessing
    noise: NoiseSchedule
    parameters: list[torch.nn.Parameter]
    resume: Path | None           # the checkpoint to go on from
    source: Source                # what was read, and what was left out: pictures that cannot be
    class_manifest: Manifest | None = None   # pictures for prior preservation; those that are to be drawn are not there yet
    buckets: tuple[tuple[int, int], ...] = ()   # width and height of those that there may be, and
    shapes: tuple[tuple[int, int], ...] = ()    # the one of each picture, if they are not cropped to squares
    masks: tuple[PictureMask, ...] = ()         # of the pictures, if the loss is masked

    @property
    def denoiser(self):
        """The name of the component."""
        return self.predictor.family.denoiser

    def frozen(self, prefix=""):
        """The pipeline's modules that are not trained, of those whose names begin so."""
        return [part for name, part in self.pipe.components.items()
                if isinstance(part, torch.nn.Module) and name not in self.predictor.parts and name.startswith(prefix)]


def check_job(config):
    """-> Job. InputError on anything that would stop the run later."""
    check_values(config)
    resume = check_place(config)
    check_cache(config)
    model = find_model(config.pretrained_model_name_or_path, FAMILIES)
    plan = DuplicationPlan(config.duplicated, config.copies, config.caption_style,
                           config.controls, config.plan_seed, config.exclusive)
    source = read_source(config.train_data, options=options_beside_class(config))
    class_manifest = read_class_pictures(config, source.manifest)
    if config.overwrite:
        check_apart(config.output_dir, {e.file for e in source.manifest})
    if not config.partial_plan:
        _check_planned(source)
    manifest = group_by_copies(apply_plan(source.manifest, plan))
    _check_text_encoder(config, read_index(model)["_class_name"])
    if config.quantize != "none":
        check_quantizable(chosen_device("auto"), model)
    pipe = load_pipeline(model, quantize=config.quantize, quantized=DENOISERS)
    if not config.lora and is_quantized(pipe.components[family_of(pipe).denoiser]):
        raise InputError(f"the weights of {model} are packed into few bits, and cannot be trained: add --lora, or name the model "
                         "that it was made of")
    if config.lora_format == "kohya":
        kohya_family(pipe)  # or says why not
    check_place(config, min_free_mb=_megabytes(pipe, config))
    noise, preprocessing = _noise(config, pipe), _preprocessing(config, pipe)
    buckets = _buckets(config, pipe, preprocessing.resolution)
    masks = find_masks(config.masks, manifest, config.train_data)
    _warn_of_long_captions(manifest, pipe)
    predictor = _trainable(config, pipe)
    return Job(config, manifest, pipe, predictor, component_hashes(model), preprocessing, noise,
               [p for p in predictor.parameters() if p.requires_grad], resume, source, class_manifest, buckets,
               buckets_of(manifest, buckets), masks)


def _check_text_encoder(config, kind):
    """InputError if a text encoder is to be trained and a pipeline of this class has none that is."""
    if config.train_text_encoder and not FAMILIES[kind].encoders:
        raise InputError(f"--train_text_encoder trains the text encoders of CLIP, and a {kind} has none: leave it out")


def _noise(config, pipe):
    """-> the schedule that the model was trained on. InputError if it is none of ours, or an option has no effect on it."""
    unknown_latents = family_of(pipe).moments is scaled_moments and getattr(pipe.vae.config, "latents_mean", None)
    if not counts_timesteps(pipe.scheduler) or unknown_latents:
        raise InputError("the model was trained on levels of noise, as EDM has them, or on latents of its own scale: training "
                         "knows Stable Diffusion's and flow matching's")
    noise = noise_schedule(pipe.scheduler)
    if noise.target not in TARGETS:
        raise InputError(f"the model predicts {noise.target!r}: training knows {', '.join(TARGETS)}")
    flow, default = noise.target == "flow", {f.name: f.default for f in fields(config)}
    if flow and config.snr_gamma is not None:
        raise InputError("--snr_gamma is for diffusion, and this model is trained by flow matching: leave it out")
    for name in () if flow else FLOW_OPTIONS:
        if getattr(config, name) != default[name]:
            raise InputError(f"--{name} is for flow matching, and this model is trained by diffusion: leave it out")
    return noise


def _check_planned(source):
    """InputError on a plan whose images are not all there."""
    try:
        check_planned(source.quarantined)
    except InputError as error:
        raise InputError(f"{error}; --partial_plan true trains all the same, without them") from error


def _preprocessing(config, pipe):
    """A transformer takes its latents in patches, so the side is a multiple of those."""
    denoiser, grain = pipe.components[family_of(pipe).denoiser], _grain(pipe)
    side = config.resolution or pipe.vae_scale_factor * (
        denoiser.config.get("sample_size") or getattr(pipe, "default_sample_size", LATENT_SIDE))
    if side % grain:
        raise InputError(f"--resolution {side}: take a multiple of {grain} for this model")
    return Preprocessing(side, config.center_crop, config.random_flip)


def _grain(pipe):
    """What the sides of pictures are multiples of."""
    return pipe.vae_scale_factor * (1 if hasattr(pipe, "unet") else 2)


def _buckets(config, pipe, side):
    """-> those that pictures may be cropped to, or (). InputError if there are none, or the model takes none so large."""
    if not config.aspect_buckets:
        return ()
    grain = math.lcm(config.bucket_reso_steps or bucket_grain(side), _grain(pipe))
    found = bucket_shapes(side, grain, config.min_bucket_reso, config.max_bucket_reso)
    if not found:
        raise InputError(f"--aspect_buckets: there is none of about {side} × {side} pixels whose sides are multiples of {grain}: "
                         "lower --bucket_reso_steps or --min_bucket_reso, or raise --resolution")
    places = pipe.components[family_of(pipe).denoiser].config.get("pos_embed_max_size")  # a side, in patches
    longest = places and places * _grain(pipe)
    if longest and max(map(max, found)) > longest:
        raise InputError(f"--aspect_buckets: this model takes sides of up to {longest} pixels: pass --max_bucket_reso {longest}")
    return tuple(found)


def buckets_of(manifest, buckets):
    """-> width and height of the bucket of each picture; () without buckets."""
    if not buckets:
        return ()
    with ThreadPoolExecutor() as threads:
        return tuple(nearest_bucket(size, buckets) for size in threads.map(Example.size, manifest))


def bucket_table(job):
    """-> {"1024x768": how many pictures}, of the buckets that have any."""
    return {f"{width}x{height}": n for (width, height), n in sorted(Counter(job.shapes).items())}


def _megabytes(pipe, config):
    """Disk that the result will take, and some more; of a whole model two checkpoints, too: one stays until the next is whole."""
    if config.lora:
        return 50
    parts = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]
    result = sum(p.numel() for part in parts for p in part.parameters()) * DTYPES[config.save_dtype].itemsize
    every = USUAL_STEPS if config.checkpointing_steps is None else config.checkpointing_steps
    kept = bool(every) and (config.num_train_epochs is not None or config.max_train_steps >= every)
    state = 4 + (2 if config.use_8bit_adam else 8) + 4 * config.use_ema  # bytes a weight
    weights = pipe.components[family_of(pipe).denoiser].num_parameters()
    return round(50 + (result + kept * 2 * state * weights) / 1e6)


def _warn_of_long_captions(manifest, pipe):
    """Of several encoders the one counts that reads most."""
    tokenizer, limit = longest_reader(pipe)
    long = too_long(manifest.captions(), tokenizer, limit)
    if long and is_first_process():
        say(f"warning: {len(long)} captions are cut at the model's {limit} tokens, the first: {long[0]}")


def _trainable(config, pipe):
    """The parts to train, or LoRAs put on them; the start of a LoRA depends on the seed alone."""
    family = family_of(pipe)
    denoiser = pipe.components[family.denoiser]
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if not config.lora:
        denoiser.requires_grad_(True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            layers = config.lora_layers + (family.lora_layers if config.lora_layers == FinetuneConfig.lora_layers else ())
            add_lora(denoiser, config.rank, config.lora_alpha or config.rank, layers)
            for name in family.encoders if config.train_text_encoder else ():
                add_lora(pipe.components[name], config.rank, config.lora_alpha or config.rank, TEXT_LAYERS)
    trained = (family.denoiser, *(family.encoders if config.train_text_encoder else ()))
    return Predictor(pipe, trained, config.guidance_scale).train()
