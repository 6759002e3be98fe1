"""Prompts of which the model sees an embedding: what a pipeline is given beside it, and in which arguments.

Pooled text, masks and the negative text's embeddings are those that the pipeline's own call encodes for the words that the
embedding belongs to. contract/text_inputs.py says what each family calls them.
"""
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import call_parameters, family, guidance_arguments, two_branch_scale
from rotescope.mitigate.contract.text_inputs import EMBEDDING, NEGATIVE, TEXT_INPUTS
from rotescope.mitigate.denoiser.probe import first_denoiser_call
from rotescope.mitigate.sampling.encoded_texts import encoding_by


def text_inputs(pipe, texts, kept, negative="", side=None):
    """n texts -> the pipeline's arguments that hold them encoded, {name: n rows or None}, negative ones too; and the arguments of
    the denoiser's first call. kept: EncodedTexts, of earlier calls or empty; side: of the pictures in pixels, or None."""
    arguments: dict[str, Any] = guidance_arguments(pipe, len(texts), two_branch_scale(pipe))
    arguments |= {"negative_prompt": [negative] * len(texts)} if negative else {}
    arguments |= {"height": side, "width": side} if side else {}
    row, returned = TEXT_INPUTS[family(pipe)], []
    with kept.serving(pipe), _listened(pipe, returned):
        call = first_denoiser_call(pipe, prompt=list(texts), num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                                   **arguments)
    named = [pair for names, values in zip(row.returned, returned, strict=False) for pair in zip(names, values, strict=False)]
    taken = call_parameters(type(pipe))
    return {name: value for name, value in named if name in taken}, call


@contextmanager
def _listened(pipe, returned):
    """Inside, `returned` gets what each call of the pipeline's encode_prompt returns, as a tuple."""
    encode = pipe.encode_prompt

    @wraps(encode)
    def heard(*args, **kwargs):
        found = encode(*args, **kwargs)
        returned.append(found if isinstance(found, tuple) else (found,))
        return found
    with encoding_by(pipe, heard):
        yield


def embedded_inputs(pipe, prompts, kept, negative=""):
    """EmbeddedPrompts -> the arguments that ask the pipeline for an image each. InputError where its family is not known."""
    if family(pipe) not in TEXT_INPUTS:
        raise InputError(f"{type(pipe).__name__} is not given embeddings: known are those of {', '.join(TEXT_INPUTS)}")
    arguments, _ = text_inputs(pipe, [p.words for p in prompts], kept, negative)
    arguments[EMBEDDING] = _with_rows(arguments[EMBEDDING], [p.embedding for p in prompts])
    named = "negative_prompt" in call_parameters(type(pipe))   # some have a default, which meets no embedding
    return {"negative_prompt": None} | arguments if named else arguments


def positive_inputs(arguments):
    """Without those of the negative text, and without what is None."""
    return {name: value for name, value in arguments.items() if not name.startswith(NEGATIVE) and value is not None}


def negative_inputs(arguments):
    """Those of the negative text alone, under the names of the others."""
    return {name.removeprefix(NEGATIVE): value for name, value in arguments.items() if name.startswith(NEGATIVE)
            and value is not None}


def _with_rows(encoded, embeddings):
    """Encoded texts, each row's embedding in its place; what fills a row up behind it stays."""
    if isinstance(encoded, list):
        return [new.to(old) for new, old in zip(embeddings, encoded, strict=True)]
    changed = encoded.clone()
    for row, embedding in zip(changed, embeddings, strict=True):
        row[:len(embedding)] = embedding.to(row)
    return changed


def rows_repeated(value, times):
    """Each row of a tensor (n, …) or a list `times` times."""
    return [v for v in value for _ in range(times)] if isinstance(value, list) else value.repeat_interleave(times, 0)
