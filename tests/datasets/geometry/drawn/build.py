"""Draw the set anew: a small model learns photographs, eight of them sixty times an epoch, and redraws them.

    python tests/datasets/geometry/drawn/build.py WORK

WORK is a folder for the checkpoint and the images; about six minutes on one core. The sheets land beside this file. The
labels are made by eye afterwards: labels.json says which images redraw their training picture.
"""
import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.copy_cases.pictures import CUT, FLAT, photograph_files
from rotescope.common.parquet import read_table
from rotescope.datasets.emoji.scenes import OBJECTS
from rotescope.datasets.manifest import Manifest

HERE = Path(__file__).resolve().parent
UNSAID = ("motorcycle_left.png", "moon.png", "page.png")  # their package does not say under which licence
SIDE, PICTURES, OF_ONE_FILE, ACROSS = 64, 180, 16, 16
REPEATED, COPIES, SHOWN_ONCE, NEVER_SHOWN = 8, 60, 4, 4


def main(work):
    """Pictures, plan, training, images, sheets."""
    work.mkdir(parents=True)
    _write_pictures(work / "photographs")
    _rotescope("prepare", "--train_data", work / "photographs", "--output_file", work / "plan.parquet",
               "--duplicated", REPEATED, "--copies", COPIES, "--controls", SHOWN_ONCE)
    _rotescope("finetune", "--train_data", work / "plan.parquet", "--output_dir", work / "model", "--train_batch_size", 32,
               "--max_train_steps", 260, "--learning_rate", 1e-3)
    manifest = Manifest.load(work / "plan.parquet")
    groups = {group: sorted((e for e in manifest if e.group == group), key=lambda e: Path(e.file).name)
              for group in ("duplicated", "control")}
    captions = [e.captions[0] for e in groups["duplicated"] + groups["control"]] + _captions()[PICTURES:]
    (work / "captions.txt").write_text("\n".join(captions) + "\n")
    _rotescope("generate", "--model", work / "model", "--prompts", work / "captions.txt", "--output_dir", work / "images")
    _collect(work)


def _collect(work):
    """Two sheets, sixteen pictures a row; what labels.json starts from goes to WORK."""
    training = sorted((work / "photographs").glob("*.png"))
    rows = sorted(read_table(work / "images/records.parquet").to_pylist(), key=lambda r: (r["prompt_index"], r["seed"]))
    _sheet(training).save(HERE / "training.png", optimize=True)
    _sheet([next((work / "images").rglob(Path(row["image"]).name)) for row in rows]).save(HERE / "generated.png", optimize=True)
    captions = [file.with_suffix(".txt").read_text().strip() for file in training]
    drawn = [{"caption": r["prompt"], "seed": r["seed"],
              "under_its_caption": captions.index(r["prompt"]) if r["prompt"] in captions else None} for r in rows]
    (work / "drawn.json").write_text(json.dumps(drawn, indent=0) + "\n")


def _sheet(files):
    sheet = Image.new("RGB", (ACROSS * SIDE, -(-len(files) // ACROSS) * SIDE))
    for i, file in enumerate(files):
        sheet.paste(Image.open(file).convert("RGB"), (i % ACROSS * SIDE, i // ACROSS * SIDE))
    return sheet


def _write_pictures(folder):
    """Regions of every photograph, dealt out at random (seed 0), as N.png beside N.txt with its caption."""
    folder.mkdir()
    random, regions, captions = np.random.default_rng(0), [], _captions()
    for file in (f for f in photograph_files() if f.name not in UNSAID):
        own = list(_regions(file))
        regions += [own[i] for i in sorted(random.permutation(len(own))[:OF_ONE_FILE])]
    for number, i in enumerate(random.permutation(len(regions))[:PICTURES]):
        regions[i].save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(captions[number] + "\n")


def _captions():
    """-> one for each picture and some more, each of three words that the tokenizer knows: 'gift crab tulip'."""
    triples = list(permutations(OBJECTS, 3))
    return [" ".join(triples[i]) for i in np.random.default_rng(1).permutation(len(triples))[:PICTURES + NEVER_SHOWN]]


def _regions(file):
    """Squares of 128 pixels side by side, each shrunk to 64; flat ones are left out."""
    image = Image.open(file).convert("RGB")
    for top in range(0, image.height - CUT + 1, CUT):
        for left in range(0, image.width - CUT + 1, CUT):
            region = image.crop((left, top, left + CUT, top + CUT))
            if np.asarray(region.convert("L"), np.float64).std() >= FLAT:
                yield region.resize((SIDE, SIDE), Image.BOX)


def _rotescope(*words):
    subprocess.run([sys.executable, "-m", "rotescope", *map(str, words)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
