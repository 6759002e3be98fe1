"""How fast and how frugal the search is, against this machine's own matrix product and against faiss.IndexFlatIP.

    python benchmarks/search.py                                       # 10,000 × 100,000 × 512, then a million in float16
    python benchmarks/search.py --queries 1000 --references 20000 --million 100000

Prints one line a measurement, best of --rounds, and a JSON object at the end.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from rotescope.evaluate.neighbours.nearest import nearest

MEMORY = """
import re, sys, numpy as np
from rotescope.evaluate.neighbours.nearest import nearest
file, m, d, n = sys.argv[1], *map(int, sys.argv[2:])
x = np.memmap(file, np.float16, "r", shape=(m, d))
row = nearest(x[::m // n][:n], x)[1][:, 0]
assert (row == np.arange(0, m, m // n)[:n]).all(), "did not find itself"
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])  # this process alone, unlike ru_maxrss
"""


def unit(n, d, seed):
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def best(functions, rounds):
    """{name: function} -> {name: (wall, processor) seconds}, the best of several rounds, after one to warm up.

    The functions take turns, so that whatever else the machine does is shared between them.
    """
    found = {name: (float("inf"), float("inf")) for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            wall, processor = time.perf_counter(), time.process_time()
            function()
            took = time.perf_counter() - wall, time.process_time() - processor
            found[name] = tuple(map(min, found[name], took)) if i else found[name]
    return found


def product(query, reference, block=1024):
    """torch.mm alone, by blocks of queries so that the product fits into memory -> a function."""
    q, r = torch.from_numpy(query), torch.from_numpy(reference)
    out = torch.empty(block, len(r))

    def run():
        for i in range(0, len(q), block):
            torch.mm(q[i:i + block], r.T, out=out[:len(q[i:i + block])])
    return run


def flat(query, reference):
    """faiss.IndexFlatIP -> {name: function}, empty where FAISS is not installed."""
    try:
        faiss = import_module("faiss")
    except ImportError:
        return {}
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(reference.shape[1])
    index.add(reference)
    return {"IndexFlatIP": lambda: index.search(query, 1)}


def million(m, d, n=1000):
    """-> GB at the peak of a process that searches m float16 descriptors on disk for n queries, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file, rng = Path(folder) / "vectors.f16", np.random.default_rng(0)
        with file.open("wb") as stream:
            for i in range(0, m, 50_000):
                x = rng.standard_normal((min(50_000, m - i), d), dtype=np.float32)
                stream.write((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16).tobytes())
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEMORY, str(file), *map(str, (m, d, n))], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return int(done.stdout) * 1024 / 1e9, time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 10_000), ("references", 100_000), ("dim", 512), ("million", 1_000_000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    query, reference = unit(o.queries, o.dim, 0), unit(o.references, o.dim, 1)
    functions = {"matrix product": product(query, reference), "exact search": lambda: nearest(query, reference)}
    took = best(functions | flat(query, reference), o.rounds)
    work, ours = 2e-9 * o.queries * o.references * o.dim, took["exact search"]
    print(f"{o.queries:,} × {o.references:,} × {o.dim}, {torch.get_num_threads()} threads")
    for name, (wall, processor) in took.items():
        print(f"{name:15s} {wall:8.2f} s wall, {processor:8.2f} s processor, {work / wall:7.1f} GFLOP/s; the search runs at "
              f"{wall / ours[0]:.2f} × its speed by wall, {processor / ours[1]:.2f} × by processor time")
    peak, seconds = million(o.million, o.dim)
    print(f"float16 on disk, 1,000 × {o.million:,} × {o.dim}: {seconds:.1f} s with the start, {peak:.2f} GB at the peak")
    print(json.dumps({"seconds": took, "gflop": work, "million_s": seconds, "million_peak_gb": peak}))


if __name__ == "__main__":
    main()
