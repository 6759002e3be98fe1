"""The squares in which a descriptor sees a whole picture: descriptors look at the centre square alone."""
import hashlib

from PIL import Image, ImageOps

LONG = 1.15    # long side by short side, from which a picture is also seen in other squares


def square_views(size: tuple[int, int]) -> tuple[str, ...]:
    """Width and height -> the names of its views: the centre square and its mirror image; of a long picture also the
    squares at its ends, and the whole with bars."""
    short, long = sorted(size)
    return ("centre", "mirrored", *(("start", "end", "letterbox") if long >= LONG * short else ()))


def square_view(image: Image.Image, name: str) -> Image.Image:
    """One of these views of an RGB picture, a square one where it is not the centre."""
    width, height = image.size
    side = min(width, height)
    if name == "mirrored":
        return ImageOps.mirror(image)
    if name == "start":
        return image.crop((0, 0, side, side))
    if name == "end":
        return image.crop((width - side, height - side, width, height))
    if name == "letterbox":
        return ImageOps.pad(image, (side, side), Image.BILINEAR, color=(128, 128, 128))
    return image


def view_sha256(sha256: str, name: str) -> str:
    """What a view of a picture is stored under; the centre square is the picture's own."""
    return sha256 if name == "centre" else hashlib.sha256(f"{sha256} {name}".encode()).hexdigest()
