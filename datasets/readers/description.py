"""What training data are, in three lines, before a picture of them is opened: for `rotescope inspect` and for
a notebook."""
from dataclasses import dataclass
from pathlib import Path

from rotescope.common.wording import exact_number
from rotescope.datasets.images.image_bytes import locate
from rotescope.datasets.manifest import exact_copies, plain_copies
from rotescope.datasets.readers.listing import Listing, in_numbers, list_data
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Quarantined


@dataclass(frozen=True)
class DataDescription:
    """How a path of training data was understood.

    Attributes
    ----------
    path : str
        As it was named.
    layout : str
        In words, such as "kohya folders".
    pictures : int
        That are listed; whether each can be read is not yet known.
    captions : int
        Different ones.
    without_caption : int
        Pictures that have none.
    least, most : int or float
        How often an epoch shows the rarest and the commonest picture.
    shown : int or float
        Showings of an epoch.
    set_aside : tuple of (str, int)
        What lies there and is no training picture, and how many of it.
    left_out : tuple of str
        Sentences on entries that cannot be used.
    notes : tuple of str
        Sentences on how the data were read, and on files of no known kind.
    """
    path: str
    layout: str
    pictures: int
    captions: int
    without_caption: int
    least: int | float
    most: int | float
    shown: int | float
    set_aside: tuple[tuple[str, int], ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One to three lines: what is trained on; what is set aside; what else to know."""
        bare = f", {self.without_caption:,} of them without a caption" if self.without_caption else ""
        times = (f"each {_times(self.least)}" if self.least == self.most else
                 f"from {_times(self.least)} to {_times(self.most)}")
        found = [f"{self.layout}: {_number(self.pictures, 'picture')}{bare}, "
                 f"{_number(self.captions, 'caption')}; an epoch shows {times}, {exact_number(self.shown)} in all"]
        found += [f"set aside: {in_numbers(self.set_aside)}"] if self.set_aside else []
        rest = [*self.left_out[:1], *self.notes]
        more = f" (and {len(self.left_out) - 1:,} more left out)" if len(self.left_out) > 1 else ""
        return found + ([f"note: {'; '.join(rest)}{more}"] if rest else [])


def describe_data(path: str | Path, options: DataOptions | None = None) -> DataDescription:
    """What lies at a path of training data.

    Parameters
    ----------
    path : str or Path
        What `--train_data` takes: a folder, a trainer's configuration, a table, a manifest, a name on the
        hub.
    options : DataOptions, optional
        How it is read.

    Returns
    -------
    DataDescription

    Raises
    ------
    InputError
        If nothing is there, or the whole cannot be read.
    """
    return describe_listing(locate(path, None), list_data(path, options or DataOptions()))


def describe_listing(path: str, found: Listing) -> DataDescription:
    """The same of what was listed at a path."""
    pictures = [e for e in found.entries if not isinstance(e, Quarantined)]
    copies = [exact_copies(e.copies) for e in pictures] or [exact_copies(0)]
    return DataDescription(
        path, found.layout, len(pictures), len({c for e in pictures for c in e.captions}),
        sum(not e.captions for e in pictures), plain_copies(min(copies)), plain_copies(max(copies)),
        plain_copies(sum(copies)), found.set_aside,
        left_out=tuple(e.reason for e in found.entries if isinstance(e, Quarantined)),
        notes=(*found.unused, *found.remarks))


def _times(copies):
    return "once" if copies == 1 else f"{exact_number(copies)} times"


def _number(n, what):
    return f"{n:,} {what}{'' if n == 1 else 's'}"
