"""The figures of fidelity, as a type that loads no library."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Fidelity:
    """Distances to held-out pictures (lower is better), and shares that lie among them."""
    kid: float
    fid: float
    n: int                      # generated pictures
    precision: float | None
    recall: float | None
