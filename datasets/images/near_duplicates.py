"""Near-duplicates: pictures that are each other resized, recompressed, cropped to nine tenths or mirrored. Numpy and Pillow.

Candidates are pairs whose coarse colours agree, mirrored or not: one matrix product. Each is then laid over the other as well as
it goes, whole or as a window of at least 89 % of its sides, and counts if shapes, pixels and mean colours agree, which tells
a copy from a picture of the same thing in the same place. A window may be chosen so that it fits: its colours must agree better.
"""
from itertools import product

import numpy as np
from PIL import Image

THUMB, COARSE, FINE = 48, 8, 24         # sides in pixels: kept, compared first, compared in the end
CANDIDATE, PROMISING = 0.3, 0.87        # cosines that lead to the next step; of a small thing, cropped, the first falls to .41
SURE = 0.99                             # cosine from which no other overlay is tried
DUPLICATE, RESIDUE = 0.9, 9.0           # of a duplicate: least cosine, most RMS difference
SHADE, WINDOW_SHADE = 2.2, 1.8          # most difference of mean colours, whole or of a window
SAME, SAME_RESIDUE = 0.88, 10.0         # of the same picture in other bytes, not moved: least cosine, most RMS difference
SAME_COARSE, SAME_PEAK = 4.5, 9.0       # and at 8 × 8: most RMS difference, most of one luma
SMALL = 64                              # pixels a side, above which less of a compression is left at 24 × 24
SMALLEST = 0.89                         # side of a window
Y_CB_CR = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])  # of JFIF: where JPEG rounds
NEIGHBOURS = 64                         # candidates of a picture, at most
WINDOWS = [(0.0, 0.0, 1.0), *((x * (1 - side), y * (1 - side), side) for side in (0.95, 0.9)
                              for x, y in product((0, 0.5, 1), repeat=2))]   # left, top, side; as shares of the picture's
SIDES = np.array([side for _, _, side in WINDOWS] * 2)                       # of views(), the mirrored ones last
MOVES = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0.5, 0.5, -1), (-0.5, -0.5, 1))
STEPS = (0.025, 0.025, 0.0125, 0.0125, 0.006, 0.006, 0.003, 0.003)
BLOCK = 2048


def thumbnail(image):
    """RGB image -> uint8 (48, 48, 3), squeezed to a square: all that is kept of it."""
    return np.asarray(image.resize((THUMB, THUMB), Image.BICUBIC))


def near_duplicates(thumbnails):
    """(n, 48, 48, 3) -> (p, 2) pairs i < j that are near-duplicates."""
    pairs = candidate_pairs(thumbnails)
    seen = {i: views(thumbnails[i]) for i in np.unique(pairs)}
    return np.array([pair for pair in pairs if _proved(thumbnails, seen, *pair)], np.int64).reshape(-1, 2)


def same_picture(one, other, side=SMALL):
    """Whether two thumbnails are of one picture that was encoded anew or resized; side: the shorter one of the smaller picture.

    Stricter than a near-duplicate: neither is moved, and the means of 8 × 8 blocks agree too, which compression leaves alone and
    which two drawings of the same things in nearly the same place do not share. Of 900 scenes of 64 px it knows all as JPEG 75
    or WebP 50 and all resized to 32 to 256 px, 99.9 % as JPEG 50, 95 % as JPEG 30. Among 3,800 different scenes the closest
    pair is 1.45 × outside the limits, the next 1.8 ×; among 25,000 the closest is 1.13 ×.
    """
    both, block = np.stack([_cut(Image.fromarray(t), 0.0, 0.0, 1.0) for t in (one, other)]), FINE // COARSE  # (2, 24, 24, 3)
    cosine, left = np.prod(centred_blocks(both), axis=0).sum(), both[0] - both[1]
    blocks = left.reshape(COARSE, block, COARSE, block, 3).mean((1, 3))
    return bool(cosine >= SAME and _rms(left) <= SAME_RESIDUE * min(max(SMALL / side, 0.5), 1) and _shade(left) <= SHADE
                and _rms(blocks) <= SAME_COARSE and np.abs(blocks @ Y_CB_CR[0]).max() <= SAME_PEAK)


def _rms(left):
    return float(np.sqrt((left ** 2).mean()))


def _shade(left):
    """Length of the difference of the mean colours, in Y'CbCr."""
    return float(np.linalg.norm(Y_CB_CR @ left.mean((0, 1))))


# ----- candidates

def centred_blocks(pixels):
    """(n, s, s, 3) -> float32 (n, 3 s²): each channel less its mean, rows of length 1; 0 for a picture of flat colours."""
    x = np.asarray(pixels, np.float32)
    x = (x - x.mean((1, 2), keepdims=True)).reshape(len(x), -1)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(length > x.shape[1] ** 0.5, x / np.maximum(length, 1e-6), 0)  # flat: less than a grey level of contrast


def coarse(thumbnails):
    """(n, 48, 48, 3) -> (n, 192)."""
    block = THUMB // COARSE
    return centred_blocks(np.asarray(thumbnails, np.float32).reshape(-1, COARSE, block, COARSE, block, 3).mean((2, 4)))


def candidate_pairs(thumbnails):
    """-> (p, 2) pairs i < j: of each picture, the nearest by coarse colours, mirrored or not. A block of rows at a time."""
    straight, flipped = coarse(thumbnails), coarse(thumbnails[:, :, ::-1])
    k, found = min(NEIGHBOURS, len(straight)), [np.zeros((0, 2), np.int64)]
    for a in range(0, len(straight), BLOCK):
        near = np.maximum(straight[a:a + BLOCK] @ straight.T, flipped[a:a + BLOCK] @ straight.T)   # (b, n)
        near[np.arange(len(near)), np.arange(a, a + len(near))] = -1
        columns = np.argpartition(near, -k, axis=1)[:, -k:]
        rows, places = np.nonzero(np.take_along_axis(near, columns, 1) >= CANDIDATE)
        found.append(np.sort(np.stack([rows + a, columns[rows, places]], 1), 1))
    return np.unique(np.concatenate(found), axis=0)


# ----- proof

def views(picture):
    """A thumbnail -> (38, 1728): its windows at 24 × 24, the whole first, then all of them mirrored."""
    image = Image.fromarray(picture)
    seen = np.stack([_cut(image, *window) for window in WINDOWS])
    return centred_blocks(np.concatenate([seen, seen[:, :, ::-1]]))


def _cut(image, left, top, side):
    box = [THUMB * c for c in (left, top, left + side, top + side)]
    return np.asarray(image.resize((FINE, FINE), Image.BILINEAR, box), np.float32)


def _proved(thumbnails, seen, i, j):
    """Whether one is the other whole, or a window of it: the best overlay of those that start from the best window of each size.

    From one size alone the moves get stuck before they reach another: the worst of 300 crops then differed by 9.6 levels, and by
    3.5 once all sizes were tried, while scenes that are alike by chance gained nothing.
    """
    cosines = np.stack([seen[i] @ seen[j][0], seen[j] @ seen[i][0]])   # (2, 38)
    if cosines.max() < PROMISING:
        return False
    best = (0.0, 0.0, 0.0)
    for side in sorted(set(SIDES), key=lambda side: -cosines[:, side == SIDES].max()):
        swapped, view = np.unravel_index(np.where(side == SIDES, cosines, -1).argmax(), cosines.shape)
        part, whole = (j, i) if swapped else (i, j)
        fit = overlay(thumbnails[part], thumbnails[whole], WINDOWS[view % len(WINDOWS)], view >= len(WINDOWS))
        if side == 1 and _fits(fit, SHADE):
            return True
        best = max(best, fit)
        if best[0] >= SURE:
            break
    return _fits(best, WINDOW_SHADE)


def _fits(overlaid, most_shade):
    cosine, residue, shade = overlaid
    return cosine >= DUPLICATE and residue <= RESIDUE and shade <= most_shade


def overlay(part, whole, window, mirror):
    """Move and size the window of one thumbnail until it fits the other -> cosine, RMS difference of the pixels in grey levels,
    and length of the difference of the mean colours in Y'CbCr levels."""
    part, whole = Image.fromarray(part), _cut(Image.fromarray(whole), 0.0, 0.0, 1.0)
    target = centred_blocks(whole[None])[0]

    def fit(window):
        cut = _cut(part, *window)[:, ::-1] if mirror else _cut(part, *window)
        return float(centred_blocks(cut[None])[0] @ target), cut - whole
    best = fit(window)
    for step in STEPS:
        for move in MOVES:
            moved = _moved(window, move, step)
            if (tried := fit(moved))[0] > best[0]:
                best, window = tried, moved
    cosine, left = best   # (24, 24, 3)
    return cosine, _rms(left), _shade(left)


def _moved(window, move, step):
    """Within the picture."""
    left, top, side = (value + step * change for value, change in zip(window, move, strict=True))
    side = min(max(side, SMALLEST), 1.0)
    return min(max(left, 0.0), 1 - side), min(max(top, 0.0), 1 - side), side
