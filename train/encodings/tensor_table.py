"""Large tables of tensors by key: in memory, or in a folder of files, mapped and shared between processes.

In a folder they lie in files of up to CHUNK rows, found by content, so that another plan, a caption more or a killed run computes
what is missing and nothing else; read by memory map, so that they need not fit into memory, and several processes hold them once.
"""
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rotescope.common.errors import InputError
from rotescope.common.whole_files import whole_file

CHUNK = 256
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class TableRows:
    """Rows of a large table that lie in several tensors, in memory or mapped from files."""
    parts: tuple[torch.Tensor, ...]  # (k_i, ...)
    where: torch.Tensor              # (n, 2): which part, which row of it

    def __len__(self):
        return len(self.where)

    @property
    def shape(self):
        return (len(self), *self.parts[0].shape[1:])

    def shape_of(self, row):
        """-> the shape of one row; rows from different parts may have different ones."""
        return self.parts[int(self.where[row][0])].shape[1:]

    def __getitem__(self, rows):
        """rows: (B,) -> (B, ...)."""
        return torch.stack([self.parts[part][row] for part, row in self.where[rows].tolist()])


def joined_rows(tables, places):
    """Several TableRows -> one: row i of the t-th stands at places[t][i]."""
    where, before = torch.empty(sum(map(len, tables)), 2, dtype=torch.long), 0
    for table, own in zip(tables, places, strict=True):
        where[torch.tensor(own)] = table.where + torch.tensor([before, 0])
        before += len(table.parts)
    return TableRows(tuple(part for table in tables for part in table.parts), where)


@dataclass(frozen=True)
class Share:
    """Which of `of` processes this is that fill a folder together, and how it waits for all of them."""
    index: int = 0
    of: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Share()


def digest(*texts):
    return hashlib.sha256(chr(0).join(texts).encode()).hexdigest()


def folder_of(cache_dir, kind, *key):
    return Path(cache_dir) / f"{kind}-{digest(*key)[:32]}" if cache_dir else None


def batches_of(keys, size):
    return (keys[i:i + size] for i in range(0, len(keys), size))


def tensor_rows(folder, keys, compute, batch_size, share=ALONE):
    """-> {name: Rows}, a row a key. `compute(keys)` yields dicts of tensors, of batches of keys that the folder lacks.

    Each process computes its share of them. Then all map the files, and what is not there, as where processes share no disk, is
    computed by whoever lacks it. Batches are cut alike by any number of processes: their sums round as those of one.
    """
    if folder and share.of > 1:
        missing = _missing(keys, {name for _, names in _stored(folder) for name in names})
        share.wait()  # all have looked before any of them writes
        size = min(CHUNK, batch_size * math.ceil(len(missing) / (batch_size * share.of)))
        for _ in _filled(folder, compute, list(batches_of(missing, size or 1))[share.index::share.of], len(missing)):
            pass
        share.wait()
    tables, where = [], {}

    def add(tensors, names):
        where.update({name: (len(tables), row) for row, name in enumerate(names)})
        tables.append(tensors)

    for tensors, names in _stored(folder):
        add(tensors, names)
    missing = _missing(keys, where)
    for tensors, names in _filled(folder, compute, batches_of(missing, CHUNK), len(missing)):
        add(tensors, names)
    rows = torch.tensor([where[k] for k in keys])
    return {name: TableRows(tuple(t[name] for t in tables), rows) for name in tables[0]}


def _missing(keys, there):
    return [k for k in dict.fromkeys(keys) if k not in there]


def _filled(folder, compute, chunks, rows):
    """(tensors, keys) of each chunk of keys, kept in the folder, if there is one. InputError, once the first shows how large a
    row is, if so many `rows` do not fit on the disk."""
    for i, chunk in enumerate(chunks):
        batches = list(compute(chunk))
        tensors = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        if folder and not i:
            _check_room(folder, sum(t.nbytes for t in tensors.values()) / len(chunk) * rows)
        yield _store(folder, tensors, chunk) if folder else tensors, chunk


def _check_room(folder, size):
    there = next(p for p in folder.absolute().parents if p.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise InputError(f"latents or text embeddings take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {there}: "
                         "free some space, or name another --cache_dir")


def _stored(folder):
    """(tensors, keys) of each file, mapped, not read. A damaged one counts as missing."""
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            with safe_open(file, "pt") as about:
                names = json.loads(about.metadata()["keys"])
            yield load_file(file), names
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue


def _store(folder, tensors, keys):
    """Write a file whole or not at all -> its tensors, mapped."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{digest(*keys)[:32]}.safetensors"
    with whole_file(file) as draft:
        save_file({name: t.contiguous() for name, t in tensors.items()}, draft, metadata={"keys": json.dumps(keys)})
    return load_file(file)


def drop_old_drafts(cache_dir):
    """Remove what killed runs had not finished; younger ones may be a run's that shares the folder."""
    for draft in Path(cache_dir).glob("*/*.part"):
        if draft.exists() and time.time() - draft.stat().st_mtime > DAY:
            draft.unlink(missing_ok=True)
