"""What a trainer's layout of data says: which pictures it shows, how often, under which captions, and which
files it does not."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rotescope.datasets.trainers.data_options import DataOptions


@dataclass(frozen=True)
class ListedPicture:
    """A picture that the trainer shows."""
    captions: tuple[str, ...]
    file: str                # the image file, or the table or archive that holds it
    row: int | None = None   # its place there; None for an image file
    copies: int | float = 1  # how often an epoch shows it; a fraction is kept over several epochs
    note: str = ""           # what the manifest notes of it


@dataclass(frozen=True)
class SetAside:
    """A file that lies with the pictures and is none that the model is shown."""
    file: str
    reason: str   # what it is, in the plural, as in "12 masks"; "" where nobody knows


@dataclass(frozen=True)
class Remark:
    """What a user should know of how the data were read."""
    sentence: str


@dataclass(frozen=True)
class Tally:
    """A remark on so many of something, which is said once of all folders together: "2 pictures have …"."""
    n: int
    one: str    # "picture has"
    many: str   # "pictures have"
    rest: str


@dataclass(frozen=True)
class Quarantined:
    """An image, or a file of images, that is left out."""
    name: str
    reason: str       # a sentence that names it and says what to do
    group: str = ""   # what a manifest's plan has it for


Item = ListedPicture | SetAside | Remark | Tally | Quarantined


@dataclass(frozen=True)
class TrainerLayout:
    """How one trainer lays out its data: the contract of every reader of such a layout.

    `recognise` says whether a path is laid out so. `entries` then yields what it says; it raises InputError
    where the whole cannot be read. A picture that cannot be used is Quarantined, and the rest goes on.
    """
    name: str                                                      # as a line for people says it
    recognise: Callable[[Path], bool]
    entries: Callable[[Path, DataOptions], Iterator[Item]]
