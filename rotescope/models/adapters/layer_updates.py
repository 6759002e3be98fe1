"""What an adapter does to one layer: its factors, and the difference ΔW that they stand for. Pure.

    LoRA   ΔW = α/r · B A                            (Hu et al. 2021, arXiv 2106.09685)
    LoHa   ΔW = α/r · (B₁ A₁) ∘ (B₂ A₂)              (Hyeon-Woo et al. 2021, arXiv 2108.06098)
    LoKr   ΔW = α/r · W₁ ⊗ W₂, each may be B A       (Yeh et al. 2023, arXiv 2309.14859, section 3)
    DoRA   W' = m · (W + ΔW) / ‖W + ΔW‖              (Liu et al. 2024, arXiv 2402.09353, eq. 5)

A kernel of a convolution may be factored as well (CP, "Tucker" in LyCORIS): core (r, r, k, k), one factor for
its rows and one for its columns. A file without α means α = r.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from rotescope.common.errors import InputError

NEEDS = {  # kind -> groups of factors of which it needs one whole
    "LoRA": ({"up", "down"},),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},),
    "LoKr": tuple(first | second for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
                  for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})),
    "full": ({"diff"}, {"diff_b"}),
    "norm": ({"w_norm"}, {"b_norm"}),
}
CORES = ("mid", "hada_t1", "hada_t2", "lokr_t2")


@dataclass(frozen=True)
class LayerUpdate:
    """What a file says of one layer.

    Attributes
    ----------
    name : str
        The layer, as the file calls it.
    kind : str
        A key of NEEDS.
    factors : dict of str to Tensor
        By their names in NEEDS and CORES; `up_bias` of a LoRA that has one.
    keys : frozenset of str
        Those of the file that it was made of, numbers such as α left out.
    alpha : float, optional
        None means the rank.
    magnitude : Tensor, optional
        DoRA's m, one number for each row (out, 1, …) or each column (1, in, …).
    scalar : float
        One more number that ΔW is multiplied by.
    """
    name: str
    kind: str
    factors: dict[str, torch.Tensor]
    keys: frozenset[str] = frozenset()
    alpha: float | None = None
    magnitude: torch.Tensor | None = None
    scalar: float = 1.0
    rows: tuple[slice, ...] = field(default=())  # which rows of ΔW are meant, in this order; none means all

    @property
    def is_whole(self) -> bool:
        """Whether every factor that its kind needs is there."""
        return any(needed <= self.factors.keys() for needed in NEEDS[self.kind])

    @property
    def rank(self) -> int | None:
        """None where nothing is factored."""
        inner = next((self.factors[n] for n in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if n in self.factors), None)
        return None if inner is None else int(inner.shape[0])

    @property
    def scale(self) -> float:
        """α/r; 1 where nothing is factored."""
        return self.scalar * (1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank)

    @property
    def is_plain(self) -> bool:
        """Whether it is no more than B A, so that it can stay beside its layer."""
        return self.kind == "LoRA" and self.magnitude is None and set(self.factors) == {"up", "down"} and \
            all(s == 1 for s in self.factors["up"].shape[2:])

    def of_rows(self, rows: tuple[slice, ...]) -> "LayerUpdate":
        """The same for some rows alone, in the given order."""
        if self.kind == "LoRA" and "up_bias" not in self.factors:
            up = torch.cat([self.factors["up"][part] for part in rows])
            return replace(self, factors=self.factors | {"up": up}, magnitude=_rows_of(self.magnitude, rows))
        return replace(self, rows=rows, magnitude=_rows_of(self.magnitude, rows))

    def delta_weight(self) -> torch.Tensor | None:
        """ΔW in float32 or more, α and all: (out, in), or (out, in, k, k) where the factors say so; None if it has none."""
        factors = {name: _wide(w) for name, w in self.factors.items()}
        delta = _DELTAS[self.kind](factors)
        if delta is None:
            return None
        return (torch.cat([delta[part] for part in self.rows]) if self.rows else delta) * self.scale

    def delta_shape(self) -> tuple[int, ...]:
        """Of ΔW; () if it has none. No number is computed; torch raises where the sizes of the factors do not fit each other."""
        bare = {name: torch.empty(w.shape, device="meta") for name, w in self.factors.items()}
        delta = replace(self, factors=bare).delta_weight()
        return () if delta is None else tuple(delta.shape)

    def delta_bias(self) -> torch.Tensor | None:
        """What is added to the bias, (out,), or None."""
        bias = next((self.factors[name] for name in ("diff_b", "b_norm", "up_bias") if name in self.factors), None)
        if bias is None:
            return None
        bias = _wide(bias)
        return (torch.cat([bias[part] for part in self.rows]) if self.rows else bias) * (
            self.scale if "up_bias" in self.factors else 1.0)


def _wide(numbers):
    """In float32, or as they are where that is more; 8-bit floats have no arithmetic of their own."""
    return numbers if numbers.dtype.itemsize >= 4 else numbers.to(torch.float32)


def _rows_of(magnitude, rows):
    if magnitude is None or magnitude.shape[0] == 1:
        return magnitude
    return torch.cat([magnitude[part] for part in rows])


def updated_weight(weight: torch.Tensor, update: LayerUpdate, strength: float = 1.0) -> torch.Tensor:
    """W and an update of it -> W + strength · (W' − W), in float32 or more; W' is W + ΔW, or DoRA's.

    Raises InputError if the update has another size than the weight.
    """
    start = _wide(weight)
    delta = update.delta_weight()
    if delta is None:
        return start
    if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
        raise InputError(f"{update.name} has the size {_size(delta.shape)}, and its layer {_size(weight.shape)}")
    delta = delta.reshape(weight.shape).to(start)
    if update.magnitude is not None:
        delta = decomposed(start + delta, update.magnitude.to(start)) - start
    return start + strength * delta


def decomposed(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """W + ΔW, of any shape (out, in, …), with norms as m says: of each row, or of each column where m is (1, in, …)."""
    by_column = magnitude.dim() > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    across = [axis for axis in range(weight.dim()) if axis != int(by_column)]
    shape = [1] * weight.dim()
    shape[int(by_column)] = -1
    norm = torch.linalg.vector_norm(weight, dim=across, keepdim=True)
    return weight * magnitude.reshape(shape) / norm.clamp(min=torch.finfo(weight.dtype).tiny)


def _size(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))


# ----- factors to ΔW / (α/r)

def _low_rank(f):
    up, down = f["up"].flatten(1), f["down"].flatten(1)
    if "mid" in f:
        return _with_core(f["mid"], up.T, down)
    return (up @ down).reshape(up.shape[0], *f["down"].shape[1:])


def _hadamard(f):
    if "hada_t1" in f:
        return (_with_core(f["hada_t1"], f["hada_w1_a"], f["hada_w1_b"])
                * _with_core(f["hada_t2"], f["hada_w2_a"], f["hada_w2_b"]))
    return (f["hada_w1_a"] @ f["hada_w1_b"].flatten(1)) * (f["hada_w2_a"] @ f["hada_w2_b"].flatten(1))


def _kronecker(f):
    first = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    if "lokr_w2" in f:
        second = f["lokr_w2"]
    elif "lokr_t2" in f:
        second = _with_core(f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        inner = f["lokr_w2_b"]
        second = (f["lokr_w2_a"] @ inner.flatten(1)).reshape(-1, *inner.shape[1:])
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())


def _with_core(core, rows, columns):
    """core (r, r, k, k), rows (r, out), columns (r, in) -> (out, in, k, k)."""
    return torch.einsum("ij...,io,jn->on...", core, rows, columns)


_DELTAS = {"LoRA": _low_rank, "LoHa": _hadamard, "LoKr": _kronecker, "full": lambda f: f.get("diff"),
           "norm": lambda f: f.get("w_norm")}
