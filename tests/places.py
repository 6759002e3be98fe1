"""Where the repository and its data lie."""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMOJI = ROOT / "datasets/emoji"
