"""How often does each rule fail, pass or leave undecided: on fresh pictures, and on few copies among them?

    python benchmarks/gate_rates.py --output_dir runs/gate

A model that copies nothing draws new scenes of its training captions, four of each. A model that leaks one picture does the
same, but that one, two or four of the four images of one prompt are its own training picture: exactly, blended with a fresh
one, degraded (JPEG 30 and noise) or shifted by two pixels. Each draw takes other prompts, and is judged with 100, 800 and
4,800 held-out pictures. Controls are not judged here: they can only make a passed run undecided. Pictures that draws have in
common are verified once. Writes gate.json and gate.md.
"""
import sys
from collections import Counter
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from rotescope.common.console import say
from rotescope.common.errors import exit_cleanly
from rotescope.common.outputs import output_folder, versions, write_json
from rotescope.common.settings import parse, plain
from rotescope.common.text_table import TextTable
from rotescope.datasets.emoji.scenes import compose, scenes
from rotescope.datasets.images.edits import EDITS
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.inputs.pictures_in_memory import data_of
from rotescope.evaluate.inputs.samples import Record, Samples
from rotescope.evaluate.measurement.findings import copied_ids
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.measurement.per_group import group_findings
from rotescope.evaluate.measurement.per_image import measure
from rotescope.evaluate.measurement.per_prompt import prompt_findings
from rotescope.evaluate.options import Measuring
from rotescope.evaluate.verdict.rules import DEFAULT_RULE, Rule
from rotescope.evaluate.verification.matching import Matcher, make_matcher

RULES = (DEFAULT_RULE, "leaked_prompts_any>0", "copy_rate>0.05", "copies>0", "partial_copies>0")
KINDS = ("exact", "blended", "degraded", "shifted")
OUTCOMES = ("failed", "undecided", "passed")
EACH = 4                                         # images of a prompt
SHIFTS = ((2, 2), (-2, 2), (2, -2), (-2, -2))    # pixels to the right and down


@dataclass(frozen=True)
class GateConfig:
    output_dir: str = "runs/gate"
    """gate.json and gate.md go here"""
    draws: int = 20
    """of each kind and number of copies, at each number of held-out pictures"""
    prompts: int = 75
    """in a draw; the images of each are four"""
    pool: int = 200
    """prompts whose fresh images the draws take theirs from"""
    training: int = 1_000
    """training pictures"""
    heldout: tuple[int, ...] = (100, 800, 4_800)
    """held-out pictures"""
    copies: tuple[int, ...] = (1, 2, 4)
    """of the four images of one prompt"""
    overwrite: bool = False
    """replace output_dir"""


class RememberingMatcher(Matcher):
    """Each picture is laid on the training pictures once, however often it is asked for."""

    def __init__(self, matcher):
        super().__init__(matcher.index, matcher.twins, matcher.verifiers)
        self.known = {}

    def _matches(self, asked, on_image=None):
        keys = [(one.sha256, one.without, one.expected) for one in asked]
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in self.known}
        self.known |= dict(zip(new, super()._matches(list(new.values())), strict=True))
        return [list(self.known[key]) for key in keys]


# ----- pictures

@dataclass(frozen=True)
class GateWorld:
    """training: the pictures with their captions; fresh[p]: EACH new scenes of training picture p's caption; copies[kind][p]:
    EACH copies of it."""
    training: Manifest
    heldout: Manifest
    fresh: tuple[tuple[Image.Image, ...], ...]
    copies: dict[str, tuple[tuple[Image.Image, ...], ...]]


def make_world(config):
    """-> GateWorld; the first `pool` training pictures have prompts, and the first `draws` of these are copied."""
    every = list(scenes(config.training + max(config.heldout), seed=14))
    told, held = every[:config.training], every[config.training:]
    pictures, others, _ = data_of([s.image for s in told], [s.image for s in held])
    training = Manifest(tuple(replace(e, captions=(s.caption,)) for e, s in zip(pictures, told, strict=True)))
    rng = np.random.default_rng(14)
    fresh = tuple(tuple(compose(s.objects, s.ground, rng).image for _ in range(EACH)) for s in told[:config.pool])
    partners = [s.image for s in scenes(EACH, seed=41)]
    copies = {kind: tuple(tuple(_copy(kind, s.image, i, partners[i], rng) for i in range(EACH)) for s in told[:config.draws])
              for kind in KINDS}
    return GateWorld(training, others, fresh, copies)


def _copy(kind, image, i, partner, rng):
    made = {e.name: e.make for e in EDITS}
    if kind == "blended":
        return made["blended 60/40"](image, partner)
    if kind == "degraded":
        pixels = np.asarray(made["JPEG 30"](image, partner), np.float64) + rng.normal(0, 18, (image.height, image.width, 3))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if kind == "shifted":
        right, down = SHIFTS[i]
        padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), "edge")
        return Image.fromarray(padded[2 - down:2 - down + image.height, 2 - right:2 - right + image.width].copy())
    return image


def drawn(world, config, draw, kind="", k=0):
    """-> Samples of one draw: the prompt `draw`, k of whose images are copies, among others whose images are all fresh."""
    rng = np.random.default_rng((draw, 1_000))
    others = rng.choice([p for p in range(config.pool) if p != draw], config.prompts - 1, replace=False)
    records, held = [], {}
    for p in (draw, *map(int, others)):
        pictures = (*world.copies[kind][p][:k], *world.fresh[p][k:]) if k and p == draw else world.fresh[p]
        for seed, picture in enumerate(pictures):
            name, example = f"P{p:05d}-S{seed}", world.training[p]
            held[name] = picture
            records.append(Record(name, prompt_index=p, prompt=example.captions[0], seed=seed, group="captions",
                                  image_id=example.image_id))
    return Samples(None, tuple(records), held=held)


# ----- outcomes

def judged(samples, layers, manifest, matcher):
    """-> {rule: outcome}."""
    layer = layers["descriptor"]
    own = [layer.index.rows[r.image_id] for r in samples.records]
    measured = measure(samples, layers, manifest, verified=matcher.verified(samples.pictures, own))
    groups = group_findings(samples, measured, layer, (), prompt_findings(samples, measured, layer))
    copied = copied_ids(samples, measured, layer.index)
    return {rule: Rule.parse(rule).outcome(groups, copied) for rule in RULES}


def rates(world, config):
    """-> rows {heldout, kind, copies, rule, failed, undecided, passed}."""
    rows, matcher = [], None
    for n in config.heldout:
        heldout = Manifest(world.heldout.examples[:n])
        layers = make_layers(min(world.fresh[0][0].size), world.training, heldout, None, Measuring())
        if matcher is None:
            matcher = RememberingMatcher(make_matcher(layers["descriptor"], Measuring()))
        matcher.twins = layers["descriptor"].twins
        matcher.draw_thresholds([(e.sha256, e.open) for e in heldout])
        for kind, k in (("none", 0), *((kind, k) for kind in KINDS for k in config.copies)):
            told = [judged(drawn(world, config, draw, kind, k), layers, world.training, matcher) for draw in range(config.draws)]
            for rule in RULES:
                found = Counter(one[rule] for one in told)
                rows.append({"heldout": n, "kind": kind, "copies": k, "rule": rule, **{o: found[o] for o in OUTCOMES}})
        say(f"{n:,} held-out pictures: evidence from {matcher.evidence.threshold:.2f}, similarity from "
            f"{layers['descriptor'].threshold:.3f}")
    return rows


def gate_table(rows, rule):
    """A line for each kind and number of copies, a column for each number of held-out pictures -> TextTable."""
    sizes = list(dict.fromkeys(r["heldout"] for r in rows))
    cells: dict = {}
    for r in (r for r in rows if r["rule"] == rule):
        line = "fresh pictures" if not r["copies"] else f"{r['copies']} of {EACH} {r['kind']}"
        cells.setdefault(line, []).append(" / ".join(str(r[o]) for o in OUTCOMES))
    return TextTable(("images of one prompt", *(f"{n:,} held-out" for n in sizes)),
                     tuple((line, *told) for line, told in cells.items()), title=f"{rule}: {' / '.join(OUTCOMES)}")


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse(GateConfig, sys.argv[1:] if argv is None else argv, prog="gate_rates.py", description=__doc__)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with output_folder(config.output_dir, config.overwrite) as folder:
        rows = rates(make_world(config), config)
        write_json(folder / "gate.json", {"config": plain(config), "versions": versions(), "rows": rows})
        tables = [gate_table(rows, rule) for rule in RULES]
        (folder / "gate.md").write_text("\n".join(f"## {t.title}\n{t.markdown()}" for t in tables), encoding="utf-8")
    for one in tables:
        Console(stderr=True).print(one)


if __name__ == "__main__":
    main()
