"""What a reader must know of the images before trusting the figures."""


def match_notes(how, measured):
    """On verified matches: that none could be sought, and elements that training pictures share."""
    if how.verify and measured.verified is None:
        yield ("No match was verified by geometry, for nothing could be calibrated on these training images: copies that are "
               "cropped, shifted or mirrored, and copies of a part, may be missed.")
    for element in measured.verified.shared if measured.verified else ():
        n = len(element.images)
        found_in = f"{n:,} {'image' if n == 1 else 'images'}"
        yield f"An element that {len(element.rows):,} training pictures share was found in {found_in}: counted for none."


def featureless_notes(samples, measured):
    """Images that nothing can be compared with: a flat colour, a single pixel."""
    flat = [r.image for r, vector in zip(samples.records, measured.vectors[:], strict=True) if not vector.any()]
    if flat:
        some = "image shows" if len(flat) == 1 else "images show"
        yield (f"{len(flat):,} generated {some} nothing that could be compared with a training image, for instance {flat[0]}: "
               f"no finding covers {'it' if len(flat) == 1 else 'them'}. Look at what the model draws.")


def idle_notes(samples):
    """Mitigations that changed nothing of any of their images, which are then those of plain guidance."""
    for method in dict.fromkeys(method for method, _ in samples.cells):
        own = [r.active for r in samples.records if r.method == method]
        if method != "none" and own and not any(one is None or one for one in own):
            yield (f"{method} changed nothing of its {len(own):,} images: they are those of plain guidance, and their "
                   "figures say nothing of it.")
