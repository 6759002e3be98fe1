"""Dataclasses -> what JSON holds, and the JSON Schema of that."""
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from rotescope.common.wording import printable
from rotescope.evaluate.statistics.estimate import Estimate

DIGITS = 6


def as_json(value, digits=DIGITS):
    """Any value of a report -> JSON types.

    A dataclass becomes an object with a key for each field, and for each property that its `derived` names. A
    field's metadata may give another key (`key`), leave it out (`json` False), or write an Estimate as value
    and interval (`interval`).

    Parameters
    ----------
    value
        A dataclass, dict, list, tuple, number, text or None, nested at will.
    digits : int or None
        Digits after the point; of small numbers as many that count. None: all.

    Returns
    -------
    dict, list, float, int, bool, str or None
        No NaN: None stands for it. Text that UTF-8 can hold.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return _object(value, digits)
    if isinstance(value, dict):
        return {printable(str(k)): as_json(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v, digits) for v in value]
    if isinstance(value, float | np.floating):
        return _number(float(value), digits)
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value if value is None or isinstance(value, bool | int) else printable(str(value))


def _number(value, digits):
    if not np.isfinite(value):
        return None
    if digits is None:
        return value
    return round(value, digits) if abs(value) >= 1e-3 else float(f"{value:.{digits}g}")


def _object(value, digits):
    found: dict[str, Any] = {}
    for f, key in _written(type(value)):
        own = getattr(value, f.name)
        if f.metadata.get("interval"):
            found |= {key: own and as_json(own.value, digits),
                      f"{key}_interval": own and as_json(own[1:3], digits)}
        else:
            found[key] = as_json(own, digits)
    return found | {name: as_json(getattr(value, name), digits) for name in getattr(value, "derived", ())}


def _written(cls):
    """-> (field, its key) of each that JSON has."""
    return [(f, f.metadata.get("key", f.name)) for f in fields(cls) if f.metadata.get("json", True)]


# ----- JSON Schema

def schema_of(cls, **more):
    """A dataclass -> JSON Schema (2020-12) of what as_json makes of it; more: keys at its top."""
    definitions: dict[str, dict] = {}
    top = _object_schema(cls, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **more, **top,
            "$defs": dict(sorted(definitions.items()))}


def _object_schema(cls, definitions):
    hints, properties = get_type_hints(cls), {}
    for f, key in _written(cls):
        if f.metadata.get("interval"):
            nothing = [{"type": "null"}] if NoneType in get_args(hints[f.name]) else []
            interval = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
            properties |= {key: _either([{"type": "number"}, *nothing]),
                           f"{key}_interval": _either([interval, *nothing])}
        else:
            properties[key] = _schema(hints[f.name], definitions)
    for name in getattr(cls, "derived", ()):
        properties[name] = _schema(get_type_hints(getattr(cls, name).fget)["return"], definitions)
    about = (cls.__doc__ or "").strip().split("\n\n")[0]
    described = {} if about.startswith(f"{cls.__name__}(") else {"description": " ".join(about.split())}
    return {**described, "type": "object", "properties": properties, "required": list(properties),
            "additionalProperties": False}


def _schema(hint, definitions):
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # in case it holds itself
            definitions[hint.__name__] = _object_schema(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _either([_schema(one, definitions) for one in inner])
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], definitions)}
    if origin in (tuple, list):
        found = {"type": "array", "items": _schema(inner[0], definitions)}
        fixed = origin is tuple and inner[-1] is not Ellipsis
        return found | ({"minItems": len(inner), "maxItems": len(inner)} if fixed else {})
    raise TypeError(f"{hint} has no JSON form")


def _either(schemas):
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


PLAIN: dict[Any, dict] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, float: {"type": "number"},
    NoneType: {"type": "null"}, dict: {"type": "object"}, list: {"type": "array"}, Any: {},
    Estimate: {"type": "array"}}
