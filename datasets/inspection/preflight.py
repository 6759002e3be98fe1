"""What is known of a data set before training: near-duplicates, captions that single out one image, images most at risk."""
import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from rotescope.common.console import say
from rotescope.common.outputs import check_apart, check_output, output_folder, versions, write_json
from rotescope.common.parquet import write_table
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.common.wording import exact_number
from rotescope.datasets.geometry.near_copies import copies_among, make_verifiers
from rotescope.datasets.images.clusters import PictureClusters, find_pictures, look_at
from rotescope.datasets.inspection.page import preflight_page
from rotescope.datasets.inspection.risk import Risk, ranking, repeated, risks
from rotescope.datasets.inspection.shared_pictures import SAME_BYTES, SharedPicture, shared_pictures
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.quarantine import save_quarantined, show_quarantined
from rotescope.datasets.readers.sources import Quarantined, Source, as_source, read_source
from rotescope.datasets.trainers.data_options import data_options, for_other_pictures


@dataclass(frozen=True)
class Preflight:
    """What is known of a data set before training."""
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]
    pictures: PictureClusters   # which images are near-duplicates of each other
    risks: list[Risk]           # for each image
    order: list[int]            # positions, the riskiest first
    unused: tuple[str, ...] = ()  # sentences on files that are no part of the data
    verified: bool = False      # whether pictures were laid on one another, too
    shared: tuple[SharedPicture, ...] | None = None   # the images that another set has too; None where none was named

    @property
    def clusters(self):
        """Positions of the images of each picture that has several, the riskiest first."""
        found = {}
        for i in self.order:
            found.setdefault(int(self.pictures.labels[i]), []).append(i)
        return [sorted(images) for images in found.values() if len(images) > 1]

    @property
    def summary(self):
        with_captions = [e for e in self.manifest if e.captions]
        singled = sum(r.caption_pictures == 1 for e, r in zip(self.manifest, self.risks, strict=True) if e.captions)
        return {"images": len(self.manifest), "quarantined": len(self.quarantined), "pictures": len(set(self.pictures.labels)),
                "exact_duplicates": len(self.manifest) - len({e.sha256 for e in self.manifest}),
                "clusters": len(self.clusters), "images_in_clusters": sum(map(len, self.clusters)),
                "without_caption": len(self.manifest) - len(with_captions), "captions": len(self.manifest.captions()),
                "repeated_captions": len(repeated(self.manifest, self.pictures.labels)), "singled_out_by_caption": singled,
                "shown": self.manifest.copies, "highest_risk": round(max(r.risk for r in self.risks), 3),
                **({} if self.shared is None else {"shared": len(self.shared), "shared_bytes": sum(
                    s.how == SAME_BYTES for s in self.shared)}), "hash": self.manifest.hash}


def preflight(train_data: str | Path | Source | Manifest, on_image: Callable[[str], None] | None = None, *,
              verify: bool = True, against: str | Path | Source | Manifest | None = None) -> Preflight:
    """Look at a data set before training; nothing is written.

    Parameters
    ----------
    train_data : str, Path, Source or Manifest
        What `rotescope prepare` takes: a folder of images, a trainer's configuration, a Parquet file, a manifest, a Hugging Face
        data set. Repeats count in the risk.
    on_image : callable, optional
        Called with "looking", and then with "features" and "verifying", for each content once; with "comparing" for each content
        of both sets that only one has.
    verify : bool
        Also lay pictures on one another, by the definition of a copy that an audit has: crops, frames, turns, texts.
    against : str, Path, Source or Manifest, optional
        Another set, such as the held-out pictures.

    Returns
    -------
    Preflight
        Its `summary` has the counts, `clusters` the near-duplicates, `risks` and `order` the images most at risk, `shared` the
        images that the other set has too.

    Raises
    ------
    InputError
        If there is nothing at `train_data`, or no image that can be read.

    Examples
    --------
    >>> from rotescope import preflight
    >>> found = preflight("photos")
    >>> found.summary["images"], found.clusters
    (6, [])
    """
    source = as_source(train_data)
    manifest = source.manifest
    first = {e.sha256: e for e in reversed(manifest.examples)}
    with ThreadPoolExecutor() as threads:
        looks = dict(zip(first, threads.map(lambda e: _look(e, on_image), first.values()), strict=True))
    verified = _verified(first, on_image) if verify and len(first) > 1 else ()
    pictures = find_pictures([e.sha256 for e in manifest], looks, verified)
    found = risks(manifest, pictures.labels)
    shared = None if against is None else tuple(shared_pictures(
        manifest, as_source(against).manifest, verify, on_image and partial(on_image, "comparing")))
    return Preflight(manifest, source.quarantined, pictures, found, ranking(found), source.unused, verify, shared)


def _look(example, on_image):
    look = look_at(example.open())
    if on_image:
        on_image("looking")
    return look


def _verified(first, on_image):
    """{SHA-256: Example} -> pairs of positions that are one picture by geometry."""
    openers = [e.open for e in first.values()]
    verifiers = make_verifiers(list(first), openers, on_image=on_image and partial(on_image, "features"))
    return list(copies_among(openers, verifiers, on_image and partial(on_image, "verifying")))


def superfluous(found):
    """-> {position of an image: position of the one that stays for it}: the largest of its cluster, of equals the first; rather
    one that a plan names."""
    def worth(i):
        width, height = found.pictures.looks[found.manifest[i].sha256].size
        return bool(found.manifest[i].group), width * height, -i
    return {i: best for images in found.clusters for best in [max(images, key=worth)] for i in images if i != best}


def deduplicated(found):
    """-> the manifest with one image of each cluster, once, whatever a plan had repeated; the order stays."""
    dropped = superfluous(found)
    return Manifest(tuple(replace(e, copies=1) for i, e in enumerate(found.manifest) if i not in dropped))


# ----- what is written

def table(found):
    """-> rows of images.parquet, riskiest first."""
    sizes = np.bincount(found.pictures.labels)
    for rank, i in enumerate(found.order, 1):
        e, r, label = found.manifest[i], found.risks[i], int(found.pictures.labels[i])
        look = found.pictures.looks[e.sha256]
        yield {"rank": rank, "image_id": e.image_id, "where": e.name, "risk": round(r.risk, 6), "exposures": r.exposures,
               "copies": e.copies, "cluster": label if sizes[label] > 1 else None, "cluster_images": int(sizes[label]),
               "caption": r.caption, "caption_share": round(r.caption_share, 6), "caption_pictures": r.caption_pictures,
               "own_words": " ".join(r.own_words), "captions": len(e.captions), "width": look.size[0], "height": look.size[1],
               "phash": look.phash, "pdq": look.pdq, "sha256": e.sha256}


def write(found, folder, config):
    """Page and tables -> folder."""
    rows, folder = list(table(found)), Path(folder)
    write_table(pa.Table.from_pylist(rows), folder / "images.parquet", kind="images")
    _write_csv(rows, list(rows[0]), folder / "images.csv")
    if found.quarantined:
        save_quarantined(found.quarantined, folder / "quarantined.csv")
    if config.deduplicate:
        deduplicated(found).save(folder / "deduplicated.parquet")
        _write_csv(dropped(found), ("image_id", "where", "kept_image_id", "kept_where"), folder / "dropped.csv")
    if found.shared is not None:
        _write_csv(_shared_rows(found), ("image_id", "where", "other_image_id", "other_where", "how"), folder / "shared.csv")
    (folder / "preflight.html").write_text(preflight_page(found, config.train_data), encoding="utf-8", errors="backslashreplace")
    write_json(folder / "preflight.json", found.summary | {"config": plain(config), "versions": versions()})


def dropped(found):
    """-> rows of dropped.csv: which images deduplicated.parquet lacks, and which stay for them."""
    for i, kept in superfluous(found).items():
        one, other = found.manifest[i], found.manifest[kept]
        yield {"image_id": one.image_id, "where": one.name, "kept_image_id": other.image_id, "kept_where": other.name}


def _shared_rows(found):
    """-> rows of shared.csv."""
    for s in found.shared:
        yield {"image_id": s.own.image_id, "where": s.own.name, "other_image_id": s.other.image_id, "other_where": s.other.name,
               "how": s.how}


def _write_csv(rows, columns, file):
    with open(file, "w", newline="", encoding="utf-8") as stream:
        lines = csv.DictWriter(stream, columns)
        lines.writeheader()
        lines.writerows(rows)


def preflight_to_folder(config):
    """As `config` says -> Preflight; the page and the tables are in config.output_dir."""
    check_output(config.output_dir, config.overwrite, inputs=(config.train_data, config.against))
    options = data_options(config)
    source = read_source(config.train_data, need_captions=False, options=options)
    other = read_source(config.against, False, for_other_pictures(options)) if config.against else None
    check_apart(config.output_dir, {e.file for data in (source, other) if data for e in data.manifest})
    different = {e.sha256 for e in source.manifest}
    bars = dict.fromkeys(("looking", "features", "verifying") if config.verify else ("looking",), len(different))
    if other:
        theirs = {e.sha256 for e in other.manifest}
        bars["comparing"] = len(different - theirs) + len(theirs) if different - theirs else 0
    with progress_bars(bars) as advance:
        found = preflight(source, advance, verify=config.verify, against=other)
    with output_folder(config.output_dir, config.overwrite) as folder:
        write(found, folder, config)
    return found


def say_summary(found, folder, deduplicate=False):
    """The few lines that a terminal shows, on stderr."""
    s = found.summary
    lines = [f"{s['images']} images show {s['pictures']} pictures: {s['images_in_clusters']} are in {s['clusters']} clusters of "
             f"near-duplicates, {s['exact_duplicates']} are exact duplicates",
             f"{s['singled_out_by_caption']} images are the only picture of a caption; {s['repeated_captions']} captions repeat",
             f"the page is {Path(folder) / 'preflight.html'}"]
    if s["shown"] != s["images"]:
        lines.insert(1, f"an epoch shows {exact_number(s['shown'])} pictures, repeats counted, as the risk does")
    if found.shared is not None:
        lines.append(f"{s['shared']} images are in the other set too, {s['shared_bytes']} of them byte for byte"
                     + (f": {Path(folder) / 'shared.csv'} lists them" if found.shared else ""))
    if deduplicate:
        file = Path(folder) / "dropped.csv"
        lines.append(f"deduplicated.parquet keeps one image of each cluster; {file} lists the {len(superfluous(found))} others")
    show_quarantined(found.quarantined, Path(folder) / "quarantined.csv", found.unused)
    say("\n".join(lines))
