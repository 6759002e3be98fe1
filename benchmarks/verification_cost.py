"""What verifying costs beside decoding and embedding: milliseconds a picture, and memory.

    pip install scikit-image scikit-learn
    python benchmarks/verification_cost.py --training 2000 --generated 100 --output_dir runs/verification_cost

Windows of photographs that this project did not make, as JPEG files of 512 × 512 pixels. Everything runs as `score` runs it, on
as many threads; wall time is divided by the number of pictures. Writes verification_cost.json.
"""
import io
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from copy_cases.pictures import photograph_files
from PIL import Image
from rich.console import Console

from rotescope.common.errors import exit_cleanly
from rotescope.common.outputs import output_folder, versions, write_json
from rotescope.common.settings import parse, plain
from rotescope.common.text_table import TextTable
from rotescope.datasets.geometry.near_copies import make_verifiers
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.pictures_in_memory import data_of
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.same_picture import Twins
from rotescope.evaluate.verification.matching import Matcher


@dataclass(frozen=True)
class CostConfig:
    output_dir: str = "runs/verification_cost"
    """verification_cost.json goes here"""
    training: int = 2000
    """training pictures"""
    generated: int = 100
    """generated pictures"""
    side: int = 512
    """pixels a side"""
    descriptor: str = "auto"
    """as for score"""
    overwrite: bool = False
    """replace output_dir"""


def windows(n: int, side: int, seed: int) -> list[bytes]:
    """n windows of photographs at random, a quarter to the whole of the short side, as JPEG."""
    rng, files = np.random.default_rng(seed), photograph_files()
    whole, made = [Image.open(file).convert("RGB") for file in files], []
    for _ in range(n):
        image = whole[rng.integers(len(whole))]
        edge = rng.uniform(0.25, 1) * min(image.size)
        left, top = rng.uniform(0, 1, 2) * (np.array(image.size) - edge)
        stream = io.BytesIO()
        image.resize((side, side), Image.BICUBIC, (left, top, left + edge, top + edge)).save(stream, "JPEG", quality=92)
        made.append(stream.getvalue())
    return made


def opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def greyed(encoded: bytes) -> Image.Image:
    return opened(encoded).convert("L").convert("RGB")


def timed(n: int, work: Callable):
    """-> what `work` returns; milliseconds for each of n pictures."""
    started = time.perf_counter()
    found = work()
    return found, 1000 * (time.perf_counter() - started) / n


def measure(config: CostConfig) -> dict[str, float]:
    """-> milliseconds a picture by step, and megabytes."""
    trained, made = windows(config.training, config.side, 0), windows(config.generated, config.side, 1)
    _, decoding = timed(len(trained), lambda: [opened(one) for one in trained])
    manifest, _, _ = data_of([opened(one) for one in trained])
    descriptor = get_descriptor(config.descriptor, config.side)
    index, embedding = timed(len(trained), lambda: build_index(manifest, descriptor))
    shas, openers = [e.sha256 for e in index.examples], [partial(opened, one) for one in trained]
    before = memory()
    verifiers, extraction = timed(len(trained), lambda: make_verifiers(shas, openers))
    held = memory() - before
    matcher = Matcher(index, Twins(index.examples), verifiers)
    pictures = [(f"{i:064x}", partial(opened, one)) for i, one in enumerate(made)]
    in_grey = [(f"{k:064x}", partial(greyed, one)) for k, one in ((len(made), made[0]),)]
    _, learning = timed(1, lambda: matcher.most_evident([*pictures[:1], *in_grey]))  # what chance brings, to either kind, once
    _, verifying = timed(len(made), lambda: matcher.most_evident(pictures))
    return {"decoding": decoding, "embedding": embedding, "extraction, a training picture": extraction,
            "verifying, a generated picture": verifying, "learning chance, once a run": learning,
            "memory of the features, MB": held, "peak memory, MB": memory()}


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse(CostConfig, sys.argv[1:] if argv is None else argv, prog="verification_cost.py", description=__doc__)
    with output_folder(config.output_dir, config.overwrite) as folder:
        found = measure(config)
        write_json(folder / "verification_cost.json", {"config": plain(config), "versions": versions(), "figures": found})
    rows = tuple((name, f"{value:,.0f}") for name, value in found.items())
    Console(stderr=True).print(TextTable(("milliseconds a picture", ""), rows))


if __name__ == "__main__":
    main()
