"""From where on a similarity is a copy: a quantile of a null. Pure: numbers in, numbers out."""
import numpy as np


def copy_threshold(background, quantile=0.99):
    """The `quantile` of the background similarities, and always one of them: at most 1 - quantile of them lie above it.

    background: each training image's similarity to its nearest other one. Fewer than 1 / (1 - quantile) of them: the highest.
    """
    return float(np.quantile(np.asarray(background, np.float64), quantile, method="higher"))


def spread(values):
    """-> n, mean, standard deviation and the percentiles that the field reports."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return {"n": 0}
    return {"n": len(values), "mean": float(values.mean()), "std": float(values.std())} | {
        f"p{p}": float(np.percentile(values, p)) for p in (50, 75, 90, 95, 99)}
