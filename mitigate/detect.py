"""Score prompts by how memorized they are, before any image is compared with the training images.

    rotescope detect --model runs/demo/checkpoint --prompts runs/demo/checkpoint/manifest.parquet --output_dir runs/detect
    rotescope detect --prompts prompts.txt --detector magnitude:n=1,steps=5 sail edges --tokens --output_dir runs/detect
    rotescope detect --model runs/demo/checkpoint --prompts runs/demo/checkpoint/manifest.parquet --detector recall --output_dir d

Detectors: magnitude, layout, drop, anisotropy, sail, bright-ending, entropy-d, entropy-e, confidence (these look inside), edges,
cliques (these need images only), recall (this needs the training images, too, which a manifest names). Each may carry settings,
n (seeds a prompt) among them. Writes scores.parquet, one row a prompt and detector, higher = more memorized, and under --tokens
the words that trigger, tokens.parquet. Where the prompts have groups, as those of a manifest with a duplication plan have, JSON
on stdout says how well each detector tells duplicated prompts from the others.
"""
import time
from dataclasses import asdict, dataclass

import pyarrow as pa

from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.mitigate.detectors import DETECTORS, get_detector, score_prompts
from rotescope.mitigate.generate import hashes_of, is_manifest, load_prompts, unique_names
from rotescope.mitigate.mitigation import family
from rotescope.mitigate.recall import Recall
from rotescope.mitigate.tokens import attribute_tokens
from rotescope.mitigate.whitebox import WhiteBox
from rotescope.models import ModelOptions, check_model, open_model
from rotescope.parquet import write_table
from rotescope.progress import progress_bars
from rotescope.runs import check_apart, check_output, output_folder, versions, write_json
from rotescope.settings import plain

SCORES = pa.schema([("detector", pa.string()), ("prompt_index", pa.int32()), ("prompt", pa.string()), ("group", pa.string()),
                    ("image_id", pa.string()), ("score", pa.float64())])
TOKENS = pa.schema([("prompt_index", pa.int32()), ("prompt", pa.string()), ("group", pa.string()), ("position", pa.int32()),
                    ("token", pa.string()), ("significance", pa.float64())])


@dataclass(frozen=True)
class DetectConfig(ModelOptions):
    prompts: str
    """file of prompts, or a checkpoint's manifest.parquet"""
    output_dir: str
    """scores.parquet and run.json go here"""
    detector: tuple[str, ...] = ("magnitude",)
    """one or several, each perhaps with settings: magnitude:n=1,steps=5"""
    train_data: str | None = None
    """the training images, for recall; those of the prompts file unless given, if that is a manifest"""
    tokens: bool = False
    """also say how strongly each token triggers"""
    seed: int = 1000
    """first seed of each prompt; generate's default seeds are others, so that no detector sees the images that are judged"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which prompts of a manifest that has a duplication plan"""
    max_prompts: int | None = None
    """take only so many prompts of each group"""
    batch_size: int = 64
    """images at a time"""
    overwrite: bool = False
    """replace output_dir"""


def check(config):
    """Raise InputError for whatever would stop the run later -> {name: detector}."""
    check_output(config.output_dir, config.overwrite,
                 inputs=(config.model, config.lora, config.prompts, config.train_data, *config.detector))
    check_model(config)
    if config.batch_size < 1 or not config.detector:
        raise InputError("batch_size must be 1 or more, and there must be a detector")
    return dict(zip(unique_names(config.detector, "detector"), map(get_detector, config.detector), strict=True))


def detect(config):
    """Score as `config` says -> rows of scores.parquet."""
    detectors = check(config)
    prompts, examples = load_prompts(config.prompts, config.groups, config.max_prompts), training_images(config)
    check_apart(config.output_dir, {e.file for e in examples.values()})
    if any(isinstance(d, Recall) for d in detectors.values()) and not any(p.image_id in examples for p in prompts):
        raise InputError("recall looks at the training images that prompts belong to: name them with --train_data, and prompts "
                         "with their image_id, such as a checkpoint's manifest.parquet")
    pipe = open_model(config)
    if config.tokens and family(pipe) not in WhiteBox.families:
        raise InputError(f"--tokens looks inside Stable Diffusion 1, 2 and XL, not {type(pipe).__name__}: leave it out")
    totals = {name: d.n * len(prompts) for name, d in detectors.items()} | {"tokens": 4 * len(prompts) * config.tokens}
    scored, seconds, attributed = {}, {}, []
    with output_folder(config.output_dir, config.overwrite) as draft, progress_bars(totals) as advance:
        for name, detector in detectors.items():
            started = time.perf_counter()
            scored[name] = list(score_prompts(pipe, prompts, detector, examples=examples, seed=config.seed,
                                              batch_size=config.batch_size, on_image=lambda name=name: advance(name)))
            seconds[name] = (time.perf_counter() - started) / len(prompts)
        if config.tokens:
            attributed = list(attribute_tokens(pipe, prompts, seed=config.seed, batch_size=config.batch_size,
                                               on_image=lambda: advance("tokens")))
            write_table(pa.Table.from_pylist(_token_rows(prompts, attributed), TOKENS), draft / "tokens.parquet")
        rows = _score_rows(prompts, scored)
        write_table(pa.Table.from_pylist(rows, SCORES), draft / "scores.parquet")
        write_json(draft / "run.json", _about(config, detectors, prompts, seconds))
    return rows


def training_images(config):
    """-> {image_id: Example} of train_data, or of the prompts where they are a manifest."""
    if config.train_data or is_manifest(config.prompts):
        return {e.image_id: e for e in load_source(config.train_data or config.prompts)}
    return {}


def _score_rows(prompts, scored):
    return [{"detector": name, "prompt_index": i, **vars(p), "prompt": p.text, "score": score}
            for name, scores in scored.items() for i, (p, score) in enumerate(zip(prompts, scores, strict=True))]


def _token_rows(prompts, attributed):
    return [{"prompt_index": i, "prompt": p.text, "group": p.group, "position": k, "token": token, "significance": significance}
            for i, (p, tokens) in enumerate(zip(prompts, attributed, strict=True))
            for k, (token, significance) in enumerate(tokens, 1)]


def _about(config, detectors, prompts, seconds):
    """What run.json says; denoiser_rows counts those of one prompt."""
    entries = {name: DETECTORS[text.partition(":")[0]] for name, text in zip(detectors, config.detector, strict=True)}
    return {"config": plain(config), "model": str(config.model), "versions": versions(), "prompts": len(prompts),
            "hashes": hashes_of(config, prompts),
            "detectors": {name: {"settings": asdict(d), "paper": entries[name].paper, "needs": entries[name].needs,
                                 "denoiser_rows": d.rows, "seconds": seconds[name]} for name, d in detectors.items()}}

