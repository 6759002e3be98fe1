"""What a report is made of. Figures are as they were measured; JSON rounds them (json_types)."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from rotescope.datasets.geometry.match import MatchThreshold, Point, chance_of_match
from rotescope.evaluate.statistics.estimate import INTERVAL, Estimate
from rotescope.evaluate.statistics.prompt_evidence import PromptEvidence
from rotescope.evaluate.statistics.replication import GroupFindings

# ----- conditions

@dataclass(frozen=True)
class TrainingImages:
    unique: int                  # different pictures
    entries: int                 # lines of the manifest
    copies: float                # pictures that an epoch shows; a fraction where a trainer's balancing has one


@dataclass(frozen=True)
class ExactRule:
    """The layer of copies that are all but identical."""
    descriptor: str
    threshold: float
    rule: str                    # where the threshold comes from


@dataclass(frozen=True)
class SharedPart:
    """An element that several training images share. Where an image matches nothing else, it counts for no copy."""
    training_images: tuple[str, ...]  # image_ids
    images: int                  # generated images in which it was found
    region: tuple[Point, ...]    # a polygon in the first of the training images, in shares of it


@dataclass(frozen=True)
class Verification:
    """How matches were verified."""
    thresholds: dict[str, MatchThreshold]  # by verifier
    shared: tuple[SharedPart, ...]

    derived: ClassVar = ("chance",)  # also in JSON

    @property
    def chance(self) -> float:
        """Share of pictures that copy nothing for which some match is verified, at most."""
        return chance_of_match(self.thresholds.values())


@dataclass(frozen=True)
class PValueBasis:
    """What the p-values rest on."""
    null: str                    # heldout, or train
    n: int                       # pictures in it
    smallest: float              # p that one prompt can reach
    fdr: float                   # false discovery rate up to which a prompt is significant
    # null pictures it takes for one prompt to be significant at all, if there are fewer
    needed: int | None


@dataclass(frozen=True)
class Pairing:
    """Similarity of images to their prompts' own training images, against shuffled pairs."""
    own: float
    shuffled: float
    p: float


# ----- per image

@dataclass(frozen=True)
class PairMatch:
    """A verified match: a training image laid on a generated one. Points are shares of a whole picture, x from the left and
    y from the top."""
    training_image: str          # image_id
    verifier: str                # points, or pixels
    score: float                 # by its verifier's own measure
    is_copy: bool                # it covers enough of both pictures; else a part is copied
    # (a, b, c, d, e, f): the training image's (x, y) lies at (a x + b y + c, d x + e y + f) of the generated one
    transform: tuple[float, float, float, float, float, float]
    training_share: float        # of the training image's area that matches
    generated_share: float       # of the generated image's area
    mirrored: bool
    recoloured: bool
    description: str             # what happened to the training image, in words
    points: tuple[tuple[Point, Point], ...]  # some matched points: in the generated, in the training image
    generated_outline: tuple[Point, ...]     # where the training image lies in the generated one, a polygon
    training_outline: tuple[Point, ...]      # the same region of the training image


@dataclass(frozen=True)
class Pair:
    """A generated image, and the training image that it copies, whole or in part, or is nearest to."""
    method: str
    group: str
    prompt_index: int | None
    prompt: str
    seed: int | None
    image: str                   # its name among the samples
    similarity: float            # to the nearest training image, by the calibrated descriptor
    is_copy: bool
    is_partial: bool             # no copy as a whole; a part is copied
    copied_by: tuple[str, ...]   # which layers and verifiers say that it is a copy: descriptor, exact, points, pixels
    nearest: str                 # image_id
    nearest_caption: str
    copies: float                # how often an epoch shows that training image
    null_as_close: int           # pictures of the null that come as close
    # image_id of the training image that the prompt belongs to, "" if none is known
    expected: str
    own_similarity: float | None  # to that one
    match: PairMatch | None      # with `nearest` where that one matches, else the surest


# ----- per prompt

@dataclass(frozen=True)
class PromptFindings:
    """What was found of one prompt under one method."""
    group: str
    prompt_index: int | None
    prompt: str
    image: str                   # its first image
    n: int                       # images
    copies: int
    partial_copies: int          # images that are no copies and copy a part
    top1_similarity: float       # highest similarity of its images to any training image
    evidence: PromptEvidence     # one p-value for each trace of copying
    p: float                     # all of them combined, of copies as a whole
    q: float                     # adjusted over the prompts of the method (Benjamini and Hochberg)
    significant: bool            # q is at most the false discovery rate
    leaked: bool                 # its images copy, and chance does not explain it
    leaked_any: bool             # they copy, whole or in part, and chance does not explain it
    unresolved: bool             # neither: too close for chance to explain it surely, or too few null pictures to tell
    unresolved_any: bool         # the same of leaked_any
    # image_id of the training image that the prompt belongs to, "" if none is known
    expected: str
    own_similarity: float | None  # highest similarity to that one
    method: str


# ----- per method and group of prompts

@dataclass(frozen=True)
class MethodFindings:
    """What was found of one way of sampling."""
    label: str                   # its name for people
    settings: dict[str, Any]
    groups: dict[str, GroupFindings]

    def __getitem__(self, group) -> GroupFindings:
        if group not in self.groups:
            raise KeyError(f"no group {group!r} of prompts in this report: take one of {', '.join(self.groups)}")
        return self.groups[group]


@dataclass(frozen=True)
class SweepPoint:
    """Delayed (before ≥ 0) or opposite guidance at one transition timestep."""
    family: str                  # delayed, or opposite
    before: float                # guidance scale before the transition
    transition_timestep: float
    n: int                       # images
    n_prompts: int
    copies: int
    copy_rate: Estimate = field(metadata=INTERVAL)
    alignment: float | None
    caption_accuracy: float | None


# ----- what is drawn

@dataclass(frozen=True)
class Histogram:
    """Counts of similarity to the nearest training image."""
    edges: tuple[float, ...]     # one more than counts; the copy threshold is one of them
    background: tuple[int, ...]  # training images to one another
    heldout: tuple[int, ...]
    methods: dict[str, dict[str, tuple[int, ...]]]


@dataclass(frozen=True)
class GapCurve:
    """Prediction gap by timestep: quartiles over images."""
    n: int
    timesteps: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class ReportPictures:
    """Opens what a report shows but does not hold; either answers None for a picture
    that is not to be shown."""
    generated: Callable[[str], Image.Image | None]   # by `image` of a Pair
    training: Callable[[str], Image.Image | None]    # by image_id; None if it is no training image's
