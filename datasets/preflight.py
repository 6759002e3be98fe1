"""Before a GPU hour is spent: broken files, near-duplicates, captions that single out one image, and the images most at risk.

    rotescope preflight --train_data photos/ --output_dir runs/preflight
    rotescope preflight photos/ --deduplicate true                 # also writes a manifest with one image of each cluster
    rotescope preflight photos/ --against other_photos/            # which pictures another set has too

Leaves preflight.html, one file that shows the clusters; images.parquet and images.csv, a row for each image, riskiest first;
preflight.json, and quarantined.csv where something cannot be used. Repeats of kohya's folders or of a trainer's configuration
count in the risk.
"""
import sys
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.console import answer
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.datasets.trainers.data_options import DataOptions


@dataclass(frozen=True)
class PreflightConfig(DataOptions):
    HEADINGS: ClassVar = {"train_data": "data and output"}
    train_data: str
    """the images: folder, Parquet files, WebDataset shards, a trainer's configuration, Hugging Face data set, or manifest; may be
    given without the flag"""
    output_dir: str = "runs/preflight"
    """where the page and the tables go"""
    overwrite: bool = False
    """replace output_dir"""
    verify: bool = True
    """also lay pictures on one another, and so find crops, frames, turns and texts; takes about a fifth of a second a picture"""
    deduplicate: bool = False
    """also write deduplicated.parquet, a manifest with the largest image of each near-duplicate cluster, once, and dropped.csv"""
    against: str | None = None
    """another set of pictures, such as the held-out ones: shared.csv lists the pictures that both have"""


@exit_cleanly
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--train_data", *argv]
    config = parse(PreflightConfig, argv, prog="rotescope preflight", description=__doc__)
    from rotescope.datasets.inspection.preflight import preflight_to_folder, say_summary
    found = preflight_to_folder(config)
    say_summary(found, config.output_dir, config.deduplicate)
    answer(**found.summary, output_dir=config.output_dir)


if __name__ == "__main__":
    main()
