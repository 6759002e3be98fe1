"""A folder of pictures with their captions beside them, each shown once; or all under one prompt, as
DreamBooth scripts have it.

    dog/a.jpg + dog/a.txt                              each line a caption
    dog/*.jpg, --instance_prompt "a photo of sks dog"  one caption for all; --class_data_dir is set aside
"""
from collections.abc import Iterator
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.trainers.config_paths import printable_name
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import (
    Item,
    ListedPicture,
    Quarantined,
    Remark,
    SetAside,
    TrainerLayout,
)
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures, readable_captions

CLASS_PICTURES = "class pictures (--class_data_dir)"


def plain_entries(folder: Path, options: DataOptions) -> Iterator[Item]:
    """Every picture under a folder, once."""
    tree = PictureTree(folder, options)
    regular = class_folder(options)
    for picture in tree.pictures:
        if regular and picture.absolute().is_relative_to(regular):
            continue
        captions = (options.instance_prompt,) if options.instance_prompt else readable_captions(tree, picture)
        yield captions if isinstance(captions, Quarantined) else ListedPicture(captions, str(picture))
    yield from tree.remarks()
    yield from class_pictures(options)
    if options.instance_prompt and tree.has_captions:
        yield Remark(f"all pictures are taken for trained under {options.instance_prompt!r}: their caption "
                     "files are not read")
    yield from (SetAside(str(f), "") for f in tree.others)


def class_folder(options: DataOptions) -> Path | None:
    """The folder of class or regularisation pictures. InputError if it is named and not there."""
    if not options.class_data_dir:
        return None
    folder = Path(options.class_data_dir).absolute()
    if not folder.is_dir():
        raise InputError(f"no folder of class pictures at {printable_name(folder)}: correct "
                         "--class_data_dir or leave it out")
    return folder


def class_pictures(options: DataOptions) -> Iterator[Item]:
    """A SetAside for each class picture, wherever their folder lies."""
    folder = class_folder(options)
    for _ in range(count_pictures(folder) if folder else 0):
        yield SetAside(str(folder), CLASS_PICTURES)


PLAIN_FOLDER = TrainerLayout("folder of pictures", Path.is_dir, plain_entries)
