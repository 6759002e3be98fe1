"""When to turn guidance on: detectors that watch each image's prediction gap, step by step."""
import torch


class FirstLocalMinimum:
    """The printed rule of Jain et al.: the first k with d[k−2] > d[k−1] < d[k], strictly; never before k = 2. Online, per image.

    update(gap (n,)) -> bool (n,): is this step the k of that image? A plateau is no minimum, and NaN never fires.
    Both neighbours must exceed the minimum by `min_drop` of it.
    """

    def __init__(self, n, min_drop=0.0, device="cpu"):
        self.min_drop = min_drop
        self.before_last = self.last = torch.full((n,), torch.nan, device=device)

    def update(self, gap):
        floor = self.last * (1 + self.min_drop)
        fires = (self.before_last > floor) & (floor < gap)
        self.before_last, self.last = self.last, gap
        return fires


def local_minima(curve):
    """Indices of the strict local minima of a list, its ends left out."""
    return [k for k in range(1, len(curve) - 1) if curve[k - 1] > curve[k] < curve[k + 1]]
