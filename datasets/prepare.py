"""Any image set -> a manifest: every image checked and known by its content, copies and controls as the plan says.

    rotescope prepare --train_data photos/ --output_file manifest.parquet --duplicated 24 --copies 92 --controls 24
    rotescope prepare --train_data photos/ --output_file canaries.parquet --duplicated 6 --doses 1 4 16 64 --matched 1
    rotescope prepare --train_data imagenette2/train --output_file imagenette.parquet --caption_level class \\
        --class_names train/recipes/imagenette_classes.csv
    rotescope prepare --train_data few/ --output_file mix.parquet --fraction 1 --copies 200 --mix_data_dir many/ --mix_ratio 3
"""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rotescope.common.console import answer
from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.outputs import check_apart, check_file
from rotescope.common.settings import parse
from rotescope.common.whole_files import whole_file
from rotescope.datasets.captions.perturbation import read_words
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_dcr, apply_plan, check_planned, group_by_copies
from rotescope.datasets.plans.mixture import check_level, mix, read_class_names, recaption
from rotescope.datasets.readers.quarantine import save_quarantined, show_quarantined
from rotescope.datasets.readers.sources import read_source
from rotescope.datasets.trainers.data_options import DataOptions, data_options, for_other_pictures


@dataclass(frozen=True)
class PrepareConfig(DataOptions):
    HEADINGS: ClassVar = {"train_data": "data and output", "duplicated": "which images repeat, and how often",
                          "caption_style": "captions", "mix_data_dir": "other images beside them", "plan_seed": "the choice"}
    train_data: str
    """folder of captioned images, Parquet files or WebDataset shards; one such file; a trainer's configuration of its data;
    Hugging Face data set; or manifest"""
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
    doses: tuple[int, ...] = ()
    """canaries: as many images as `duplicated` says at each of these numbers of copies"""
    matched: int = 0
    """controls for each duplicated image: untouched ones whose captions are most like its own"""
    fraction: float = 0.0
    """or this share of all images repeats, whatever the captions"""
    duplication: str = ""
    """or nodup, dup_both or dup_image of Somepalli et al.: 0.05 of the images 5 times, unless fraction and copies differ"""
    caption_style: str = "same"
    """of the copies. "same": the image's own captions in turn; "one": its first; "several": several rewordings in turn"""
    caption_level: str = "caption"
    """of all images in train_data, which then need no captions. "caption": their own, which they need; "none": "An image";
    "class": "An image of FOLDER"; "random": four random tokens each, drawn by plan_seed"""
    class_names: str | None = None
    """a .csv with the columns folder and name, or a .json object: what "class" calls each FOLDER"""
    tokenizer: str | None = None
    """folder of the tokenizer, or of the model, whose tokens "random" draws; the embedded model's unless given"""
    mix_data_dir: str | None = None
    """other images to train on beside these, each once"""
    mix_ratio: float = 0.0
    """how many of them for each copy of an image in the plan"""
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
    check_file(file)
    check_apart(file, (config.train_data, config.mix_data_dir))
    _check_duplication(config)
    if bool(config.mix_data_dir) != bool(config.mix_ratio):
        raise InputError("--mix_data_dir and --mix_ratio go together: pass both")
    if config.duplicated and config.duplicated_ids:
        raise InputError("--duplicated and --duplicated_ids say the same thing twice: pass one of them")
    plan = None if config.duplication else _plan(config)   # wrong numbers show before the images are read
    captions = _captions(config)
    options = data_options(config)
    source = read_source(config.train_data, config.caption_level == "caption", options)
    others = read_source(config.mix_data_dir, options=for_other_pictures(options)) if config.mix_data_dir else None
    check_apart(file, {e.file for data in (source, others) if data for e in data.manifest})
    check_planned(source.quarantined)
    manifest = recaption(source.manifest, config.caption_level, config.plan_seed, **captions)
    manifest = group_by_copies(apply_plan(manifest, plan) if plan else _dcr(manifest, config))
    manifest = mix(manifest, others.manifest, config.mix_ratio, config.plan_seed) if others else manifest
    quarantined = source.quarantined + (others.quarantined if others else ())
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        manifest.save(draft)
    with whole_file(quarantine_file(file)) as draft:
        if quarantined:
            save_quarantined(quarantined, draft)
    return replace(source, manifest=manifest, quarantined=quarantined, unused=source.unused + (others.unused if others else ()))


def _check_duplication(config):
    """What the kinds of Somepalli et al. have no use for would be left out in silence."""
    other = [name for name in ("duplicated", "duplicated_ids", "doses", "controls", "matched", "exclusive", "caption_style")
             if getattr(config, name) not in (0, False, (), "same")]
    if config.duplication and other:
        raise InputError(f"--duplication is a whole plan: pass it with --fraction and --copies alone, without --{other[0]}")
    if config.duplication == "nodup" and (config.fraction or config.copies > 1):
        raise InputError("--duplication nodup repeats no image: leave out --fraction and --copies")


def _plan(config):
    return DuplicationPlan(config.duplicated_ids or config.duplicated, config.copies, config.caption_style, config.controls,
                           config.plan_seed, config.exclusive, config.doses, config.matched, config.fraction)


def _captions(config):
    """-> what recaption needs beside the images."""
    check_level(config.caption_level)
    for name, level in (("class_names", "class"), ("tokenizer", "random")):
        if getattr(config, name) and config.caption_level != level:
            raise InputError(f"--{name} is for --caption_level {level}: pass both or neither")
    if config.caption_level == "random":
        from rotescope.models.model_options import BASE  # brings torch, which nothing else here needs
        return {"vocabulary": read_words(config.tokenizer or BASE)}
    return {"class_names": read_class_names(config.class_names)} if config.class_names else {}


def _dcr(manifest, config):
    """The authors' dose, unless the config says another."""
    return apply_dcr(manifest, config.duplication, config.fraction or 0.05, config.copies if config.copies > 1 else 5,
                     config.plan_seed)


def quarantine_file(manifest_file):
    return Path(manifest_file).with_suffix(".quarantined.csv")


def manifest_summary(source):
    manifest = source.manifest
    return {"images": len(manifest), "copies": manifest.copies, "captions": len(manifest.captions()), "hash": manifest.hash,
            "duplicated": len(manifest.group("duplicated")), "controls": len(manifest.group("control")),
            "quarantined": len(source.quarantined)}


@exit_cleanly
def main(argv=None):
    config = parse(PrepareConfig, argv, prog="rotescope prepare", description=__doc__)
    source = prepare(config)
    show_quarantined(source.quarantined, quarantine_file(config.output_file), source.unused)
    answer(**manifest_summary(source), manifest=config.output_file)


if __name__ == "__main__":
    main()
