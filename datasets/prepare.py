"""Any image set -> a manifest: every image checked and known by its content, copies and controls as the plan says.

    rotescope prepare --train_data_dir photos/ --output_file manifest.parquet --duplicated 24 --copies 92 --controls 24
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rotescope.datasets.duplicate import DuplicationPlan, apply_plan
from rotescope.datasets.quarantine import save_quarantined, show_quarantined, whole
from rotescope.datasets.sources import Source, read_source
from rotescope.errors import InputError, exit_cleanly
from rotescope.settings import parse


@dataclass(frozen=True)
class PrepareConfig:
    train_data_dir: str
    """folder of captioned images, Parquet file, saved Hugging Face data set, or manifest"""
    output_file: str
    """the manifest to write, a .parquet"""
    duplicated: int = 0
    """how many images repeat, chosen by plan_seed"""
    duplicated_ids: tuple[str, ...] = ()
    """or these images, by image_id"""
    copies: int = 1
    """how often an epoch shows each of them"""
    controls: int = 0
    """how many untouched images to mark for comparison; their captions are no duplicated image's"""
    caption_style: str = "same"
    """"same": every copy under the image's own captions; "several": under several rewordings in turn"""
    plan_seed: int = 0
    """seed of the choice"""
    exclusive: bool = False
    """leave out other images that bear the caption of a duplicated one"""
    overwrite: bool = False
    """replace output_file"""


def prepare(config):
    """-> Source: the planned manifest, written to config.output_file, and what was left out, written beside it."""
    file = Path(config.output_file)
    if file.suffix != ".parquet":
        raise InputError(f"{file} should end in .parquet")
    if file.exists() and not config.overwrite:
        raise InputError(f"{file} exists: name another file or pass --overwrite")
    if config.duplicated and config.duplicated_ids:
        raise InputError("--duplicated and --duplicated_ids say the same thing twice: pass one of them")
    plan = DuplicationPlan(config.duplicated_ids or config.duplicated, config.copies, config.caption_style,
                           config.controls, config.plan_seed, config.exclusive)
    source = read_source(config.train_data_dir)
    manifest = apply_plan(source.manifest, plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole(file, manifest.save)
    whole(quarantine_file(file), lambda draft: save_quarantined(source.quarantined, draft) if source.quarantined else None)
    return Source(manifest, source.quarantined)


def quarantine_file(manifest_file):
    return Path(manifest_file).with_suffix(".quarantined.csv")


def summary(source):
    manifest = source.manifest
    return {"images": len(manifest), "copies": manifest.copies, "captions": len(manifest.captions()), "hash": manifest.hash,
            "duplicated": len(manifest.group("duplicated")), "controls": len(manifest.group("control")),
            "quarantined": len(source.quarantined)}


@exit_cleanly
def main(argv=None):
    config = parse(PrepareConfig, sys.argv[1:] if argv is None else argv, prog="rotescope prepare", description=__doc__)
    source = prepare(config)
    show_quarantined(source.quarantined, quarantine_file(config.output_file))
    print(json.dumps(summary(source) | {"manifest": config.output_file}))


if __name__ == "__main__":
    main()
