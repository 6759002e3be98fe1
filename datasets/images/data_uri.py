"""A picture as text that a page can hold."""
import base64
import io

from PIL import Image


def data_uri(picture, side):
    """An image as a data URI.

    Parameters
    ----------
    picture : PIL.Image.Image or None
        None stays None.
    side : int
        Pixels. A picture up to this size goes in exactly, as PNG; a larger one as a thumbnail of it, as WebP.

    Returns
    -------
    str or None
    """
    if picture is None:
        return None
    stream, small = io.BytesIO(), max(picture.size) <= side
    if not small:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.LANCZOS)
    picture.save(stream, **({"format": "PNG", "optimize": True} if small else {"format": "WEBP", "quality": 88}))
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(stream.getvalue()).decode()}"
