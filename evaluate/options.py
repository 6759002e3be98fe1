"""What score and audit let a user choose alike."""
from dataclasses import dataclass

TITLE = "What did this model learn by rote?"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    train_data: str
    """the training images: a folder, a Parquet file or a manifest; audit needs their captions"""
    output_dir: str
    """report.html and report.json go here; audit adds samples/"""
    heldout_data: str | None = None
    """pictures that the model never saw: they measure chance and fidelity"""
    descriptor: str = "auto"
    """auto, pixels, or sscd (an optional package); auto: pixels up to 128 px, else sscd where it is installed"""
    alignment: str = "auto"
    """text-image metric: a model's alignment/ folder, open_clip:ARCHITECTURE:FILE.safetensors, none, or auto: the model's own"""
    copy_quantile: float = 0.99
    """a copy is closer to a training image than this share of the training images are to any other"""
    copy_threshold: float | None = None
    """a similarity of your own instead"""
    fail_on: str | None = None
    """exit with 1 if this rule is broken: [METHOD:]METRIC>LIMIT, METRIC one of copy_rate, own_copy_rate, copies, sim95"""
    title: str = TITLE
    """heading of the report"""
    overwrite: bool = False
    """replace output_dir"""
