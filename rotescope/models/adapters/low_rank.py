"""An update of a layer as two factors, and its spectral channels: what a repair of weights turns up and down. Pure.

    ΔW = scale · up down = Σᵢ sᵢ uᵢ vᵢᵀ        (singular value decomposition; a term is a channel)

A gain gᵢ on each channel gives ΔW' = Σᵢ gᵢ sᵢ uᵢ vᵢᵀ = scale · (U diag(g) Uᵀ up) down: only `up` changes, so a
LoRA keeps its rank, its α and its `down` to the bit.
"""
from dataclasses import dataclass, replace

import torch

from rotescope.models.adapters.layer_updates import LayerUpdate

NEGLIGIBLE = 1e-6  # of the largest singular value: a channel below it is rounding


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """What a file does to one layer.

    Attributes
    ----------
    name : str
        The layer, as the file calls it.
    up : Tensor
        (out, r).
    down : Tensor
        (r, n), a kernel laid out flat: n = in · k · k. A change of numbers that are no matrix (norms, biases) has n = 1.
    scale : float
        α/r.
    """
    name: str
    up: torch.Tensor
    down: torch.Tensor
    scale: float = 1.0

    @property
    def is_matrix(self) -> bool:
        """Whether it has channels."""
        return self.down.shape[1] > 1

    def delta(self) -> torch.Tensor:
        """ΔW, (out, n)."""
        return self.scale * (self.up @ self.down)

    @property
    def energy(self) -> float:
        """‖ΔW‖², without the product."""
        return self.scale ** 2 * float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())


@dataclass(frozen=True, eq=False)
class Channels:
    """ΔW = left diag(values) right, by falling values: left (out, m), orthonormal columns; right (m, n), orthonormal rows."""
    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def low_rank_of(update: LayerUpdate) -> LowRankUpdate:
    """A file's update -> its factors, in float32 or more. A LoRA's own; of what is no product of two (LoHa, LoKr, a whole
    difference) those that its singular values give, as many as are not rounding. Of a DoRA ΔW is B A: its magnitudes stay."""
    factors = {name: _wide(w) for name, w in update.factors.items()}
    if update.kind == "LoRA":
        down = factors["down"].flatten(1)
        if "mid" in factors:
            down = torch.einsum("ij...,jn->in...", factors["mid"], down).flatten(1)
        return LowRankUpdate(update.name, factors["up"].flatten(1), down, update.scale)
    delta = update.delta_weight()
    delta = update.delta_bias() if delta is None else delta
    if delta is None or delta.dim() < 2:
        column = torch.zeros(1, 1) if delta is None else delta[:, None]
        return LowRankUpdate(update.name, column, column.new_ones(1, 1))
    u, s, vt = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    kept = max(1, int((s > NEGLIGIBLE * s[0]).sum()))
    return LowRankUpdate(update.name, u[:, :kept] * s[:kept], vt[:kept])


def channels_of(update: LowRankUpdate) -> Channels:
    """The singular value decomposition of ΔW, by that of a matrix of the rank's size."""
    (left, upper), (right, lower) = torch.linalg.qr(update.up), torch.linalg.qr(update.down.T)
    u, s, vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return Channels(left @ u, s * abs(update.scale), vt @ right.T)


def with_gains(update: LowRankUpdate, channels: Channels, gains: torch.Tensor) -> LowRankUpdate:
    """The update with each of its channels times its gain, (m,); the very same object where every gain is 1."""
    if bool((gains == 1).all()):
        return update
    return replace(update, up=channels.left @ (gains[:, None] * (channels.left.T @ update.up)))


def gain_slopes(gradient: torch.Tensor, update: LowRankUpdate, channels: Channels) -> torch.Tensor:
    """∂L/∂gᵢ = uᵢᵀ (∂L/∂up) upᵀ uᵢ, (m,), whatever the gains are at which `gradient`, (out, r), was taken; `update` is the one
    whose gains are all 1."""
    return ((channels.left.T @ gradient) * (channels.left.T @ update.up)).sum(1)


def base_alignment(channels: Channels, weight: torch.Tensor, rank: int) -> torch.Tensor:
    """½ (‖P uᵢ‖² + ‖Q vᵢ‖²), (m,) in [0, 1]: how far each channel lies in the span of the `rank` first singular vectors of the
    base's weight (out, n), P on the side of the outputs, Q on that of the inputs."""
    u, _, vt = torch.linalg.svd(weight.to(channels.left), full_matrices=False)
    outputs, inputs = u[:, :rank].T @ channels.left, vt[:rank] @ channels.right.T
    return (outputs.square().sum(0) + inputs.square().sum(0)) / 2


def _wide(numbers):
    return numbers if numbers.dtype.itemsize >= 4 else numbers.to(torch.float32)
