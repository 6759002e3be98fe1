"""Rotescope: what did this fine-tune learn by rote?"""
from pathlib import Path

__version__ = "0.1.0"

# In a clone the four folders stand beside this package; in a wheel they lie inside it (see pyproject.toml).
_root = Path(__file__).resolve().parent.parent
if all((_root / folder).is_dir() for folder in ("datasets", "train", "mitigate", "evaluate")):
    __path__.append(str(_root))
