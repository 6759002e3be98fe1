"""Detectors on the prompts of a file: who can be asked of what, scores.parquet, and the words that trigger.

The command is rotescope/commands/detect.py.
"""
import time
from collections import Counter
from dataclasses import asdict

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_output, output_folder, versions, write_json
from rotescope.common.parquet import write_table
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.contract.catalogue import words_of
from rotescope.mitigate.contract.families import denoiser_of, family
from rotescope.mitigate.detectors.prompt_scores import score_prompts, unserved
from rotescope.mitigate.detectors.registry import DETECTORS, get_detector
from rotescope.mitigate.detectors.training_image_recall import Recall
from rotescope.mitigate.detectors.trigger_tokens import attribute_tokens
from rotescope.mitigate.detectors.whitebox import WhiteBox
from rotescope.mitigate.prompts.prompt import HELDOUT, Prompt, is_manifest, load_prompts
from rotescope.mitigate.sampling.options import unique_names
from rotescope.mitigate.sampling.run_description import hashes_of
from rotescope.models.memory import check_differentiable
from rotescope.models.pipelines import check_model, open_model

SCORES = pa.schema([("detector", pa.string()), ("prompt_index", pa.int32()), ("prompt", pa.string()), ("group", pa.string()),
                    ("image_id", pa.string()), ("score", pa.float64())])
TOKENS = pa.schema([("prompt_index", pa.int32()), ("prompt", pa.string()), ("group", pa.string()), ("position", pa.int32()),
                    ("token", pa.string()), ("significance", pa.float64())])


def check_detection(config):
    """Raise InputError for whatever would stop the run later -> {name: NAME[:settings]} of the detectors."""
    check_output(config.output_dir, config.overwrite,
                 inputs=(*config.model_inputs, config.prompts, config.train_data, config.heldout_data),
                 texts=config.detector)
    check_model(config)
    if config.batch_size < 1 or not config.detector:
        raise InputError("batch_size must be 1 or more, and there must be a detector")
    if config.max_prompts is not None and config.max_prompts < 1:
        raise InputError(f"max_prompts={config.max_prompts}: take 1 prompt of each group or more")
    texts = [text for typed in config.detector for text in (DETECTORS if typed == "all" else (typed,))]
    for text in texts:
        get_detector(text)
    return dict(zip(unique_names(texts, "detector"), texts, strict=True))


def write_scores(config, beside=None):
    """Score as `config` says -> rows of scores.parquet. beside(folder, rows, run): writes more into the folder, run being what
    run.json says."""
    texts = check_detection(config)
    prompts, examples = load_prompts(config.prompts, config.groups, config.max_prompts), training_images(config)
    check_apart(config.output_dir, {e.file for e in examples.values()})
    prompts = [*prompts, *unseen_captions(config, prompts, examples)]
    texts = askable(texts, config, lambda detector: without_images(detector, prompts, examples))
    pipe = open_model(config)
    texts = askable(texts, config, lambda detector: unserved(detector, pipe))
    if config.tokens and family(pipe) not in WhiteBox.families:
        raise InputError(f"--tokens looks inside Stable Diffusion 1, 2 and XL, not {type(pipe).__name__}: leave it out")
    if config.tokens:
        check_differentiable({"unet": denoiser_of(pipe)}, "--tokens")
    totals = {name: images_of(get_detector(text), prompts, examples) for name, text in texts.items()}
    scored, seconds, attributed = {}, {}, []
    with (output_folder(config.output_dir, config.overwrite) as draft,
          progress_bars(totals | {"tokens": 4 * len(prompts) * config.tokens}) as advance):
        for name, text in texts.items():
            started = time.perf_counter()
            scored[name] = list(score_prompts(pipe, prompts, get_detector(text), examples=examples, seed=config.seed,
                                              batch_size=config.batch_size, on_image=lambda name=name: advance(name)))
            seconds[name] = (time.perf_counter() - started) / sum(score is not None for score in scored[name])
        if config.tokens:
            attributed = list(attribute_tokens(pipe, prompts, seed=config.seed, batch_size=config.batch_size,
                                               on_image=lambda: advance("tokens")))
            write_table(pa.Table.from_pylist(_token_rows(prompts, attributed), TOKENS), draft / "tokens.parquet", kind="tokens")
        rows, run = _score_rows(prompts, scored), _about(config, texts, prompts, seconds)
        write_table(pa.Table.from_pylist(rows, SCORES), draft / "scores.parquet", kind="scores")
        write_json(draft / "run.json", run)
        if beside:
            beside(draft, rows, run)
    return rows


# ----- who is asked of what

def askable(texts, config, objection):
    """The detectors {name: text} to which objection(detector), a line that says what is wrong or None, has none.

    What `all` brought along is left out, what was named is an InputError.
    """
    found = {name: objection(get_detector(text)) for name, text in texts.items()}
    wrong = next((why for name, why in found.items() if why and texts[name] in config.detector), None)
    if wrong:
        raise InputError(wrong)
    return {name: text for name, text in texts.items() if not found[name]}


def without_images(detector, prompts, examples):
    if isinstance(detector, Recall) and not any(p.image_id in examples for p in prompts):
        return ("recall looks at the training images that prompts belong to: name them with --train_data, and prompts with their "
                "image_id, such as a checkpoint's manifest.parquet")
    return None


def images_of(detector, prompts, examples):
    """How many images a detector looks at."""
    return detector.n * sum(p.image_id in examples or not isinstance(detector, Recall) for p in prompts)


def unseen_captions(config, prompts, examples):
    """Different captions of heldout_data that no prompt and no training image bears, the first ones."""
    if config.heldout_data is None:
        return []
    known = {p.text for p in prompts}.union(*(e.captions for e in examples.values()))
    unseen = [caption for caption in load_source(config.heldout_data).captions() if caption not in known]
    if not unseen:
        raise InputError(f"every caption of --heldout_data {config.heldout_data} is a prompt's or a training image's too: name "
                         "data that the model never saw")
    largest = Counter(p.group for p in prompts).most_common(1)[0][1]
    return [Prompt(caption, HELDOUT) for caption in unseen[:config.max_prompts or largest]]


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


def _about(config, texts, prompts, seconds):
    """What run.json says."""
    return {"config": plain(config), "model": str(config.model), "versions": versions(), "prompts": len(prompts),
            "hashes": hashes_of(config, prompts),
            "detectors": {name: _about_detector(text) | {"seconds": seconds[name]} for name, text in texts.items()}}


def _about_detector(text):
    """denoiser_rows counts those of one prompt."""
    detector, entry = get_detector(text), DETECTORS[text.partition(":")[0]]
    return {"name": text, "settings": asdict(detector), "paper": entry.paper, "needs": words_of(entry.needs),
            "denoiser_rows": detector.rows}
