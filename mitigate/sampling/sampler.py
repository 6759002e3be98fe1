"""Prompts × seeds × policies -> images and what happened in each step. One noise an image, whatever the batch around it.

A run is cut into batches once and for all; a batch is what is done, lost or shared out as a whole. So a run that is killed goes
on where it stopped, and several processes make, bit for bit, the images that one would make.
"""
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from rotescope.common.console import say
from rotescope.common.errors import InputError, RunError
from rotescope.common.outputs import write_json
from rotescope.common.parquet import read_table, write_table
from rotescope.common.whole_files import whole_file
from rotescope.mitigate.adapters.compatibility import check_chain, check_scale
from rotescope.mitigate.adapters.effects import distilled_lines, effect_lines, is_distilled, is_plain, without_mitigation_warnings
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.families import FAMILIES, family, guidance_arguments, guidance_scale_of
from rotescope.mitigate.contract.mitigation import settings_of
from rotescope.mitigate.sampling.conditioning import Conditioning, check_conditioning, conditions, prompt_lines
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import batches, calls_of, jobs_of
from rotescope.mitigate.sampling.picture_size import fixed_size

RECORD_SCHEMA = pa.schema([
    ("image", pa.string()), ("method", pa.string()), ("prompt_index", pa.int32()), ("prompt", pa.string()), ("seed", pa.int64()),
    ("noise_seed", pa.int64()), ("group", pa.string()), ("image_id", pa.string()), ("denoiser_rows", pa.int32()),
    ("denoiser_calls", pa.int32()), ("transition_timestep", pa.float64()), ("prediction_gaps", pa.list_(pa.float32())),
    ("timesteps", pa.list_(pa.float64())), ("active", pa.bool_()),
])
SHARDS = "unfinished"


@dataclass(frozen=True)
class Sample:
    image: Image.Image
    prompt_index: int
    seed: int
    noise_seed: int
    denoiser_rows: int
    denoiser_calls: int
    transition_timestep: float | None
    prediction_gaps: list[float]
    timesteps: list[float]
    active: bool


def sample(pipe, prompts, policy, seeds, *, batch_size=64, kept=None, **settings) -> Iterator[Sample]:
    """Yields one Sample for each of jobs_of(prompts, seeds). An image is what pipe(prompt, generator=torch.Generator()
    .manual_seed(noise_seed)) gives alone. kept: EncodedTexts that several calls share. settings: as sample_batch has them.
    """
    kept = EncodedTexts() if kept is None else kept
    for batch in batches(prompts, seeds, batch_size):
        yield from sample_batch(pipe, prompts, policy, batch, kept=kept, **settings)


def sample_batch(pipe, prompts, policy, batch, *, guidance_scale=None, num_inference_steps=50, resolution=None,
                 negative_prompt="", clip_skip=None, max_token_length=None, kept=None):
    """One batch of jobs -> a Sample for each. resolution: as parse_resolution has it; a prompt's own size comes first.
    negative_prompt, clip_skip, max_token_length: as Conditioning has them. kept: EncodedTexts of earlier calls. InputError for
    what the pipeline cannot make, RunError for images that hold no numbers."""
    given, some = Conditioning(negative_prompt, clip_skip, max_token_length), [prompts[i] for i, _, _ in batch]
    check_settings(pipe, some, dict(vars(given), resolution=resolution, num_inference_steps=num_inference_steps))
    pipe.set_progress_bar_config(disable=True)
    size = some[0].size or fixed_size(resolution)
    return [sample for jobs in calls_of(pipe, batch)
            for sample in _sample_call(pipe, prompts, policy, jobs, guidance_scale, num_inference_steps, size, given,
                                       EncodedTexts() if kept is None else kept)]


def _sample_call(pipe, prompts, policy, batch, guidance_scale, num_inference_steps, size, given, kept):
    """One call of the pipeline -> a Sample for each of its jobs. size: width and height in pixels, or None twice."""
    (width, height), some = size, [prompts[i] for i, _, _ in batch]
    arguments = guidance_arguments(pipe, len(batch), guidance_scale) | conditions(pipe, some, given, kept)
    arguments |= {} if width is None else {"height": height, "width": width}
    with kept.serving(pipe), mitigated(pipe, policy) as run:
        pixels = pipe(**arguments, num_inference_steps=num_inference_steps, output_type="np",
                      generator=[torch.Generator().manual_seed(s) for _, _, s in batch]).images  # (n, h, w, 3) in [0, 1]
    _check_numbers(pipe, pixels)
    images = VaeImageProcessor.numpy_to_pil(pixels)
    signals = zip(run.denoiser_rows, run.denoiser_calls, run.transition_timesteps, run.prediction_gaps, strict=True)
    return [Sample(image, *job, *signal, run.timesteps, active)  # type: ignore[call-arg]
            for job, image, signal, active in zip(batch, images, signals, run.active, strict=True)]


class NoNumbersError(RunError):
    """Images came out of a pipeline without numbers."""


def _check_numbers(pipe, pixels):
    """As 8-bit pictures NaN would be black, and black copies nothing."""
    gone = int((~np.isfinite(pixels)).any((1, 2, 3)).sum())
    if gone:
        dtype = str(pipe.vae.dtype).removeprefix("torch.")
        how = "the weights hold some that are none: copy the model again" if dtype == "float32" else \
            f"{dtype} overflows: pass --dtype fp32, or give the model a VAE that is made for half precision"
        raise NoNumbersError(f"{gone} of {len(pixels)} images came out of {type(pipe).__name__} without numbers (NaN); {how}")


def check_settings(pipe, prompts, settings):
    """InputError for settings, as sample_batch has them, that the pipeline cannot sample these prompts with."""
    check_conditioning(pipe, _conditioning(settings))
    for size in {p.size or fixed_size(settings.get("resolution")) for p in prompts}:
        _check_size(pipe, *size)
    fewest = FAMILIES[family(pipe)].fewest_steps if family(pipe) in FAMILIES else 1
    if settings.get("num_inference_steps", fewest) < fewest and not is_distilled(pipe):
        raise InputError(f"{type(pipe).__name__} takes one step for that of a distilled model: take {fewest} steps or more")


def _conditioning(settings):
    return Conditioning(**{f.name: settings[f.name] for f in fields(Conditioning) if f.name in settings})


def _check_size(pipe, width, height):
    """A transformer takes its latents in patches of 2 × 2."""
    grain = 8 if hasattr(pipe, "unet") else max(8, 2 * getattr(pipe, "vae_scale_factor", 8))
    for side in (width, height) if width else ():
        if side < grain or side % grain:
            size = width if width == height else f"{width}x{height}"
            raise InputError(f"resolution={size}: take multiples of {grain} for this model")


def sample_to_folder(pipe, prompts, policies, seeds, out, *, about=None, on_sample=None, state=None, batch_size=64, tell=True,
                     **settings):
    """Sample every policy ({name: policy}) -> images/, records.parquet and run.json in the folder `out`.

    Batches that `out` holds already are left as they are. state: accelerate's PartialState, where several processes share the
    work. Files are named by number and seed alone: a caption is never part of a path. `on_sample(method)` is called for each
    image that this process makes or finds. InputError, before anything is made, for a policy that cannot serve the pipeline.
    tell: say, in a line each, which policies changed nothing, and that a model is distilled.
    """
    settings["guidance_scale"] = guidance_scale_of(pipe, settings.get("guidance_scale"))
    for policy in policies.values():
        check_chain(pipe, [policy])
        check_scale(pipe, policy, settings["guidance_scale"])
    check_settings(pipe, prompts, settings)
    first = not state or state.is_main_process
    notes = distilled_lines(pipe) if not is_plain(policies.values()) else []
    for line in [*notes, *prompt_lines(pipe, prompts, _conditioning(settings))] if tell and first else ():
        say(f"note: {line}")
    cut = batches(prompts, seeds, batch_size)
    work = [(method, policy, batch, out / SHARDS / f"{m:03d}-{b:06d}.parquet")
            for m, (method, policy) in enumerate(policies.items()) for b, batch in enumerate(cut)]
    if not (out / "records.parquet").exists():
        kept = EncodedTexts()
        for method, policy, batch, shard in work[state.process_index::state.num_processes] if state else work:
            if not shard.exists():
                write_shard(pipe, prompts, method, policy, batch, shard, out, settings | {"kept": kept})
            for _ in batch if on_sample else ():
                on_sample(method)
    if state:
        state.wait_for_everyone()
    if first:
        merge_shards(out, [shard for *_, shard in work])
        write_json(out / "run.json", {
            "methods": {name: settings_of(p) for name, p in policies.items()}, "active": told_effects(out, policies, tell),
            "seeds": sorted({seed for _, seed in jobs_of(prompts, seeds)}), "batch_size": batch_size, **settings,
            **(about or {}), "guidance_scale": settings["guidance_scale"]})


def write_shard(pipe, prompts, method, policy, batch, shard, out, settings):
    """Images, then their records under a name that appears last: where a shard is, its images are."""
    with without_mitigation_warnings():
        rows, samples = [], sample_batch(pipe, prompts, policy, batch, **settings)
    (out / method / "images").mkdir(parents=True, exist_ok=True)
    for s in samples:
        file = f"{method}/images/P{s.prompt_index:05d}-S{s.seed}.png"
        s.image.save(out / file)
        prompt = prompts[s.prompt_index]
        rows.append({**vars(s), "image": file, "method": method, "prompt": prompt.text, "group": prompt.group,
                     "image_id": prompt.image_id})
    shard.parent.mkdir(exist_ok=True)
    _write_table(pa.Table.from_pylist(rows, RECORD_SCHEMA), shard)


def merge_shards(out, shards):
    """Shards -> records.parquet, in the order of the work. Those of an older version, with whole timesteps, are taken along."""
    if not (out / "records.parquet").exists():
        tables = (_as_records(read_table(shard)) for shard in shards)
        _write_table(pa.concat_tables([RECORD_SCHEMA.empty_table(), *tables]), out / "records.parquet")
    shutil.rmtree(out / SHARDS, ignore_errors=True)


def _as_records(table):
    """In today's schema; what an older version did not record is null."""
    for field in RECORD_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA)


def told_effects(out, policies, tell=True):
    """-> {method: images of which the mitigation changed anything; None where that was not recorded}. Says, in a line each, which
    did less than their names."""
    columns = ["method", "active", "transition_timestep", "timesteps"]
    rows, active, lines = read_table(out / "records.parquet").select(columns).to_pylist(), {}, []
    for method, policy in policies.items():
        own = [row for row in rows if row["method"] == method]
        known = not any(row["active"] is None for row in own)
        active[method] = sum(row["active"] for row in own) if known else None
        lines += effect_lines(method, [policy], [row["active"] for row in own], [row["transition_timestep"] for row in own],
                              own[0]["timesteps"]) if own and known else []
    for line in lines if tell else ():
        say(f"note: {line}")
    return active


def _write_table(table, file):
    """Whole or not at all."""
    with whole_file(file) as draft:
        write_table(table, draft, "snappy", kind="records")
