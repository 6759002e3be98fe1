"""Whether a model can be opened, a folder, a name on the hub or a single file: by headers alone, before a library is loaded."""
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.outputs import folder_sha256, sha256
from rotescope.models.model_files import PIPELINES, check_text_to_image, find_model, is_single_file, read_index
from rotescope.models.single_files.configuration import OF_FAMILY
from rotescope.models.single_files.contents import describe_model

ELSEWHERE = {"adapter": "name it with --lora", "embedding": "name it with --embedding"}  # kind of file -> what to do with it
NEEDLESS = ("safety_checker", "feature_extractor", "image_encoder")                       # parts that need no folder


def find_model_path(name: str | Path, config: str | None = None) -> Path:
    """A model as --model and --model_config name it -> its folder or file. InputError, one line, if it could not be opened."""
    if is_single_file(name):
        return check_single_file(Path(name), config)
    if config:
        raise InputError(f"--model_config is for a single file, and {name} is none: leave it out")
    return find_model(name)


def model_sha256(path: Path) -> str:
    """What find_model_path finds -> one hash of it."""
    found: str = sha256(path) if path.is_file() else folder_sha256(path)
    return found


def check_single_file(file: Path, config: str | None) -> Path:
    """The file, if by its header and the configuration it can be opened; else InputError."""
    about = describe_model(file)
    if about.kind not in ("checkpoint", "denoiser"):
        raise InputError(f"{file} is {about.what}, no model: {ELSEWHERE.get(about.kind, 'name a whole checkpoint')}")
    if about.channels == 9:
        raise InputError(f"{file} is {about.what}, which wants a picture and a mask beside the prompt: name a text-to-image "
                         "model")
    if about.kind == "denoiser" and not config:
        raise InputError(f"{file} is {about.what}: name a whole folder of that family in diffusers' layout with --model_config")
    if config:
        check_configuration(config)
    elif about.family.name not in OF_FAMILY:
        raise InputError(f"{file} is {about.what}, whose configuration does not ship: name a folder of that family in diffusers' "
                         "layout with --model_config; its weights are not needed")
    return file


def check_configuration(folder: str) -> None:
    """InputError if a folder holds no configuration of a pipeline that is served."""
    index = read_index(Path(folder))
    kind = index.get("_class_name")
    if not kind:
        raise InputError(f"--model_config {folder} holds no model_index.json: name a folder in diffusers' layout")
    check_text_to_image(f"--model_config {folder}", kind, PIPELINES)
    missing = next((part for part, about in index.items() if isinstance(about, list) and about[0] and part not in NEEDLESS
                    and not (Path(folder) / part).is_dir()), None)
    if missing:
        raise InputError(f"--model_config {folder} names a {missing} and has no folder of it: copy all its configurations")
