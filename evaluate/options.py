"""What score, audit and index let a user choose. Light: it is read before the arguments are right."""
from dataclasses import dataclass, fields
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.common.options import Options
from rotescope.datasets.trainers.data_options import DataOptions

DESCRIPTORS = ("auto", "pixels", "pdq", "sscd", *(f"sscd-{weights}-{size}" for weights in (
    "disc-mixup", "disc-large") for size in ("288", "320", "dcr")), "dinov2", "clip")  # of the registry
ENGINES = ("exact", "faiss")
EXACT = ("pixels", "pdq", "none")
NULLS = ("train", "heldout", "base")
TITLE = "What did this model learn by rote?"


@dataclass(frozen=True, kw_only=True)
class CopyRule(Options):
    """How similarity is measured, and from where on it is a copy."""
    HEADINGS: ClassVar = {"descriptor": "what a copy is"}

    descriptor: str = "auto"
    """auto (pixels up to 128 px, else SSCD where it is present), pixels, pdq, sscd (ONNX package), sscd-disc-mixup-288 or another
    of the registry, perhaps with :FILE; dinov2 and clip, with :FOLDER, see likeness of subject, not copies"""
    trust_sha256: tuple[str, ...] = ()
    """SHA-256 sums of TorchScript files that may be loaded, which executes code inside them, though no published list has them"""
    index_dir: str | None = None
    """keep descriptors here, embedded once: an interrupted run goes on, and a later one embeds only what is new"""
    search: str = "exact"
    """exact, or faiss (an optional package): approximate, for over a million images, its recall measured and printed"""
    copy_null: str = "train"
    """what the copy threshold is drawn from: train (training images to one another), heldout or base (their pictures to them)"""
    copy_quantile: float = 0.999
    """a copy is closer to a training image than this share of the null; beyond .95 along the tail that .90 and .95 draw"""
    copy_threshold: float | None = None
    """a similarity of your own instead, from -1 to 1"""
    exact: str = "pixels"
    """what also counts as a copy, being all but identical to a training image: pixels, pdq (an optional package) or none"""

    def check(self):
        super().check()
        check_descriptor_name(self.descriptor)
        check_exact(self.exact)
        check_engine_name(self.search)
        check_null_name(self.copy_null)
        check_threshold(self.copy_threshold, self.copy_quantile)


@dataclass(frozen=True, kw_only=True)
class Measuring(CopyRule):
    """What else is measured."""
    HEADINGS: ClassVar = {"alignment": "what else is measured"}

    alignment: str = "auto"
    """text-image metric: a model's alignment/ folder, open_clip:ARCHITECTURE, perhaps with :FILE.safetensors or a hub
    name behind it, none, or auto: the model's own"""
    verify: bool = True
    """also verify copies by geometry: cropped, shifted, mirrored, turned, pasted"""
    trust_train_data: bool = False
    """take it from you that the model was trained on train_data, where neither a manifest beside it nor its memory shows it"""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(DataOptions, Measuring):
    HEADINGS: ClassVar = {"train_data": "data and output", "fail_on": "verdict and report"}

    train_data: str
    """the training images: a folder, a trainer's configuration of them, a Parquet file or a manifest; audit needs their
    captions"""
    output_dir: str
    """report.html, report.json, pairs.parquet, model_card.md and badge.svg go here; audit adds samples/"""
    heldout_data: str | None = None
    """pictures that the model never saw: they measure chance and fidelity"""
    fail_on: tuple[str, ...] = ()
    """exit with 1 if a rule is broken, with 4 if it cannot be shown to hold; leaked_prompts>0 if none is given.
    [METHOD:]METRIC>LIMIT, METRIC one of leaked_prompts (those that copy more than chance explains), leaked_prompts_any (those
    that copy a part, too), copy_rate, own_copy_rate, copies, partial_copies, partial_copy_rate, sim95; or
    [METHOD:]any_copies_of:ID,ID (or :@FILE with one image_id a line)"""
    junit_xml: str | None = None
    """also write one test case a prompt into this file"""
    redact: bool = False
    """leave training images, and generated ones that copy them, out of the report"""
    title: str = TITLE
    """heading of the report"""
    overwrite: bool = False
    """replace output_dir"""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(MeasureConfig):
    HEADINGS: ClassVar = {"generated": "the generated images"}

    generated: str
    """what rotescope generate wrote, or any folder of images"""
    base_generated: str | None = None
    """pictures by the base model on the same prompts and seeds: what it makes too, this
    fine-tune did not memorize"""
    sweep: str | None = None
    """a second samples folder with one method a transition, for the trade-off curves"""


@dataclass(frozen=True)
class IndexConfig(DataOptions):
    index_dir: str
    """the index lies here; score and audit take it as --index_dir"""
    train_data: str | None = None
    """images to embed: a folder, a Parquet file or a manifest"""
    merge: tuple[str, ...] = ()
    """indexes of parts to join instead"""
    shard: str | None = None
    """embed only this part of the data, as 1/4 to 4/4"""
    descriptor: str = "auto"
    """as for score; auto: by the size of the first image"""
    trust_sha256: tuple[str, ...] = ()
    """as for score"""

    def check(self):
        super().check()
        check_descriptor_name(self.descriptor)


def measuring(config):
    """The fields of Measuring in a larger config -> dict."""
    return {f.name: getattr(config, f.name) for f in fields(Measuring)}


def check_threshold(copy_threshold, copy_quantile):
    """InputError if no similarity could be such a threshold, or no share such a quantile. A comparison with NaN is false."""
    if copy_threshold is not None and not -1 <= copy_threshold <= 1:
        raise InputError(f"copy_threshold={copy_threshold}: a similarity lies between -1 and 1; give one, such as 0.9")
    if not 0 < copy_quantile < 1:
        raise InputError(f"copy_quantile={copy_quantile}: give a share between 0 and 1, such as 0.999")


def check_exact(kind):
    """InputError if no exact layer is called so."""
    if kind not in EXACT:
        raise InputError(f"no exact layer {kind!r}: take {', '.join(EXACT[:-1])} or none")


def check_engine_name(engine):
    """InputError if no search is called so."""
    if engine not in ENGINES:
        raise InputError(f"no search {engine!r}: take {' or '.join(ENGINES)}")


def check_null_name(null):
    """InputError if no null is called so."""
    if null not in NULLS:
        raise InputError(f"no null {null!r}: take one of {', '.join(NULLS)}")


def check_descriptor_name(name):
    """InputError if no descriptor is called so."""
    if name.partition(":")[0] not in DESCRIPTORS:
        raise InputError(f"no descriptor {name!r}: take {DESCRIPTORS[0]} or one of {', '.join(DESCRIPTORS[1:])}")
