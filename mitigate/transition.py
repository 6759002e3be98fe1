"""When to turn guidance on: detectors that watch each image's prediction gap, step by step."""
import torch


class FirstLocalMinimum:
    """The printed rule of Jain et al.: the first k with d[k−2] > d[k−1] < d[k], strictly; never before k = 2. Online, per image.

    update(gap (n,)) -> bool (n,): is this step the k of that image? A plateau is no minimum, and NaN never fires.
    """

    def __init__(self, n, device="cpu"):
        self.before_last = self.last = torch.full((n,), torch.nan, device=device)

    def update(self, gap):
        fires = (self.before_last > self.last) & (self.last < gap)
        self.before_last, self.last = self.last, gap
        return fires
