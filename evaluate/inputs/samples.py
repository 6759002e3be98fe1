"""Generated images and what is known of each: a samples folder with records, or any folder of images."""
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256, whole
from rotescope.common.parquet import read_table
from rotescope.datasets.images.image_bytes import IMAGES
from rotescope.datasets.manifest import decode, line_safe, read_encoded
from rotescope.datasets.readers.sources import Quarantined

ORDER = ("none", "stp", "og-stp", "og-stp-layout", "dtp", "og-dtp")  # how reports list the methods; others follow
GROUPS = ("duplicated", "control", "captions", "ungrouped", "further duplicated", "further control", "further",
          "paraphrase duplicated", "paraphrase control", "paraphrase",
          "heldout", "empty", "file")
WANTED = "name what rotescope generate wrote, or any folder of images"
NEEDED = ("image", "method", "prompt_index", "prompt", "seed", "group", "image_id")


@dataclass(frozen=True)
class Record:
    """One generated image."""
    image: str                   # path relative to the folder
    method: str = "none"
    prompt_index: int | None = None
    prompt: str = ""
    seed: int | None = None
    group: str = "ungrouped"
    image_id: str = ""           # the training image that the prompt belongs to, if known
    denoiser_rows: int | None = None
    transition_timestep: float | None = None
    prediction_gaps: tuple[float, ...] = ()
    timesteps: tuple[float, ...] = ()
    active: bool | None = None   # whether the mitigation changed anything of it, if known


@dataclass(frozen=True)
class Samples:
    """Generated images, in a folder or in memory, and what is known of each."""
    folder: Path | None          # None: they are in memory
    records: tuple[Record, ...]
    run: dict = field(default_factory=dict)  # run.json: config, model, hashes, versions, methods
    left_out: tuple[Quarantined, ...] = ()   # pictures that cannot be read
    # `image` of a record -> RGB picture, if in memory
    held: dict[str, Image.Image] = field(default_factory=dict, repr=False)

    def open(self, record):
        """-> PIL image, RGB."""
        return open_image(self.folder / record.image) if self.folder else self.held[record.image].copy()

    @property
    def side(self):
        """The shorter side of the first picture, in pixels."""
        return min(self.open(self.records[0]).size)

    @cached_property
    def sha256(self):
        """Of each image file, in order; of a picture in memory, of its pixels."""
        return [sha256(self.folder / r.image) if self.folder else pixels_sha256(self.held[r.image])
                for r in self.records]

    @property
    def pictures(self):
        """[(SHA-256, what opens the picture)]."""
        return [(sha, partial(self.open, r)) for sha, r in zip(self.sha256, self.records, strict=True)]

    @property
    def cells(self):
        """(method, group) -> the positions of its records, methods and groups in the order of reports."""
        found = {}
        for i, r in enumerate(self.records):
            found.setdefault((r.method, r.group), []).append(i)
        return dict(sorted(found.items(), key=lambda cell: (_place(cell[0][0], ORDER), _place(cell[0][1], GROUPS))))

    @property
    def hash(self):
        """Over the names, prompts, groups and seeds, and the encoded images."""
        named = zip(self.records, self.sha256, strict=True)
        lines = ("\t".join([*map(line_safe, (r.image, r.method, r.prompt, r.group, r.image_id)), str(r.seed), sha]) + "\n"
                 for r, sha in named)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def pixels_sha256(picture):
    """Of the size and the pixels of an RGB picture."""
    return hashlib.sha256(f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()).hexdigest()


def open_image(file):
    return decode(read_encoded(str(file), None), str(file))


def _place(name, order):
    return order.index(name) if name in order else len(order)


def read_samples(folder):
    """A folder -> Samples; these stay as they are. Without records.parquet every image counts as method `none`, prompt unknown.

    Raises InputError if it is missing, holds no images that can be read, or its records name images that are gone.
    """
    if isinstance(folder, Samples):
        return folder
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder of generated images at {folder}: {WANTED}")
    known = _read_records(folder) if (folder / "records.parquet").exists() else _bare_records(folder)
    _check_files(folder, known)
    records, left_out = _readable(folder, known)
    if not records:
        raise InputError(left_out[0].reason if left_out else f"{folder} holds no images: {WANTED}")
    return Samples(folder, tuple(records), _read_run(folder / "run.json"), left_out)


def _check_files(folder, records):
    outside = [r.image for r in records if Path(r.image).is_absolute() or ".." in Path(r.image).parts]
    gone = outside or [r.image for r in records if not (folder / r.image).is_file()]
    if gone:
        more = f" (and {len(gone) - 1} more)" if gone[1:] else ""
        raise InputError(f"{gone[0]}{more} is not in {folder}, though its records name it: generate the samples again")


def _bare_records(folder):
    """Whoever made them."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return [Record(p.relative_to(folder).as_posix()) for p in files]


def _readable(folder, records):
    """-> (the records whose images can be read, the others by name)."""
    with ThreadPoolExecutor() as threads:
        reasons = list(threads.map(_unreadable, (folder / r.image for r in records)))
    pairs = list(zip(records, reasons, strict=True))
    return [r for r, reason in pairs if not reason], tuple(Quarantined(r.image, reason) for r, reason in pairs if reason)


def _unreadable(file):
    """-> why, or None."""
    try:
        open_image(file)
    except InputError as error:
        return str(error)


def _read_records(folder):
    try:
        rows = read_table(folder / "records.parquet").to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder / 'records.parquet'} cannot be read ({error}): generate the samples again") from error
    missing = [c for c in NEEDED if rows and c not in rows[0]]
    if missing:
        raise InputError(f"{folder / 'records.parquet'} has no column {missing[0]}: generate the samples again")
    return [_record(row) for row in rows]


def _record(row):
    known = {k: v for k, v in row.items() if k in Record.__dataclass_fields__ and v is not None}
    at = known.pop("transition_timestep", -1)
    known |= {} if at < 0 else {"transition_timestep": whole(at)}  # below 0: it never came
    return Record(**known | {"group": row["group"] or "ungrouped", "prediction_gaps": tuple(row.get("prediction_gaps") or ()),
                             "timesteps": tuple(map(whole, row.get("timesteps") or ()))})


def _read_run(file):
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): mend or remove it") from error
