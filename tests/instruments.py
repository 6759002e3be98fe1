"""Degenerate generators for tests of evaluate: which images they copy is known exactly."""
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.geometry.match import Match, MatchThreshold, VerifiedMatches
from rotescope.datasets.readers.sources import load_source

JUDGED = (0, 1, 4)  # exit codes of a command that judges: passed, failed, undecided
STEPS = list(range(999, 0, -100))


def training_folder(folder, n=40, seed=7):
    """n emoji scenes with captions in side files -> the folder."""
    folder.mkdir(parents=True)
    for i, scene in enumerate(scenes(n, seed)):
        scene.image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(scene.caption)
    return folder


def training_set(folder, n=40, seed=7):
    return load_source(training_folder(folder, n, seed))


def saved(folder, pictures):
    """A folder of pictures and nothing else."""
    folder.mkdir()
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:04d}.png")
    return folder


def noise(*seed, side=64):
    """Like nothing else, and yet a picture to the control of that: its neighbouring pixels are as alike as those of pictures."""
    pixels = np.random.default_rng(seed).normal(size=(side, side, 3))
    for axis in (0, 1):
        pixels = pixels + np.roll(pixels, 1, axis) + np.roll(pixels, 2, axis) / 2
    return Image.fromarray(np.clip(128 + 60 * pixels / pixels.std(), 0, 255).astype(np.uint8))


def samples_folder(folder, examples, copied, methods=None, groups=("",), seeds=(0, 1)):
    """For each method, example and seed either its training image exactly or noise: copied(method, position, seed) decides."""
    rows, methods = [], methods or {"none": {"before": 0.0, "transition": 1000}}
    for m, method in enumerate(methods):
        (folder / method / "images").mkdir(parents=True)
        for i, example in enumerate(examples):
            for seed in seeds:
                file = f"{method}/images/P{i:05d}-S{seed}.png"
                (example.open() if copied(method, i, seed) else noise(m, i, seed)).save(folder / file)
                gaps = [float(i + step) if step < 9 else float("nan") for step in range(len(STEPS))]
                rows.append({"image": file, "method": method, "prompt_index": i, "prompt": example.captions[0], "seed": seed,
                             "group": groups[i % len(groups)], "image_id": example.image_id, "denoiser_rows": 20 + m,
                             "transition_timestep": None, "prediction_gaps": gaps, "timesteps": STEPS})
    pq.write_table(pa.Table.from_pylist(rows), folder / "records.parquet")
    (folder / "run.json").write_text(json.dumps({"methods": methods, "guidance_scale": 7.5, "num_inference_steps": 10}))
    return folder


def rows_of(folder):
    return pq.read_table(folder / "records.parquet").to_pylist()


def overridden(argv, given):
    """argv, pairs of an option and its value, without those that `given` names, and then `given`: no option may come twice."""
    kept = [word for i in range(0, len(argv), 2) if argv[i] not in given for word in argv[i:i + 2]]
    return [*kept, *given]


def leave(main, argv):
    """A command's exit code."""
    try:
        main([str(a) for a in argv])
    except SystemExit as left:
        return left.code
    return 0


def with_models_of_ones_own(monkeypatch):
    """Commands that name models and LoRAs which only the reader has are read as if these were there."""
    monkeypatch.setattr("rotescope.models.model_options.find_model", lambda name: name)
    monkeypatch.setattr("rotescope.models.model_options.find_model_path", lambda name, config: name)
    monkeypatch.setattr("rotescope.models.model_options.find_lora", lambda path: path)


def laid(row, transform=(1, 0, 0, 0, 1, 0), training_share=1.0, generated_share=1.0, **more):
    """A verified Match with the training image of this row."""
    more = {"verifier": "points", "score": 30.0} | more
    return Match(row, transform=tuple(map(float, transform)), training_share=training_share, generated_share=generated_share,
                 **more)


class KnownMatches:
    """A Matcher that finds what it is told, so that a test knows the matches exactly.

    found: {image: its verified matches}, or a function of the Samples and the image.
    """

    def __init__(self, found, chance=0.0, n=10_000, shared=()):
        self.of = found if callable(found) else lambda samples, image: found.get(image, ())
        self.threshold, self.shared = MatchThreshold("points", 9.0, "more than null pictures reach", n, chance), tuple(shared)

    def draw_thresholds(self, *_):
        pass

    def verified(self, pictures, expected=(), on_image=None):
        openers = [opener for _, opener in pictures]  # Samples.pictures: partial(samples.open, record)
        return VerifiedMatches(tuple(tuple(self.of(opener.func.__self__, opener.args[0].image)) for opener in openers),
                               {"points": self.threshold}, self.shared)


def finder(found, chance=0.0, n=10_000, shared=()):
    """-> what stands in the place of make_matcher: options of KnownMatches."""
    return lambda layer, how, on_image=None: KnownMatches(found, chance, n, shared) if how.verify else None
