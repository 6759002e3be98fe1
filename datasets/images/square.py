"""The centre square of a picture, which every descriptor sees."""


def square(image, side, resample):
    """The centre square of an image, as training crops it, at side × side."""
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    return image.convert("RGB").resize((side, side), resample, box=(left, top, left + edge, top + edge))
