"""Which pictures a model is most likely to learn by rote: how often one is shown under a caption that means it alone. Pure.

Somepalli et al. (NeurIPS 2023, arXiv 2305.20086) find that duplication and a caption of its own work together: an image repeated
under one caption that no other image bears is copied most. Hence, with n(K, c) the number of times that an epoch shows picture K
under caption c, and n(c) its sum over all pictures,

    risk(K) = max over c of n(K, c)² / n(c) = exposures under c × share of c's exposures that are K.

One picture under a caption of its own has risk 1, one of ten pictures under a common caption 0.1, 64 copies under a caption of
their own 64, and 64 copies under five captions in turn 12.8. It ranks; it is no probability.
"""
from collections import Counter
from dataclasses import dataclass

from rotescope.datasets.captions.side_files import SHUFFLED
from rotescope.datasets.manifest import plain_copies


@dataclass(frozen=True)
class Risk:
    """Of the picture that an image shows, its near-duplicates included."""
    risk: float
    exposures: int | float  # times an epoch shows the picture
    caption: str            # the caption of the maximum, "" without captions
    caption_share: float    # of that caption's exposures, how many are this picture
    caption_pictures: int   # pictures that bear it
    own_words: tuple[str, ...]   # words of the image's captions that no other picture's captions have, sorted


def key(caption):
    """Captions that differ in case or spaces alone are one."""
    return " ".join(caption.casefold().split())


def _key_of(example, caption):
    """The same for a caption of an example; where its tags are shuffled at training, their order tells no captions apart."""
    if not example.note.startswith(SHUFFLED):
        return key(caption)
    return ", ".join(sorted(key(tag) for tag in caption.split(",")))


def risks(manifest, pictures):
    """pictures: (n,) which picture each image shows -> [Risk] for each image, in order."""
    shown, total = Counter(), Counter()   # (picture, caption) -> exposures; caption -> exposures
    bearers, speakers = {}, {}            # caption -> pictures; word -> pictures
    exposures = Counter()
    for e, picture in zip(manifest, pictures, strict=True):
        exposures[picture] += e.copies
        for caption in e.captions or ("",):
            share, c = e.copies / max(len(e.captions), 1), _key_of(e, caption)
            shown[picture, c] += share
            total[c] += share
            bearers.setdefault(c, set()).add(picture)
            for word in key(caption).split():
                speakers.setdefault(word, set()).add(picture)
    best = _highest(shown, total)
    return [_risk(e, picture, best[picture], exposures, shown, total, bearers, speakers)
            for e, picture in zip(manifest, pictures, strict=True)]


def _highest(shown, total):
    """-> {picture: (risk, caption)}; of equals the first."""
    best = {}
    for (picture, c), n in shown.items():
        if picture not in best or n * n / total[c] > best[picture][0]:
            best[picture] = (n * n / total[c], c)
    return best


def _risk(example, picture, best, exposures, shown, total, bearers, speakers):
    risk, c = best
    own = {word for caption in example.captions for word in key(caption).split() if len(speakers[word]) == 1}
    spelt = next((caption for caption in example.captions if _key_of(example, caption) == c), c)
    return Risk(risk, plain_copies(round(exposures[picture], 6)), spelt, shown[picture, c] / total[c], len(bearers[c]),
                tuple(sorted(own)))


def ranking(found):
    """[Risk] -> the images' positions, the highest risk first, then the most exposures, then in order."""
    return sorted(range(len(found)), key=lambda i: (-found[i].risk, -found[i].exposures, i))


def repeated(manifest, pictures):
    """Captions that several images bear -> [(caption, images, pictures, exposures)], the most images first."""
    spelt, images, shown, exposures = {}, Counter(), {}, Counter()
    for e, picture in zip(manifest, pictures, strict=True):
        for c, caption in {_key_of(e, caption): caption for caption in reversed(e.captions)}.items():
            spelt.setdefault(c, caption)
            images[c] += 1
            shown.setdefault(c, set()).add(picture)
            exposures[c] += e.copies * sum(_key_of(e, other) == c for other in e.captions) / len(e.captions)
    rows = [(spelt[c], n, len(shown[c]), round(exposures[c], 3)) for c, n in images.items() if n > 1]
    return sorted(rows, key=lambda row: (-row[1], row[0]))
