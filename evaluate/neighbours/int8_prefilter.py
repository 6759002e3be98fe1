"""The int8 unit of a processor in the service of exact search: a coarse similarity, with a bound on its error, tells which few
pairs have to be computed."""
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

LEAST = 512   # queries below which rounding the reference costs more than it saves
MANY = 0.01   # share of candidates in a block above which a whole product is the quicker
LOWEST = torch.iinfo(torch.int32).min
PAIRS = 512   # rows multiplied one by one at a time
RUN = 64      # neighbouring columns of which the highest is looked at first


@dataclass(frozen=True)
class Rounded:
    """n vectors x of d numbers as x̃ = scale · codes."""
    codes: torch.Tensor  # (n, d) int8
    scale: torch.Tensor  # (n, 1) or (1, 1)
    norm: torch.Tensor   # (n,) of x
    error: torch.Tensor  # (n,) ‖x − x̃‖

    def __getitem__(self, lines):
        return Rounded(self.codes[lines], self.scale[lines], self.norm[lines], self.error[lines])


def rounded(x, together=False):
    """x (n, d) -> Rounded, with a scale a vector or one for all `together`."""
    highest = torch.maximum(x.max(), -x.min()).view(1, 1) if together else x.abs().amax(1, keepdim=True)
    scale = highest.clamp(min=1e-12) / 127
    codes = (x / scale).round_()
    return Rounded(codes.to(torch.int8), scale, x.norm(dim=1), torch.addcmul(x, codes, scale, value=-1).norm(dim=1))


def supported():
    """Whether this processor multiplies int8 (AVX-512 VNNI); on one that does not, PyTorch's product is slow or saturates."""
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)() and torch.backends.mkldnn.is_available()


def space_for(block):
    """Room for the products of a block of (queries, references)."""
    return torch.empty(block[0] * (block[1] + RUN), dtype=torch.int32)


def exactly(query, reference, line, column):
    """⟨query[line], reference[column]⟩ -> (c,), a few at a time so that they stay in the cache."""
    pairs = zip(line.split(PAIRS), column.split(PAIRS), strict=True)
    return torch.cat([query.index_select(0, i).mul_(reference.index_select(0, j)).sum(1) for i, j in pairs])


def prefiltered(query, reference, lowest, own, space):
    """Which pairs may be at least as similar as `lowest` (n,) -> line (c,), column (c,); None where they are so many that a whole
    product is the quicker. query, reference: (vectors, Rounded), the latter together; own: pairs that are no answer, as
    (line, column); space: int32 to work in.

    |⟨q, x⟩ − ⟨q̃, x̃⟩| = |⟨q − q̃, x⟩ + ⟨q̃, x − x̃⟩| ≤ ‖q − q̃‖ ‖x‖ + ‖q̃‖ ‖x − x̃‖, so no other pair is.
    """
    (q, of_q), (x, of_x) = query, reference
    n, m = len(q), len(x)
    codes = pad(of_x.codes, (0, 0, 0, -m % RUN))
    coarse = space[:n * len(codes)].view(n, len(codes))
    torch._int_mm(of_q.codes, codes.T, out=coarse)
    coarse[own] = LOWEST
    coarse[:, m:] = LOWEST
    if lowest.isneginf().any():  # in the first block: one as similar as this is there
        lowest = exactly(q, x, torch.arange(n), coarse.argmax(1))
    bound = of_q.error * of_x.norm.max() + (of_q.norm + of_q.error) * of_x.error.max() + 1e-6
    # never as low as what is no answer: a vector of zeros, whose scale is next to none, would ask for that too
    needed = ((lowest - bound)[:, None] / (of_q.scale * of_x.scale)).clamp_(min=LOWEST / 2)
    runs = coarse.view(n, -1, RUN)
    line, run = (runs.amax(2) >= needed).nonzero().unbind(1)
    if len(line) > MANY * n * m:
        return None
    hit, place = (runs[line, run] >= needed[line]).nonzero().unbind(1)
    return (line[hit], run[hit] * RUN + place) if len(hit) <= MANY * n * m else None
