"""Every layout of training data that a trainer has, and which of them a path has."""
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.trainers.ai_toolkit import AI_TOOLKIT
from rotescope.datasets.trainers.config_paths import printable_name
from rotescope.datasets.trainers.config_values import SUFFIXES
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import TrainerLayout
from rotescope.datasets.trainers.kohya_config import KOHYA_CONFIG, KOHYA_METADATA
from rotescope.datasets.trainers.kohya_folders import KOHYA_FOLDERS
from rotescope.datasets.trainers.musubi_tuner import MUSUBI_TUNER
from rotescope.datasets.trainers.onetrainer import ONETRAINER
from rotescope.datasets.trainers.plain_folder import PLAIN_FOLDER
from rotescope.datasets.trainers.simpletuner import SIMPLETUNER

CONFIGURATIONS = (   # the first that recognises a file reads it
    KOHYA_CONFIG, MUSUBI_TUNER, ONETRAINER, SIMPLETUNER, AI_TOOLKIT, KOHYA_METADATA)


def configuration_layout(file: Path) -> TrainerLayout:
    """The layout of a trainer's configuration. InputError if it is none that is known, or no such file."""
    found = next((layout for layout in CONFIGURATIONS if layout.recognise(file)), None)
    if not found:
        known = "kohya's data sets or metadata, musubi-tuner's, OneTrainer's, ai-toolkit's or SimpleTuner's"
        raise InputError(f"{printable_name(file)} is no configuration of data that is known ({known}): "
                         "name the folder of pictures")
    return found


def is_configuration(file: Path) -> bool:
    """Whether a file's name is that of a configuration."""
    return file.suffix.lower() in SUFFIXES


def folder_layout(folder: Path, options: DataOptions) -> TrainerLayout:
    """The layout of a folder: as the options say, or as its folders are named."""
    if options.data_layout == "folder":
        return PLAIN_FOLDER
    kohya = options.data_layout == "kohya" or KOHYA_FOLDERS.recognise(folder)
    return KOHYA_FOLDERS if kohya else PLAIN_FOLDER
