"""Which reference vector is nearest to each query: exactly, by matrix products, or approximately through FAISS."""
from importlib import import_module

import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.neighbours import int8_prefilter as coarse

QUERIES, REFERENCES = 2048, 4096  # vectors in one product
CHECKED = 200                     # queries on which an approximate engine is compared with the exact one
PROBES, CANDIDATES = 32, 64       # cells that FAISS visits, and how many of its answers are compared exactly


def cosine(query, reference, out):
    """Of vectors of length 1: (n, d), (m, d) -> (n, m) in `out`."""
    return torch.mm(query, reference.T, out=out)


def nearest(query, reference, k=1, own=None, block=(QUERIES, REFERENCES), score=cosine):
    """Exact search: query (n, d), reference (m, d) -> similarity (n, k) descending and row (n, k); by another score than the
    cosine if it has that one's arguments.

    Of equal ones the first row comes first (beyond place k any of them). Both may be memory maps of float16: blocks of the
    reference are read and converted once each, so memory is the queries in float32 and one product, whatever m. own (n,):
    a row that is no answer to query i, -1 for none. Runs on the GPU where there is one. On a processor with an int8 unit, many
    queries and k = 1, the products are of int8, and of float32 only where their error could decide: the answer is the same.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.from_numpy(np.asarray(query, np.float32)).to(device)
    n, k = len(query), min(k, len(reference) - (own is not None))
    best = torch.full((n, k), -torch.inf, device=device), torch.zeros((n, k), dtype=torch.int64, device=device)
    space = torch.empty(block[0] * block[1], device=device)
    few = score is cosine and k == 1 and n >= coarse.LEAST and device == "cpu" and coarse.supported()
    codes, integers = coarse.rounded(query if few else query[:0]), coarse.space_for(block if few else (0, 0))
    for j in range(0, len(reference), block[1]):
        part = torch.from_numpy(np.asarray(reference[j:j + block[1]], np.float32)).to(device)
        rounded = coarse.rounded(part, together=True) if few else None
        for i in range(0, n, block[0]):
            lines = slice(i, min(i + block[0], n))
            without = _in_block(own, lines, j, len(part))
            if few and _improve_few(best, lines, (query[lines], codes[lines]), (part, rounded), without, integers, j):
                continue
            product = space[:(lines.stop - i) * len(part)].view(lines.stop - i, len(part))
            score(query[lines], part, product)
            product[without] = -torch.inf
            _improve(best, lines, product, j)
    return best[0].clamp(-1, 1).cpu().numpy(), best[1].cpu().numpy()


def _in_block(own, lines, first_row, size):
    """-> (line, column) of the entries of a block that are no answers."""
    columns = np.asarray(own[lines]) - first_row if own is not None else np.zeros(0, np.int64)
    at = np.flatnonzero((columns >= 0) & (columns < size))
    return torch.from_numpy(at), torch.from_numpy(columns[at])


def _improve_few(best, lines, query, reference, without, space, first_row):
    """As _improve, for k = 1 and of the candidates alone -> whether they were few."""
    similarity, row = (b[lines, 0] for b in best)
    found = coarse.prefiltered(query, reference, similarity, without, space)
    if found is None:
        return False
    line, column = found
    exact = coarse.exactly(query[0], reference[0], line, column)
    better = exact > similarity[line]
    line, column, exact = line[better], column[better], exact[better]
    order = np.lexsort((column, -exact, line))
    line, first = np.unique(line.numpy()[order], return_index=True)
    similarity[line], row[line] = exact[order[first]], column[order[first]] + first_row
    return True


def _improve(best, lines, product, first_row):
    """Merge one block's products into the best so far."""
    similarity, row = (b[lines] for b in best)
    k = similarity.shape[1]
    better = (product.amax(1) > similarity[:, -1]).nonzero()[:, 0]  # few, but for the first blocks
    if k == 1:
        place = product[better].argmax(1)  # the first of equals
        similarity[better, 0], row[better, 0] = product[better, place], place + first_row
        return
    found, place = product[better].topk(min(k, product.shape[1]), dim=1)
    found, place = torch.cat([similarity[better], found], 1), torch.cat([row[better], place + first_row], 1)
    found, place = _ordered(found, place, place)  # by row, then, stably, by similarity
    found, place = _ordered(found, place, -found)
    similarity[better], row[better] = found[:, :k], place[:, :k]


def _ordered(found, place, key):
    order = key.argsort(dim=1, stable=True)
    return found.gather(1, order), place.gather(1, order)


def nearest_other(reference, at_most=10_000, block=(QUERIES, REFERENCES)):
    """The nearest other one of each picture -> the picture's row, its similarity, the other's row; all (min(m, at_most),): of
    more than `at_most` pictures that many, evenly spread, are compared with all others."""
    if len(reference) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64)
    rows = evenly_spread(len(reference), at_most)
    similarity, row = nearest(reference[rows], reference, own=rows, block=block)
    return rows, similarity[:, 0], row[:, 0]


# ----- approximate

def load_faiss():
    """-> the module. InputError if it is not installed."""
    try:
        return import_module("faiss")  # its distributions are called faiss-cpu and faiss-gpu
    except ImportError as error:
        raise InputError("--search faiss needs a package: pip install faiss-cpu; or search exactly") from error


def approximate(query, reference):
    """As nearest with k = 1, through FAISS -> similarity (n, 1), row (n, 1), and a line that says how good it is.

    An inverted file of product codes proposes 64 candidates, of which the true vectors choose: what is found has its exact
    similarity, and the recall at 1 against exact search, over 200 of the queries, says how often the nearest one is found.
    """
    faiss = load_faiss()
    m, d = reference.shape
    cells = int(max(1, min(4 * m ** 0.5, m / 40)))
    index = faiss.index_factory(d, f"IVF{cells},PQ{_codes(d)}x{8 if m >= 10_000 else 4}", faiss.METRIC_INNER_PRODUCT)
    index.train(np.asarray(reference[_spread(m, max(64 * cells, 20_000))], np.float32))
    for j in range(0, m, 65536):
        index.add(np.asarray(reference[j:j + 65536], np.float32))
    index.nprobe = min(cells, PROBES)
    query = np.asarray(query, np.float32)
    similarity, row = _exact_among(query, reference, index.search(query, min(CANDIDATES, m))[1])
    checked = _spread(len(query), CHECKED)
    truth = nearest(query[checked], reference)[0][:, 0]
    recall = float((similarity[checked, 0] >= truth - 1e-6).mean()) if len(checked) else 1.0
    return similarity, row, f"faiss IVF{cells},PQ{_codes(d)}, {index.nprobe} cells visited: recall at 1 is {recall:.3f} " \
                            f"against exact search on {len(checked)} queries"


def _exact_among(query, reference, candidates):
    """Proposed rows (n, c), -1 for none -> the best by true similarity."""
    similarity, row = np.full((len(query), 1), -1, np.float32), np.zeros((len(query), 1), np.int64)
    for i, rows in enumerate(candidates):
        rows = np.sort(rows[rows >= 0])
        if len(rows):
            scores = np.asarray(reference[rows], np.float32) @ query[i]
            similarity[i], row[i] = scores.max(), rows[scores.argmax()]
    return np.clip(similarity, -1, 1), row


def _codes(d):
    """Bytes of a product code: the largest divisor of d up to 64."""
    return next(c for c in range(64, 0, -1) if d % c == 0)


def _spread(m, n):
    return np.unique(np.linspace(0, m - 1, min(m, n)).astype(np.int64)) if m else np.zeros(0, np.int64)
