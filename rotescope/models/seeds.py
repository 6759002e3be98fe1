"""Texts to whole numbers: a seed, or a place in an order, that is the same in every run and everywhere."""
import hashlib


def hashed_integer(text, size=8):
    """A text as a whole number, which changes altogether when one letter does.

    Parameters
    ----------
    text : str
        What tells things apart, such as a seed and the identity of an image.
    size : int
        How many of the 32 bytes of the SHA-256 count; the number is below 256 ** size.

    Returns
    -------
    int
        The first `size` bytes of the SHA-256 of the text in UTF-8, the highest first.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big")
