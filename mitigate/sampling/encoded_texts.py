"""Each text encoded once, for all mitigations and seeds of a run.

Inside `kept.serving(pipe)` the pipeline's own `encode_prompt` gives, of each row of its call, what it gave the first time. So the
pipeline lays embeddings, pooled text and masks where its class wants them, and a mitigation that changes texts or embeddings
works as without. A text is encoded alone, whatever stands beside it in a batch: an image may differ by what batches round.
"""
import inspect
import re
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rotescope.mitigate.contract.families import FAMILIES, family

LIMIT = 4 * 2 ** 30                                      # bytes of main memory: what was used longest ago is encoded anew
TEXT, NEGATIVE = re.compile(r"prompt(_\d)?"), re.compile(r"negative_prompt(_\d)?")
GUIDED = "do_classifier_free_guidance"                   # an argument of those that encode both texts in one call


@contextmanager
def encoding_by(pipe, encode):
    """Inside, `encode` is the pipeline's encode_prompt; afterwards it is as it was."""
    before, own = pipe.encode_prompt, "encode_prompt" in vars(pipe)
    pipe.encode_prompt = encode
    try:
        yield
    finally:
        if own:
            pipe.encode_prompt = before
        else:
            del pipe.encode_prompt


class EncodedTexts:
    """What was made of each text, on the CPU."""

    def __init__(self, limit: int = LIMIT):
        self.limit, self.size = limit, 0
        self.rows: OrderedDict[Any, Any] = OrderedDict()
        self.pairs: dict[Any, Any] = {}                  # the first text that was encoded beside a negative one, and both

    def row(self, key, make):
        """What make() gives for one text, remembered under `key`."""
        if key not in self.rows:
            made = self.rows[key] = _moved(make(), "cpu")
            self.size += _bytes(made)
            while self.size > self.limit and len(self.rows) > 1:
                self.size -= _bytes(self.rows.popitem(last=False)[1])
        self.rows.move_to_end(key)
        return self.rows[key]

    @contextmanager
    def serving(self, pipe: Any):
        """Inside, `pipe` encodes no text twice. A pipeline of no known family is left alone."""
        if family(pipe) not in FAMILIES or not hasattr(pipe, "encode_prompt"):
            yield
            return
        encode = pipe.encode_prompt
        names = inspect.signature(encode)

        def served(*args, **kwargs):
            bound = names.bind(*args, **kwargs).arguments
            return self._encoded(pipe, encode, {**bound, **bound.pop("kwargs", {})})
        with encoding_by(pipe, served):
            yield

    def _encoded(self, pipe, encode, arguments):
        texts, negatives, rest = _sorted_out(arguments)
        if torch.is_grad_enabled() or not _plain(arguments):
            return encode(**arguments)
        found = [self._one(encode, _at(texts, i), _at(negatives, i), rest) for i in range(_count(texts))]
        joined = side_by_side(found)
        return encode(**arguments) if joined is None else _moved(joined, rest.get("device") or pipe._execution_device)

    def _one(self, encode, texts, negatives, rest):
        """What encode_prompt gives for one text, and the negative one beside it."""
        told = repr(sorted((name, value) for name, value in rest.items()))
        if not rest.get(GUIDED):
            return self.row((repr(texts), told), lambda: encode(**_fresh(texts), **_fresh(negatives), **rest))
        first = self.pairs.setdefault((repr(negatives), told), (texts, None))
        if first[0] == texts:                            # of which the negative one is taken, too
            if first[1] is None:
                first = self.pairs[repr(negatives), told] = (
                    texts, _moved(encode(**_fresh(texts), **_fresh(negatives), **rest), "cpu"))
            return first[1]
        alone = self.row((repr(texts), told), lambda: encode(**_fresh(texts), **rest | {GUIDED: False}))
        return tuple(both if _missing(cond) else cond for cond, both in zip(alone, first[1], strict=True))


# ----- the arguments of encode_prompt

def _sorted_out(arguments):
    """-> texts, negative texts and what else is given."""
    texts = {name: value for name, value in arguments.items() if TEXT.fullmatch(name)}
    negatives = {name: value for name, value in arguments.items() if NEGATIVE.fullmatch(name)}
    return texts, negatives, {k: v for k, v in arguments.items() if k not in texts and k not in negatives}


def _plain(arguments):
    """Are there texts, one an image, and nothing that was encoded before?"""
    lengths = {len(v) for k, v in arguments.items() if (TEXT.fullmatch(k) or NEGATIVE.fullmatch(k)) and isinstance(v, list)}
    return (arguments.get("prompt") is not None and len(lengths) < 2 and (arguments.get("num_images_per_prompt") or 1) == 1
            and not any(isinstance(value, torch.Tensor) or "embeds" in name and value is not None
                        for name, value in arguments.items()))


def _count(texts):
    return len(texts["prompt"]) if isinstance(texts["prompt"], list) else 1


def _at(texts, i):
    """Those of one row, as lists of one; a text that counts for all stays what it is."""
    return {name: [value[i]] if isinstance(value, list) else value for name, value in texts.items()}


def _fresh(texts):
    """Lists of their own: Z-Image's pipeline writes into those that it is handed."""
    return {name: list(value) if isinstance(value, list) else value for name, value in texts.items()}


# ----- what it gives

def side_by_side(rows: list[Any]) -> Any:
    """What encode_prompt gave for one text each -> what it gives for all; None where texts of several lengths have no mask."""
    first = rows[0]
    if isinstance(first, tuple):
        columns = list(zip(*rows, strict=True))
        if _uneven(columns[0]):
            return _padded(*columns) if len(columns) == 2 and not any(map(_is_embedding, columns[1])) else None
        joined = [side_by_side(list(column)) for column in columns]
        return None if any(one is None and two is not None for one, two in zip(joined, first, strict=True)) else tuple(joined)
    if isinstance(first, list):                          # an embedding an entry
        return [entry for row in rows for entry in row]
    if not isinstance(first, torch.Tensor):
        return first
    if _uneven(rows):
        return None
    if len(first) == 1:
        return torch.cat(rows)
    return torch.cat(rows, 1) if first.dim() == 4 else first    # HiDream's layers come before its rows; places have no rows


def _uneven(rows):
    return isinstance(rows[0], torch.Tensor) and len({row.shape for row in rows}) > 1


def _is_embedding(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _padded(embeddings, masks):
    """Texts of several lengths and what of each is valid, None for all of it, as Qwen-Image's and NucleusMoE's pipelines have."""
    valid = [torch.ones(len(e[0]), dtype=torch.long) if m is None else m[0] for e, m in zip(embeddings, masks, strict=True)]
    return pad_sequence([e[0] for e in embeddings], batch_first=True), pad_sequence(valid, batch_first=True)


def _missing(value):
    """An unconditional part that was not asked for."""
    return value is None or isinstance(value, list) and not value


def _moved(value, device):
    if isinstance(value, tuple | list):
        return type(value)(_moved(entry, device) for entry in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _bytes(value):
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
