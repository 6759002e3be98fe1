"""How training data are read: what every command that takes --train_data lets a user say of them. Light: it
loads no library."""
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.common.options import Options
from rotescope.datasets.captions.side_files import LINES
from rotescope.datasets.captions.text_encoding import check_encoding

CHOICES = ("auto", "folder", "kohya")


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """How a folder of pictures, or a trainer's configuration of one, is read."""
    HEADINGS: ClassVar = {"data_layout": "how the data are read"}

    data_layout: str = "auto"
    """of a folder. auto: by what lies in it; folder: every picture once, whatever its folder is called;
    kohya: the number before a folder's name says how often an epoch shows its pictures"""
    caption_lines: str = "auto"
    """what several lines in a caption file mean. first: the first is the caption; all: each is one; joined:
    the whole is one; auto: as the trainer has it: kohya the first, ai-toolkit and musubi-tuner the whole, all
    others and a plain folder each"""
    caption_extension: str = ""
    """of the caption files, such as .caption; unless given .txt, .caption or .json, whichever there is, in
    this order"""
    caption_encoding: str = ""
    """of the caption files, such as cp1252 or shift_jis; unless given UTF-8, or UTF-16 where it shows
    itself"""
    instance_prompt: str | None = None
    """the one caption of all pictures in a folder, as DreamBooth scripts have it; caption files are then not
    read"""
    class_data_dir: str | None = None
    """folder of class or regularisation pictures: they are set aside, and counted"""
    allow_outside_paths: bool = False
    """follow the folders that a trainer's configuration names where they lie outside of its own folder"""

    def check(self):
        super().check()
        for name, known in (("data_layout", CHOICES), ("caption_lines", ("auto", *LINES))):
            if getattr(self, name) not in known:
                raise InputError(f"--{name} {getattr(self, name)!r}: take one of {', '.join(known)}")
        if self.caption_extension and not self.caption_extension.startswith("."):
            raise InputError(f"--caption_extension {self.caption_extension!r}: write it with its dot, such "
                             "as .caption")
        if self.instance_prompt is not None and not self.instance_prompt.strip():
            raise InputError("--instance_prompt is empty: write the caption that all pictures were trained "
                             "under")
        check_encoding(self.caption_encoding)

    def lines_of(self, usual: str) -> str:
        """How several lines are read, where a layout has a usual way."""
        return usual if self.caption_lines == "auto" else self.caption_lines


def data_options(config) -> DataOptions:
    """The options of a larger config that say how its training data are read; the usual ones where it has
    none."""
    names = (f.name for f in fields(DataOptions) if hasattr(config, f.name))
    return DataOptions(**{name: getattr(config, name) for name in names})


def for_other_pictures(options: DataOptions) -> DataOptions:
    """The same for pictures beside the training data, such as held-out ones: they have no one prompt and no
    class pictures."""
    return replace(options, instance_prompt=None, class_data_dir=None)
