"""Which images show the same picture: by content, by near-duplicate search; and the perceptual hashes that other tools use."""
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rotescope.datasets.images import near_duplicates as similar

METHOD = (
    "Exact duplicates by SHA-256 of the encoded bytes. Near-duplicates by comparing colours at "
    f"{similar.COARSE} × {similar.COARSE} pixels, mirrored or not (the {similar.NEIGHBOURS} nearest, from a cosine of "
    f"{similar.CANDIDATE}), then by laying one over the other at {similar.FINE} × {similar.FINE}: cosine at least "
    f"{similar.DUPLICATE}, pixels within {similar.RESIDUE} levels (RMS) and mean colours within {similar.SHADE}, or "
    f"{similar.WINDOW_SHADE} where one is a window of the other. The thresholds "
    "were set on composed scenes of 64 pixels with planted copies; on photographs, look before you delete. Pictures of one flat "
    "colour match only exactly. ")
VERIFIED = (
    "Copies that are cropped, framed, turned, mirrored or written over: by laying pictures on one another, by local features "
    "and by pixels, as an audit verifies copies; a pair counts if it covers half of one and a third of the other, and its score "
    "lies far above what chance brings. ")
CHAINS = "A cluster joins what a chain of pairs links."


@dataclass(frozen=True)
class Look:
    """What is kept of an image."""
    size: tuple[int, int]
    thumbnail: np.ndarray
    phash: str             # 64 bits in hex
    pdq: str | None        # 256 bits in hex, where the package pdqhash is installed


@dataclass(frozen=True)
class PictureClusters:
    """Images sorted into pictures."""
    labels: np.ndarray        # (n,) the picture that each image shows, 0 ... pictures - 1
    looks: dict[str, Look]    # by SHA-256


def look_at(image):
    """RGB image -> Look."""
    return Look(image.size, similar.thumbnail(image), phash(image), pdq_hash(image))


def find_pictures(hashes, looks, verified=()):
    """SHA-256 of each image, and a Look for each -> PictureClusters. verified: pairs of positions among the looks that
    geometry says are one picture."""
    row = {sha: i for i, sha in enumerate(looks)}
    coarse = similar.near_duplicates(np.stack([look.thumbnail for look in looks.values()]))
    pairs = np.concatenate([coarse, np.array(list(verified), np.int64).reshape(-1, 2)])
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(row), len(row)))
    labels = connected_components(links, directed=False)[1]
    return PictureClusters(labels[[row[sha] for sha in hashes]], looks)


def phash(image):
    """Perceptual hash: which of the 8 × 8 lowest frequencies of 32 × 32 greys are above their median -> 16 hex digits."""
    low = dctn(np.asarray(image.convert("L").resize((32, 32), Image.LANCZOS), np.float64))[:8, :8]
    return _hex(low > np.median(low))


def pdq_hash(image):
    """Facebook's PDQ hash -> 64 hex digits, or None without the package pdqhash (extra `pdq`)."""
    if find_spec("pdqhash") is None:
        return None
    import pdqhash
    return _hex(pdqhash.compute(np.ascontiguousarray(image))[0])


def _hex(bits):
    return np.packbits(np.asarray(bits, bool)).tobytes().hex()
