"""What the commands as functions share: from arguments as Python has them to a command's options and folder."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rotescope.common.errors import InputError
from rotescope.common.suggestions import suggestion
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.contract.mitigation import Mitigation


def several_of(given: Any) -> tuple[Any, ...]:
    """One or several as a tuple."""
    return (given,) if isinstance(given, str | Mitigation) else tuple(given)


def config_with(config_class: type, given: dict[str, Any], more: dict[str, Any]) -> Any:
    """-> the command's options. InputError for one that there is not."""
    names = [f.name for f in fields(config_class)]
    unknown = next((name for name in more if name not in names), None)
    if unknown:
        raise InputError(f"{unknown} is no option: {suggestion(unknown, names)}")
    return replace(config_class(**given), **{k: tuple(v) if isinstance(v, list) else own_number(v) for k, v in more.items()})


def data_on_disk(data: Any, file: Path) -> Any:
    """A Manifest as a file that names the same images; a path as it is."""
    if not isinstance(data, Manifest):
        return data and str(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save(file)
    return str(file)


def own_number(value: Any) -> Any:
    """numpy's numbers as Python's, which a record can hold."""
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def run_place(output_dir: str | Path | None) -> Iterator[tuple[Path, TemporaryDirectory]]:
    """-> the folder of a run, and a temporary folder that lives as long as somebody holds it; both are one unless a folder is
    named."""
    kept = TemporaryDirectory(prefix="rotescope-")
    yield Path(output_dir) if output_dir is not None else Path(kept.name) / "run", kept
