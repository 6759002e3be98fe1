"""Prompts × seeds × mitigations: image by image into memory, or into a folder that a later run can finish."""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_output
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.adapters.compatibility import check_chain, check_scale
from rotescope.mitigate.contract.families import guidance_scale_of
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.prompts.prompt import Prompt, is_manifest, load_prompts
from rotescope.mitigate.sampling.conditioning import check_embedding_words
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.options import check_sampling, named_policies
from rotescope.mitigate.sampling.picture_size import prompts_in_buckets, wants_buckets
from rotescope.mitigate.sampling.resumable_folder import check_same, is_finished, resumable_folder
from rotescope.mitigate.sampling.run_description import describe, sample_described
from rotescope.mitigate.sampling.sampler import check_settings, sample
from rotescope.mitigate.sampling.trained_use import sampled_as_trained
from rotescope.models.pipelines import check_model, chosen_device, load_pipeline, open_model


@dataclass(frozen=True)
class GeneratedImage:
    """One image and how it came about.

    Attributes
    ----------
    image : PIL.Image.Image
        The picture.
    prompt : Prompt
        Its text, and the group and training image that it belongs to, if known.
    mitigation : str
        The name, with its settings where two of one name were asked for.
    seed : int
        As it was asked for.
    noise_seed : int
        Of the image's own torch.Generator: prompt and seed decide.
    denoiser_rows, denoiser_calls : int
        Rows of the denoiser's batch that it cost, and calls in which it took part; plain guidance costs two rows
        a call.
    transition_timestep : float or None
        When guidance set in; None where that never happened.
    prediction_gaps : list of float
        ‖eps_cond − eps_uncond‖₂ at each of `timesteps`, in ε; NaN where one of the two was not computed.
    timesteps : list of float
        From noise to picture.
    active : bool or None
        Whether the mitigation changed anything of this image; where not, it is the one that the pipeline makes without it.
        None where that is not known.
    """
    image: Image.Image
    prompt: Prompt
    mitigation: str
    seed: int
    noise_seed: int
    denoiser_rows: int
    denoiser_calls: int
    transition_timestep: float | None
    prediction_gaps: list[float]
    timesteps: list[float]
    active: bool | None = None


def generate(pipe: Any, prompts: str | Iterable[str | Prompt],
             mitigations: str | Mitigation | Sequence[str | Mitigation] = ("none",),
             seeds: Iterable[int] = (0,), *, guidance_scale: float | None = None, num_inference_steps: int = 50,
             resolution: int | str | tuple[int, int] | None = None, negative_prompt: str = "", clip_skip: int | None = None,
             max_token_length: int | None = None, batch_size: int = 64) -> Iterator[GeneratedImage]:
    """Images of prompts under mitigations, one after the other; nothing is written.

    The same prompt, seed and settings give the image that `rotescope generate` makes.

    Parameters
    ----------
    pipe : diffusers pipeline, str or Path
        A pipeline, or a model's folder or name on the hub, which is opened in fp32, on a GPU where there is one.
    prompts : str, or an iterable of str or Prompt
        A text that comes twice gets another noise the second time.
    mitigations : str or Mitigation, or a sequence of them
        Names of `list_mitigations`, perhaps with settings ("og-stp:before=-3"), or objects.
    seeds : iterable of int
        One image a prompt and a seed.
    guidance_scale : float, optional
        In diffusers' convention, where 1 is off and serves no mitigation; unless given 7.5 on Stable Diffusion 1, 2, XL and 3
        and on PixArt, and the pipeline's own default on others.
    num_inference_steps : int
        Of the pipeline's own scheduler.
    resolution : int, str or pair of int, optional
        A side in pixels, or width and height ("832x1216"); the model's own unless given.
    negative_prompt : str
        What guidance leads away from, beside every prompt.
    clip_skip : int, optional
        Which layer of the text encoder conditions, as trainers count: 1 is the last, 2 the last but one.
    max_token_length : int, optional
        Tokens of a caption that are read, in chunks as trainers read them: 75, 150 or 225.
    batch_size : int
        Images at a time.

    Yields
    ------
    GeneratedImage
        Mitigation by mitigation, then prompt by prompt, then seed by seed.

    Raises
    ------
    InputError
        At the call, for whatever cannot be sampled; nothing is computed then.

    Examples
    --------
    >>> from rotescope import generate
    >>> settings = {"seeds": [0, 1], "num_inference_steps": 2}
    >>> for found in generate(pipe, ["a cat on a blue background"], ["none", "og-stp"], **settings):
    ...     print(found.mitigation, found.seed, found.image.size)
    none 0 (64, 64)
    none 1 (64, 64)
    og-stp 0 (64, 64)
    og-stp 1 (64, 64)
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    given = [p if isinstance(p, Prompt) else Prompt(p) for p in texts]
    chosen = named_policies([mitigations] if isinstance(mitigations, str | Mitigation) else list(mitigations))
    settings = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps,
                "batch_size": batch_size}
    seeds = tuple(seeds)
    check_sampling(SimpleNamespace(seeds=seeds, mitigation=tuple(chosen), **settings))
    if wants_buckets(resolution):
        raise InputError("resolution='buckets' is for a manifest's prompts: give each Prompt a size instead")
    if not given or not chosen:
        raise InputError("there is nothing to generate: give at least one prompt and one mitigation")
    opened = _opened(pipe)
    settings["guidance_scale"] = guidance_scale_of(opened, guidance_scale)
    for mitigation in chosen.values():
        check_chain(opened, [mitigation])
        check_scale(opened, mitigation, settings["guidance_scale"])
    more = {"resolution": resolution, "negative_prompt": negative_prompt, "clip_skip": clip_skip,
            "max_token_length": max_token_length}
    check_settings(opened, given, settings | more)
    return _generated(opened, given, chosen, seeds, **settings, **more)


def _opened(pipe):
    if not isinstance(pipe, str | Path):
        return pipe
    return load_pipeline(str(pipe)).to(chosen_device("auto"))


def _generated(pipe, prompts, policies, seeds, **settings):
    """The loop of `generate`, after its checks. The pipeline's bars are afterwards as they were."""
    bars = getattr(pipe, "_progress_bar_config", {})
    kept = EncodedTexts()
    try:
        for name, policy in policies.items():
            for found in sample(pipe, prompts, policy, seeds, kept=kept, **settings):
                told = {key: value for key, value in vars(found).items() if key != "prompt_index"}
                yield GeneratedImage(prompt=prompts[found.prompt_index], mitigation=name, **told)
    finally:
        pipe.set_progress_bar_config(**bars)


# ----- into a folder

def check_generation(config, training=None):
    """Raise InputError for whatever would stop the run later -> {name: mitigation}.

    training: the training images for mitigations that need some and name none, as named_policies has it.
    """
    if not (config.resume and is_finished(config.output_dir)):
        check_output(config.output_dir, config.overwrite,
                     inputs=(*config.model_inputs, config.prompts, training), texts=config.mitigation)
    check_model(config)
    check_sampling(config)
    return named_policies(config.mitigation, training)


def generate_to_folder(config):
    """Sample as a GenerateConfig says -> the samples folder. Every process of `accelerate launch` calls it."""
    config = sampled_as_trained(config, with_pictures=is_manifest(config.prompts))
    policies = check_generation(config)
    prompts = prompts_in_buckets(config, load_prompts(config.prompts, config.groups, config.max_prompts),
                                 Manifest.load(config.prompts) if is_manifest(config.prompts) else ())
    device = chosen_device(config.device)
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))  # the fastest process may wait long
    about = describe(config, prompts, policies) if state.is_main_process else {}
    if config.resume and is_finished(config.output_dir):
        if state.is_main_process:
            check_same(Path(config.output_dir), about)
        return Path(config.output_dir)
    pipe = open_model(replace(config, device=str(state.device)) if device == "cuda" else config)
    check_settings(pipe, prompts, config.sampling)
    check_embedding_words(config.embedding, prompts)
    with resumable_folder(config.output_dir, about, state, overwrite=config.overwrite,
                          resume=config.resume) as draft:
        sample_described(config, pipe, prompts, policies, draft, about, state)
    return Path(config.output_dir)
