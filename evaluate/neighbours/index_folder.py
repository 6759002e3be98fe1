"""Training images -> a folder of descriptors, on one process or several."""
import re
import shutil
from pathlib import Path

import torch
from accelerate import PartialState

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_outside
from rotescope.common.progress import progress_bars
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.quarantine import show_quarantined
from rotescope.datasets.readers.sources import read_source
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.neighbours.descriptor_store import Store, merge
from rotescope.evaluate.neighbours.index import build_index, unique

PARTS_OF_AN_INDEX = {"index.json", "vectors.f16", "keys.bin", "queries", ".lock"}


def index_folder(config):
    """Embed or merge as `config` says -> how many pictures the index holds."""
    if bool(config.merge) == bool(config.train_data):
        raise InputError("name either --train_data to embed or --merge with indexes to join")
    if config.merge:
        return len(merge(config.merge, config.index_dir))
    first, step = shard_of(config.shard)
    check_outside(config.index_dir, (config.train_data,))
    # before the descriptor: it chooses this process's device
    state = PartialState(cpu=not torch.cuda.is_available())
    source = read_source(config.train_data, need_captions=False, options=data_options(config))
    manifest = source.manifest
    if state.is_main_process:
        show_quarantined(source.quarantined, unused=source.unused)
    descriptor = get_descriptor(config.descriptor, min(manifest[0].open().size), config.trust_sha256)
    wanted = Manifest(manifest.examples[first::step])
    if state.num_processes == 1:
        return len(_embed(wanted, descriptor, config.index_dir))
    _in_parallel(wanted, descriptor, Path(config.index_dir), state)
    return len(unique(wanted)[0])


def _in_parallel(manifest, descriptor, folder, state):
    """Each process embeds its share of what is new into a part of its own; the first then joins them."""
    parts = [folder.with_name(f"{folder.name}.part-{i}") for i in range(state.num_processes)]
    if state.is_main_process:
        _drop_strange(parts, descriptor)
    state.wait_for_everyone()
    known = Store(folder, descriptor.name, descriptor.dim).row_of if folder.exists() else {}
    mine = [e for e in manifest
            if bytes.fromhex(e.sha256) not in known][state.process_index::state.num_processes]
    if mine:
        _embed(Manifest(tuple(mine)), descriptor, parts[state.process_index])
    state.wait_for_everyone()
    if state.is_main_process:
        done = [part for part in parts if part.exists()]
        if done:
            merge(done, folder)
        _embed(manifest, descriptor, folder)  # embeds nothing more, but mends what a disk lost
        for part in done:
            shutil.rmtree(part)


def _drop_strange(parts, descriptor):
    """What a run that was killed has left of another descriptor, or has half removed; parts of this one are used, and what is
    none of ours stays."""
    for part in (p for p in parts if p.exists() and {entry.name for entry in p.iterdir()} <= PARTS_OF_AN_INDEX):
        try:
            Store(part, descriptor.name, descriptor.dim)
        except InputError:
            shutil.rmtree(part, ignore_errors=True)


def _embed(manifest, descriptor, folder):
    with progress_bars({"training": len(unique(manifest)[0])}) as advance:
        return build_index(manifest, descriptor, lambda: advance("training"), folder)


def shard_of(text):
    """2/4 -> (1, 4): which example is first, and every how many one follows; nothing -> (0, 1)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"cannot read the shard {text!r}: write 1/4, 2/4, 3/4 or 4/4 for a quarter of the data")
    return int(match[1]) - 1, int(match[2])
