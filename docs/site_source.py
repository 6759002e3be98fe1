"""A hook of mkdocs: the package as mkdocstrings can read it.

Our folders hold no `__init__.py` (docs/architecture.md says why), and griffe, which reads the source for mkdocstrings, leaves out
folders without one. So it reads a copy of the Python files in which every folder has one.
"""
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def on_startup(command, dirty):
    """Before mkdocs looks for the sources: copy rotescope/, the links in it followed, to build/site_source/."""
    copy_package(ROOT / "rotescope", ROOT / "build/site_source/rotescope")


def copy_package(source, target):
    shutil.rmtree(target, ignore_errors=True)
    for file in (f for f in _python_files(source) if "__pycache__" not in f.parts):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    for folder in (target, *(f for f in target.rglob("*") if f.is_dir())):
        (folder / "__init__.py").touch()


def _python_files(folder):
    """Links to folders are followed, which `rglob` does not do under every version of Python."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _python_files(path)
        elif path.suffix == ".py":
            yield path
