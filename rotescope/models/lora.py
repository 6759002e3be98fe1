"""A LoRA on a pipeline, with an account of every key of its file: what attaches to nothing changes no image, in silence."""
import hashlib
from collections import Counter

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from rotescope.common.console import say
from rotescope.common.errors import InputError

NAMED = 3  # of the keys that are not used
NUMBERS = (".alpha", ".scale")  # keys of numbers that go with a layer


class _Traced(torch.Tensor):
    """A tensor that knows the keys which it was made of, whatever a conversion of names does: scale, cut, join."""
    keys: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        keys = frozenset[str]().union(*(t.keys for t in _tensors((args, kwargs or {}))))
        for tensor in _tensors(found):
            tensor.keys = keys
        return found


def _tensors(value):
    """Every traced tensor in nested lists, tuples and dicts."""
    if isinstance(value, _Traced):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def attach_lora(pipe, file, model, allow_unused=False):
    """Load the LoRA `file` into the pipeline of the model `model`. InputError if it is another model's, or if a key of it is not
    used and that is not allowed; if it is, they are named on stderr."""
    converted = {}
    convert = pipe.lora_state_dict

    def listened(given, **settings):
        """Once for the account, once for the loader."""
        for name, tensor in _dict_of(convert(_traced(file), **settings)).items():
            converted[name] = tensor.as_subclass(torch.Tensor), getattr(tensor, "keys", frozenset())
        return convert(given, **settings)

    pipe.lora_state_dict = listened
    try:
        pipe.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        if "size mismatch" in str(error):
            raise InputError(f"{file} is a LoRA of another model: its layers have other sizes than those of {model}") from error
        raise InputError(f"{file} cannot be loaded into {model} ({error}): name one of that model, or copy it again") from error
    finally:
        del pipe.lora_state_dict
    if any(p.is_meta for p in _held(pipe)):
        raise InputError(f"{file} lacks weights of layers of which it has others, so it is not whole: copy it again")
    unused, n = unused_keys(pipe, file, converted)
    if len(unused) == n:  # the libraries only remark on it
        raise InputError(f"no weight of {file} belongs to {model}: it is a LoRA of another model, or of a format that is not "
                         "read")
    if unused:
        more = f" and {len(unused) - NAMED:,} more" if len(unused) > NAMED else ""
        told = f"{len(unused):,} of the {n:,} weights of {file} attach to nothing in {model}: {', '.join(unused[:NAMED])}{more}"
        if not allow_unused:
            raise InputError(f"{told}; name a LoRA of this model, or pass --allow_unused_keys to go on with the others")
        say(f"warning: {told}")


def unused_keys(pipe, file, converted):
    """-> the keys of the file that no layer of the pipeline took, sorted, and how many keys of weights there are.

    converted: {name: (tensor, the keys that it was made of)}, as the pipeline's own loader has it. A weight counts as taken
    if an adapter holds it, number for number.
    """
    keys = [key for key in load_file(file) if not key.endswith(NUMBERS)]
    held = _held(pipe)
    left = {dtype: Counter(_print(p, dtype) for p in held if p.dtype == dtype) for dtype in {p.dtype for p in held}}
    taken = set()
    for tensor, made_of in converted.values():
        here = next((dtype for dtype, prints in left.items() if prints[_print(tensor, dtype)]), None)
        if here:
            left[here][_print(tensor, here)] -= 1
            taken |= made_of
    return sorted(set(keys) - taken), len(keys)


def _held(pipe):
    """The weights of its adapters."""
    layers = [m for part in pipe.components.values() if isinstance(part, torch.nn.Module) for m in part.modules()
              if isinstance(m, BaseTunerLayer)]
    return [p for layer in layers for name, p in layer.named_parameters() if not name.startswith("base_layer.")]


def _print(tensor, dtype):
    """Of its shape and its numbers in that format."""
    numbers = tensor.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy()
    return tuple(tensor.shape), hashlib.sha1(numbers, usedforsecurity=False).digest()


def _traced(file):
    found = {}
    for key, tensor in load_file(file).items():
        found[key] = tensor.as_subclass(_Traced)
        found[key].keys = frozenset([key])
    return found


def _dict_of(found):
    """A loader's answer: the weights alone, or with alphas and metadata."""
    return found[0] if isinstance(found, tuple) else found
