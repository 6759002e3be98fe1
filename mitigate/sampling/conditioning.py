"""What the text side of a pipeline is told beside the prompts: negative prompt, skipped layers, captions beyond 77 tokens.

Trainers cut a caption into chunks of 75 tokens, encode each with a start and an end of its own, and set the hidden states side by
side: 77, 152 or 227 of them for 75, 150 or 225 tokens (kohya-ss/sd-scripts, --max_token_length). Pooled text is that of the first
chunk.
"""
import re
from collections import Counter
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import family
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt
from rotescope.mitigate.sampling.embedded_prompts import embedded_inputs
from rotescope.mitigate.sampling.encoded_texts import side_by_side
from rotescope.models.adapters.embeddings import word_of
from rotescope.models.model_files import find_embedding

CLIP_FAMILIES = ("sd", "sdxl")    # their text is CLIP's alone, so layers can be skipped and chunks be joined
NAMED = 3                         # of the prompts that a line is about
MARKUP = re.compile(r"\([^()]+:\d+(\.\d+)?\)|\{[^{}]*\|[^{}]*\}|__[\w/-]+__")   # (word:1.2), {a|b}, __name__


@dataclass(frozen=True)
class Conditioning:
    """How prompts are read, for a whole run."""
    negative_prompt: str = ""
    clip_skip: int | None = None          # as trainers count: 1 is the last layer, 2 the last but one; None: the model's own
    max_token_length: int | None = None   # tokens that a caption may have, start and end apart; None: one chunk

    @property
    def skipped(self):
        """Whether it asks for another layer than the last, which SDXL never takes."""
        return self.clip_skip not in (None, 1)


def check_conditioning(pipe, given):
    """InputError for what the pipeline's text encoders cannot do."""
    kind = family(pipe)
    for option, asked in (("clip_skip", given.skipped), ("max_token_length", given.max_token_length is not None)):
        if asked and kind not in CLIP_FAMILIES:
            raise InputError(f"--{option} is for Stable Diffusion 1, 2 and XL, whose text is CLIP's alone: leave it out for "
                             f"{type(pipe).__name__}")
    layers = min(e.config.num_hidden_layers for e in _encoders(pipe)) if given.skipped else 0
    if given.skipped and not 1 <= given.clip_skip <= layers:
        raise InputError(f"--clip_skip {given.clip_skip}: take 1 (the last layer) to {layers}, the layers of this text encoder")
    chunk = chunk_width(pipe) if given.max_token_length is not None else 1
    if given.max_token_length is not None and (given.max_token_length < chunk or given.max_token_length % chunk):
        raise InputError(f"--max_token_length {given.max_token_length}: take {chunk}, {2 * chunk} or {3 * chunk}, whole chunks "
                         "of this model's tokenizer")


def conditions(pipe, prompts, given, kept):
    """Prompts, all of one kind -> the pipeline's arguments: texts, or the embeddings that stand in their place.

    kept: EncodedTexts, of earlier calls or empty.
    """
    negative = {"negative_prompt": [given.negative_prompt] * len(prompts)} if given.negative_prompt else {}
    if isinstance(prompts[0], EmbeddedPrompt):
        if family(pipe) != "sd":
            return embedded_inputs(pipe, prompts, kept, given.negative_prompt)
        with torch.no_grad():
            uncond = _encoded(pipe, [given.negative_prompt], given, kept)[0]
        cond = torch.stack([p.embedding for p in prompts])
        return {"prompt_embeds": cond, "negative_prompt_embeds": uncond.expand_as(cond)}
    texts = [p.text for p in prompts]
    if _layers_left_out(pipe, given) or given.max_token_length and given.max_token_length > chunk_width(pipe):
        return own_embeddings(pipe, texts, given, kept)
    return {"prompt": texts, **negative}


def _layers_left_out(pipe, given):
    """-> diffusers' clip_skip, or None. Stable Diffusion counts from the last layer, XL from the last but one."""
    skip = given.clip_skip or 1
    return max(skip - (2 if family(pipe) == "sdxl" else 1), 0) or None


# ----- long captions

def _encoders(pipe):
    return [e for e in (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")) if e is not None]


def _tokenizers(pipe):
    return [t for t in (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")) if t is not None]


def chunk_width(pipe):
    """Tokens of a caption that one pass of its text encoder takes: 75 for CLIP."""
    return min(t.model_max_length for t in _tokenizers(pipe)) - 2


@torch.no_grad()
def own_embeddings(pipe, texts, given, kept):
    """Texts -> the pipeline's embedding arguments, of chunks · width + 2 hidden states a text, negative ones likewise. Skipped
    layers come this way too: Stable Diffusion's pipeline of diffusers 0.42 cannot skip any under transformers 5.23."""
    cond, pooled = _encoded(pipe, texts, given, kept)
    if family(pipe) == "sd":
        uncond, _ = _encoded(pipe, [given.negative_prompt] * len(texts), given, kept)
        return {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    if not given.negative_prompt and pipe.config.force_zeros_for_empty_prompt:
        uncond, pooled_uncond = torch.zeros_like(cond), torch.zeros_like(pooled)
    else:
        uncond, pooled_uncond = _encoded(pipe, [given.negative_prompt] * len(texts), given, kept)
    return {"prompt_embeds": cond, "negative_prompt_embeds": uncond, "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": pooled_uncond}


def _encoded(pipe, texts, given, kept):
    """Each text once -> what _chunked gives for all of them."""
    rows = [kept.row((text, given), lambda text=text: _chunked(pipe, [text], given)) for text in texts]
    return tuple(x if x is None else x.to(pipe._execution_device) for x in side_by_side(rows))


def _chunked(pipe, texts, given):
    """-> hidden states (n, chunks · width + 2, d) of all text encoders side by side, and the last one's pooled text (n, d')."""
    found, pooled = [], None
    for tokenizer, encoder in zip(_tokenizers(pipe), _encoders(pipe), strict=True):
        width = chunk_width(pipe)
        ids = _chunks(pipe, tokenizer, texts, (given.max_token_length or width) // width).to(pipe._execution_device)
        out = encoder(ids.flatten(0, 1), output_hidden_states=True)          # (n · chunks, width + 2)
        hidden = _layer(pipe, encoder, out, given).unflatten(0, ids.shape[:2])   # (n, chunks, width + 2, d)
        found.append(torch.cat([hidden[:, 0, :1], hidden[:, :, 1:-1].flatten(1, 2), hidden[:, -1, -1:]], 1))
        pooled = out[0].unflatten(0, ids.shape[:2])[:, 0] if out[0].ndim == 2 else None
    return torch.cat(found, -1), pooled


def _layer(pipe, encoder, out, given):
    """The hidden states that condition the denoiser, as the pipelines of diffusers choose them."""
    left_out = _layers_left_out(pipe, given)
    if family(pipe) == "sdxl":
        return out.hidden_states[-2 - (left_out or 0)]
    if not left_out:
        return out[0]
    norm, hidden = getattr(encoder, "text_model", encoder).final_layer_norm, out.hidden_states[-1 - left_out]
    return torch.nn.functional.layer_norm(hidden, norm.normalized_shape, norm.weight.to(hidden), norm.bias.to(hidden), norm.eps)


def _chunks(pipe, tokenizer, texts, chunks):
    """-> token ids (n, chunks, width + 2): each piece of `width` tokens between a start and an end, filled up as CLIP's own."""
    width, rows = tokenizer.model_max_length - 2, []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for text in texts:
        ids = tokenizer(pipe.maybe_convert_prompt(text, tokenizer), add_special_tokens=False, truncation=False).input_ids
        pieces = [ids[k * width:(k + 1) * width] for k in range(chunks)]
        rows.append([[tokenizer.bos_token_id, *p, tokenizer.eos_token_id, *[pad] * (width - len(p))] for p in pieces])
    return torch.tensor(rows)


def check_embedding_words(embeddings, prompts):
    """InputError for a textual inversion whose word stands in no prompt: it would change no image, in silence."""
    for name in embeddings or ():
        word = word_of(*find_embedding(name))
        if not any(word in p.text for p in prompts):
            raise InputError(f"--embedding {name}: no prompt holds its word {word}, so it would change no image; write the "
                             "word into the prompts, or leave the embedding out")


# ----- what is said of them

def prompt_lines(pipe, prompts, given):
    """Sentences on what the model does not see of these prompts, or sees as text."""
    texts = list(dict.fromkeys(p.text for p in prompts if not isinstance(p, EmbeddedPrompt)))
    return [*_cut_lines(pipe, texts, given), *_markup_lines(texts)]


def _cut_lines(pipe, texts, given):
    tokenizers = _tokenizers(pipe)
    if family(pipe) not in CLIP_FAMILIES or not tokenizers or not texts:
        return []
    limit, tokenizer = given.max_token_length or chunk_width(pipe), tokenizers[0]
    ids = tokenizer(texts, add_special_tokens=False, truncation=False).input_ids
    long = [text for text, row in zip(texts, ids, strict=True) if len(row) > limit]
    if not long:
        return []
    seen = Counter(tuple(row[:limit]) for row in ids)
    same = [text for text, row in zip(texts, ids, strict=True) if seen[tuple(row[:limit])] > 1]
    more = f"; {len(same):,} prompts became the same as another by it: {_named(same)}" if same else ""
    verb = "is" if len(long) == 1 else "are"
    return [f"{len(long):,} of {len(texts):,} prompts {verb} longer than {limit} tokens, and what follows is cut "
            f"(--max_token_length {limit + chunk_width(pipe)} reads more, if the model was trained so){more}"]


def _markup_lines(texts):
    marked = [text for text in texts if MARKUP.search(text)]
    return [f"weights such as (word:1.2), choices such as {{a|b}} and wildcards such as __name__ are read as text, as trainers "
            f"read captions; prompts with some: {len(marked):,}, {_named(marked)}"] if marked else []


def _named(texts):
    shown = ", ".join(repr(t if len(t) <= 60 else t[:57] + "…") for t in texts[:NAMED])
    return shown + (f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else "")
