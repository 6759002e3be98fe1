"""Names of an adapter's layers turned into diffusers' by diffusers' own loaders, with an account of what became of each key."""
from typing import Any

import torch

from rotescope.models.tensor_files import load_tensors


class TracedTensor(torch.Tensor):
    """A tensor that knows the keys which it was made of, whatever a conversion of names does: scale, cut, join."""
    keys: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        keys = frozenset[str]().union(*(t.keys for t in _tensors((args, kwargs or {}))))
        for tensor in _tensors(found):
            tensor.keys = keys
        return found


def _tensors(value):
    """Every traced tensor in nested lists, tuples and dicts."""
    if isinstance(value, TracedTensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def translated(pipe: Any, path: Any) -> dict[str, TracedTensor]:
    """A file -> its tensors by diffusers' names, each with the keys that it was made of; empty if the loader cannot say them."""
    given = {}
    for key, tensor in load_tensors(path).items():
        given[key] = tensor.as_subclass(TracedTensor)
        given[key].keys = frozenset([key])
    try:
        found = pipe.lora_state_dict(given)
    except Exception:  # a file that it does not know shows in as many ways as there are formats
        return {}
    found, alphas = found if isinstance(found, tuple) else (found, None)
    alphas = {key: torch.as_tensor(alpha).as_subclass(TracedTensor) for key, alpha in (alphas or {}).items()}
    return found | {key if key.endswith(".alpha") else f"{key}.alpha": alpha for key, alpha in alphas.items()}
