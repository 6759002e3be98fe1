"""kohya's folders: the number before a folder's name says how often an epoch shows its pictures, the words
behind caption them.

    img/10_sks dog/a.jpg + a.txt    10 times; the caption is the file's first line
    img/10_sks dog/b.jpg            10 times, under "sks dog"
    reg/1_dog/c.jpg                 regularisation: set aside

Facts: kohya-ss/sd-scripts. Only pictures that lie in a numbered folder itself are shown; a folder without a
number, or with 0, is passed over.
"""
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.images.image_bytes import IMAGES
from rotescope.datasets.trainers.config_paths import printable_name
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import (
    Item,
    ListedPicture,
    Quarantined,
    Remark,
    SetAside,
    Tally,
    TrainerLayout,
)
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures, readable_captions
from rotescope.datasets.trainers.plain_folder import class_folder, class_pictures

NUMBERED = re.compile(r"(\d{1,9})_(.*)", re.DOTALL)
REGULAR = re.compile(r"regs?|regulari[sz]ation.*|reg[_-].*|class[_-](images|pictures)", re.IGNORECASE)
YEARS = range(1900, 2101)


@dataclass(frozen=True)
class NumberedFolder:
    """A folder whose pictures an epoch shows `repeats` times."""
    path: Path
    repeats: int
    words: str


def numbered_folder(path: Path) -> NumberedFolder | None:
    """A folder as kohya reads its name, or None where that has no number."""
    found = NUMBERED.fullmatch(path.name)
    return NumberedFolder(path, int(found[1]), found[2].strip()) if found else None


def is_kohya_tree(path: Path) -> bool:
    """Whether a folder is laid out so, or holds img/ that is."""
    return path.is_dir() and bool(_roots(path))


def kohya_entries(path: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of the numbered folders in `path`, in its img/, or of `path` itself where it is one of
    them."""
    if options.instance_prompt:
        raise InputError(f"{printable_name(path)} has kohya's numbered folders, whose pictures have "
                         "captions of their own: leave out --instance_prompt, or pass --data_layout folder")
    root = _root(path, options.data_layout == "kohya")
    if root == path and (own := numbered_folder(path)) and _holds_pictures(path):
        yield from _numbered(own, options)
    else:
        yield from _within(root, options)
        if root != path:
            yield from _beside(path, root, options)
    yield from class_pictures(options)


def _within(root, options):
    regular = class_folder(options)
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        found = numbered_folder(folder)
        if regular and folder.absolute().is_relative_to(regular):
            continue   # counted by itself
        if found and found.repeats and not REGULAR.fullmatch(folder.name):
            if folder.is_symlink():
                yield Remark(f"{printable_name(folder.name)} is a link, which is followed to {printable_name(folder.resolve())}")
            yield from _numbered(found, options)
        elif not folder.name.startswith("."):
            yield from _aside(folder)
    for file in sorted(p for p in root.iterdir() if p.is_file()):
        picture = file.suffix.lower() in IMAGES
        yield SetAside(str(file), "pictures outside of a numbered folder" if picture else "")


def _numbered(folder, options):
    """Its pictures; a remark where the folder's words stand for a caption file."""
    tree = PictureTree(folder.path, options, "first", recursive=False)
    bare = 0
    for picture in tree.pictures:
        captions = readable_captions(tree, picture)
        if isinstance(captions, Quarantined):
            yield captions
            continue
        bare += not captions
        words = (folder.words,) if folder.words else ()
        yield ListedPicture(captions or words, str(picture), copies=folder.repeats)
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)
    for inner in (p for p in folder.path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        yield from _counted(inner, "pictures in folders within a numbered folder, which kohya does not read")
    if 0 < bare < len(tree.pictures) and folder.words:
        yield Tally(bare, "picture has", "pictures have", "no caption file, where others of the folder do: "
                                                          "the words of the "
                    "folder's name are the caption")


def _beside(path, root, options):
    """What lies beside img/: regularisation pictures, logs, models and the pictures in them."""
    regular = class_folder(options)
    for folder in (p for p in _folders(path) if p != root and not p.name.startswith(".")):
        if not (regular and regular.is_relative_to(folder.absolute())):
            yield from _aside(folder)
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        picture = file.suffix.lower() in IMAGES
        yield SetAside(str(file), "pictures outside of a numbered folder" if picture else "")
        if file.suffix.lower() == ".toml":
            yield Remark(f"{printable_name(file.name)} lies beside the folders and is not read: the "
                         "folders' numbers count. Name that file as --train_data if it is what you trained "
                         "with")


def _aside(folder):
    found = numbered_folder(folder)
    name = printable_name(folder.name)
    if REGULAR.fullmatch(folder.name):
        yield from _counted(folder, f"regularisation pictures ({name}/)")
    elif found and not found.repeats:
        yield from _counted(folder, f"pictures with 0 repeats ({name}/)")
    else:
        yield from _counted(folder, f"pictures in {name}/, which has no number")


def _counted(folder, reason):
    return (SetAside(str(folder), reason) for _ in range(count_pictures(folder)))


# ----- where the numbered folders are

def _root(path, sure):
    roots = _roots(path, sure)
    if not roots:
        raise InputError(f"{printable_name(path)} holds no folders named as kohya has them, such as 10_sks "
                         "dog: rename one, or leave out --data_layout kohya")
    if len(roots) == 1:
        return roots[0]
    usual = [r for r in roots if r.name.lower() in ("img", "image", "images")]
    if len(usual) == 1:
        return usual[0]
    names = ", ".join(printable_name(r.name) for r in roots)
    raise InputError(f"{printable_name(path)} holds several folders with numbered ones in them ({names}): "
                     "name one of them")


def _roots(path, sure=False):
    """`path` where it is a numbered folder or holds such, else those of its folders that do and are no
    regularisation.

    sure: the user says that numbers are repeats, whatever they look like.
    """
    if _has_repeats(path, sure):
        return [path]
    own = numbered_folder(path)
    if own and (sure or 0 < own.repeats < YEARS[0]) and _holds_pictures(path):
        return [path]
    inner = (p for p in _folders(path) if not REGULAR.fullmatch(p.name) and not p.name.startswith("."))
    return [p for p in inner if _has_repeats(p, sure)]


def _has_repeats(path, sure):
    """Whether it holds numbered folders with pictures whose numbers are no classes' or years'.

    Numbers that run from 0 on are those of classes: kohya passes 0 over. Years lie between 1900 and 2100.
    """
    numbers = sorted(f.repeats for p in _folders(path) if (f := numbered_folder(p)) and _holds_pictures(p))
    classes = len(numbers) > 1 and numbers == list(range(len(numbers)))
    return bool(numbers) and (sure or not classes and not all(n in YEARS for n in numbers))


def _holds_pictures(path):
    try:
        return any(p.suffix.lower() in IMAGES for p in path.iterdir())
    except OSError:
        return False


def _folders(path):
    try:
        return sorted(p for p in path.iterdir() if p.is_dir())
    except OSError:
        return []


KOHYA_FOLDERS = TrainerLayout("kohya folders", is_kohya_tree, kohya_entries)
