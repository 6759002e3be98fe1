"""Which of many pictures, or of their features, are looked at where all would be too many."""
import numpy as np


def evenly_spread(n: int, at_most: int) -> np.ndarray:
    """At most so many of 0 … n − 1, the first and the last among them, in order -> (min(n, at_most),) int64."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64)) if n else np.zeros(0, np.int64)
