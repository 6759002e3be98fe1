"""What lies under a folder of pictures: the pictures, the captions beside them, and what trainers keep there
and never show."""
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import EXTENSIONS, read_side_file
from rotescope.datasets.images.image_bytes import IMAGES
from rotescope.datasets.trainers.config_paths import printable_name
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, Quarantined, Remark, SetAside, Tally

MASK = re.compile(r".*-masklabel\d?", re.IGNORECASE | re.DOTALL)       # OneTrainer's
CONDITION = re.compile(r".*-condlabel\d?", re.IGNORECASE | re.DOTALL)
MASK_FOLDER = re.compile(r"_?masks?", re.IGNORECASE)
CONDITION_FOLDER = re.compile(r"(conditioning|control).*", re.IGNORECASE)
CACHES = {".npz", ".npy", ".pt", ".safetensors"}
METADATA_CACHE = re.compile(r"(metadata_cache|aspect_ratio_bucket_.*|\.?aitk_size)\.json", re.IGNORECASE)
MASKS, CONTROLS, HIDDEN = "masks", "control pictures", "hidden pictures"
LATENTS, TABLES = "latents caches", "metadata caches"
READINGS = {"first": "the first is the caption", "all": "each is a caption", "joined": "the whole is the caption"}


@dataclass
class PictureTree:
    """The files under a folder, sorted by what they are. Ask for the captions of its pictures, then for
    remarks."""
    folder: Path
    options: DataOptions
    usual_lines: str = "all"
    extension: str = ""             # of the caption files, as a configuration names it; options come first
    recursive: bool = True
    pictures: list[Path] = field(default_factory=list)    # sorted
    others: list[Path] = field(default_factory=list)      # of no known kind
    aside: list[SetAside] = field(default_factory=list)
    unread: list[Quarantined] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)      # links to folders
    several: Counter = field(default_factory=Counter)     # caption files of several lines, by how these are read
    differing: Counter = field(default_factory=Counter)   # pairs of caption files that say different things
    _sides: dict = field(default_factory=dict)            # (folder, stem) -> {extension: file}

    def __post_init__(self):
        files = self._files()
        candidates = [f for f in files if f.suffix.lower() in IMAGES]
        places: dict[str, set[Path]] = {}
        for f in candidates:
            places.setdefault(f.stem, set()).add(f.parent)
        for f in candidates:
            reason = self._why_aside(f, places[f.stem])
            self.aside.append(SetAside(str(f), reason)) if reason else self.pictures.append(f)
        owners = {(f.parent, f.stem) for f in candidates}
        for f in (f for f in files if f.suffix.lower() not in IMAGES):
            if f.suffix.lower() in (*EXTENSIONS, self.wanted) and (f.parent, f.stem) in owners:
                self._sides.setdefault((f.parent, f.stem), {})[f.suffix.lower()] = f
            elif f.suffix.lower() in CACHES or METADATA_CACHE.fullmatch(f.name):
                self.aside.append(SetAside(str(f), LATENTS if f.suffix.lower() in CACHES else TABLES))
            else:
                self.others.append(f)

    @property
    def wanted(self) -> str:
        """The one extension that caption files have; "" where any will do."""
        return (self.options.caption_extension or self.extension).lower()

    @property
    def has_captions(self) -> bool:
        """Whether a caption file lies beside any picture."""
        return bool(self._sides)

    def captions(self, picture: Path, lines: str = "") -> tuple[str, ...]:
        """The captions that lie beside a picture. InputError if they cannot be read."""
        lines = lines or self.options.lines_of(self.usual_lines)
        there = self._sides.get((picture.parent, picture.stem), {})
        if self.wanted:
            return self._read(there[self.wanted], lines) if self.wanted in there else ()
        said = {ext: self._read(there[ext], lines) for ext in EXTENSIONS if ext in there}
        said = {ext: captions for ext, captions in said.items() if captions}
        if len(set(said.values())) > 1:
            self.differing[" and ".join(said)] += 1
        return next(iter(said.values()), ())

    def remarks(self) -> Iterator[Item]:
        """What is to be said of the tree once its captions are read: unreadable places, files set aside,
        contradictions."""
        yield from self.unread
        yield from self.aside
        if self.linked:
            n = len(self.linked)
            links = "1 link to a folder is" if n == 1 else f"{n} links to folders are"
            first = printable_name(self.linked[0])
            yield Remark(f"{links} not followed, the first {first}: name the folder itself")
        for lines, n in self.several.items():
            yield Tally(n, "caption file has", "caption files have",
                        f"several lines: {READINGS[lines]} (--caption_lines)")
        for pair, n in self.differing.items():
            first = pair.split(" ")[0]
            yield Tally(n, "picture has", "pictures have", f"{pair} beside it that say different things: "
                                                           f"{first} "
                        "counts; --caption_extension names another")

    def _read(self, file, lines):
        each = read_side_file(file, "all", self.options.caption_encoding)
        if len(each) < 2 or file.suffix.lower() == ".json":
            return each
        self.several[lines] += 1
        return each if lines == "all" else read_side_file(file, lines, self.options.caption_encoding)

    def _files(self):
        """Links to files are followed, as trainers do; those to folders are not; those that lead nowhere
        stay, to be named."""
        if not self.recursive:
            return sorted(f for f in self._entries(self.folder) if is_file_or_lost(f))
        found = []
        def note(error):
            self.unread.append(unreadable(error.filename, error))
        for root, folders, names in os.walk(self.folder, onerror=note):
            found += [Path(root, name) for name in names]
            self.linked += [place for name in folders if (place := Path(root, name)).is_symlink()]
        return sorted(f for f in found if is_file_or_lost(f))

    def _entries(self, folder):
        try:
            return list(folder.iterdir())
        except OSError as error:
            self.unread.append(unreadable(folder, error))
            return []

    def _why_aside(self, file, places):
        """Why a picture is none that is trained on; "" if it is one. places: the folders that hold a picture
        of this name."""
        inner = file.relative_to(self.folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in inner):
            return HIDDEN
        if MASK.fullmatch(file.stem):
            return MASKS
        if CONDITION.fullmatch(file.stem):
            return CONTROLS
        for kind, reason in ((MASK_FOLDER, MASKS), (CONDITION_FOLDER, CONTROLS)):
            if any(kind.fullmatch(part) for part in inner[:-1]) and self._has_original(places, kind):
                return reason
        return ""

    def _has_original(self, places, kind):
        """Whether a picture of the same name lies outside of folders of that kind: masks of nothing are
        pictures themselves."""
        inner = (place.relative_to(self.folder).parts for place in places)
        return any(not any(kind.fullmatch(part) for part in parts) for parts in inner)


def is_file_or_lost(file: Path) -> bool:
    """Whether it is a file, or a link that leads nowhere; no device, which would not end."""
    return file.is_file() or file.is_symlink() and not file.exists()


def unreadable(file, error) -> Quarantined:
    """A file or folder that the system does not give."""
    name = printable_name(file)
    return Quarantined(name, f"{name} cannot be read ({error}): mend it or leave it out")


def readable_captions(tree: PictureTree, picture: Path) -> tuple[str, ...] | Quarantined:
    """The captions beside a picture, or the picture as Quarantined where they cannot be read."""
    try:
        return tree.captions(picture)
    except InputError as error:
        return Quarantined(printable_name(picture), str(error))


def count_pictures(folder: Path) -> int:
    """How many files under a folder have a picture's name."""
    return sum(Path(name).suffix.lower() in IMAGES for _, _, names in os.walk(folder) for name in names)
