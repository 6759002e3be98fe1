"""Local features that lay a picture on another: transforms, shares, invariances, what is no match."""
import cv2
import numpy as np
import pytest
from drawings import drawing, keys, openers
from instruments import noise
from PIL import Image, ImageEnhance, ImageOps

from rotescope.datasets.geometry.borne_out import borne_out
from rotescope.datasets.geometry.local_features import (
    GENERATED_MOST,
    SIDE,
    local_features,
    mirror_image,
    working_size,
)
from rotescope.datasets.geometry.point_transform import (
    MatchedPoints,
    affine_transform,
    point_transform,
    similarity_transform,
)
from rotescope.datasets.geometry.point_verifier import PointVerifier

TRAINING = [drawing(i, size=(300, 200) if i % 4 == 0 else (256, 256)) for i in range(8)]
SURE = 15   # more than what chance brings among these pictures
EDITS = {   # what is done to picture 0 (300 × 200) or 1 (256 × 256); where that takes it, in shares; mirrored
    "as it is": (0, lambda p: p, (1, 0, 0, 0, 1, 0), False),
    "flip": (0, ImageOps.mirror, (-1, 0, 1, 0, 1, 0), True),
    "upside down": (0, ImageOps.flip, (1, 0, 0, 0, -1, 1), True),
    "turned by 180°": (0, lambda p: p.transpose(Image.ROTATE_180), (-1, 0, 1, 0, -1, 1), False),
    "turned by 90°": (0, lambda p: p.transpose(Image.ROTATE_90), (0, 1, 0, -1, 0, 1), False),
    "a window of 3/5": (0, lambda p: p.crop((60, 40, 240, 160)), (5 / 3, 0, -1 / 3, 0, 5 / 3, -1 / 3), False),
    "wider by a quarter": (1, lambda p: p.resize((320, 256)), (1, 0, 0, 0, 1, 0), False),
    "at half size at the right": (1, lambda p: on_grey(p, (128, 128), (100, 64)),
                                  (0.5, 0, 100 / 256, 0, 0.5, 64 / 256), False),
    "flip of a window": (1, lambda p: ImageOps.mirror(p.crop((0, 0, 192, 192))),
                         (-4 / 3, 0, 1, 0, 4 / 3, 0), True),
}


def on_grey(picture, size, at):
    canvas = Image.new("RGB", (256, 256), (128, 128, 128))
    canvas.paste(picture.resize(size, Image.LANCZOS), at)
    return canvas


@pytest.fixture(scope="module")
def verifier():
    return PointVerifier(keys(len(TRAINING)), openers(TRAINING))


def found(verifier, picture, k=10, without=()):
    prepared = verifier.prepare(picture)
    matches = verifier.verify(prepared, verifier.candidates(prepared, k, without), without)
    return sorted(matches, key=lambda match: -match.score)


# ----- transforms and shares

@pytest.mark.parametrize("name", EDITS)
def test_a_known_transform_is_recovered_to_one_hundredth(verifier, name):
    row, edit, transform, mirrored = EDITS[name]
    best = found(verifier, edit(TRAINING[row]))[0]
    assert (best.row, best.mirrored, best.verifier) == (row, mirrored, "points")
    assert best.score > SURE
    assert np.allclose(best.transform, transform, atol=0.01)
    assert len(best.points) <= 24
    a, b, c, d, e, f = best.transform
    for (x, y), (u, v) in best.points:
        assert np.allclose((a * u + b * v + c, d * u + e * v + f), (x, y), atol=0.02)


@pytest.mark.parametrize(("name", "training", "generated"), [
    ("as it is", 1, 1), ("a window of 3/5", 9 / 25, 1), ("at half size at the right", 1, 1 / 4),
    ("flip of a window", 9 / 16, 1)])
def test_shares_are_those_of_areas(verifier, name, training, generated):
    row, edit, *_ = EDITS[name]
    best = found(verifier, edit(TRAINING[row]))[0]
    assert best.training_share == pytest.approx(training, abs=0.07)
    assert best.generated_share == pytest.approx(generated, abs=0.07)
    assert best.is_copy == (training >= 0.5 and generated >= 1 / 3)


def test_only_a_shared_emblem_is_a_share_of_its_size(verifier):
    """Three eighths of each side, pasted into a picture of its own: 0.14 of either, and a margin around it."""
    picture = drawing(99)
    picture.paste(TRAINING[1].crop((64, 64, 160, 160)), (64, 64))  # in its place: the whole would overlap
    best = found(verifier, picture)[0]
    assert (best.row, best.is_copy) == (1, False)
    assert 0.1 < best.training_share < 0.3


def test_half_of_a_picture_bears_out_half():
    """By hand: the left half of two thumbnails is the same drawing, the right halves are two others."""
    one, other = (np.asarray(drawing(i, size=(64, 64), n=40)) for i in (1, 2))
    half = np.where(np.arange(64)[None, :, None] < 32, one, other)
    whole = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert borne_out(one, one, whole, np.zeros((0, 2))).training_share == 1
    assert borne_out(one, one, whole, np.zeros((0, 2))).agreement == 1
    share = borne_out(one, half, whole, np.zeros((0, 2)))
    assert 0.45 < share.agreement < 0.65
    assert 0.45 < share.training_share < 0.65  # by chance some of the other half correlates
    assert share.generated_share == share.training_share
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert borne_out(flat, flat, whole, np.zeros((0, 2))).training_share == 1
    assert borne_out(flat, flat + np.uint8(60), whole, np.zeros((0, 2))).training_share == 0


def test_other_colours_are_told(verifier):
    assert not found(verifier, TRAINING[2])[0].recoloured
    assert found(verifier, ImageOps.grayscale(TRAINING[2]).convert("RGB"))[0].recoloured
    red, green, blue = TRAINING[2].split()
    best = found(verifier, Image.merge("RGB", (blue, green, red)))[0]
    assert (best.row, best.recoloured) == (2, True)


def test_least_squares_agree_with_a_transform_made_by_hand():
    rng = np.random.default_rng(0)
    t, weight = rng.uniform(0, 300, (40, 2)), rng.uniform(0.1, 1, 40)
    turn = 1.5 * np.array([[0.8, -0.6], [0.6, 0.8]])
    assert np.allclose(similarity_transform(t, t @ turn.T + (5, -7), weight), np.c_[turn, (5, -7)])
    shear = np.array([[1.2, 0.3], [-0.1, 0.9]])
    assert np.allclose(affine_transform(t, t @ shear.T + (5, -7), weight), np.c_[shear, (5, -7)])
    assert np.isnan(similarity_transform(t[:1].repeat(3, 0), t[:3], weight[:3])).all()


def test_a_transform_is_found_among_nine_tenths_of_wrong_matches():
    rng = np.random.default_rng(1)
    n, right = 300, 30
    t = np.c_[rng.uniform(0, 320, (n, 2)), rng.uniform(2, 9, n), rng.uniform(0, 360, n)]
    g = np.c_[rng.uniform(0, 320, (n, 2)), rng.uniform(2, 9, n), rng.uniform(0, 360, n)]
    turn = 0.7 * np.array([[0.8, -0.6], [0.6, 0.8]])
    angle = np.degrees(np.arctan2(0.6, 0.8))
    g[:right] = np.c_[t[:right, :2] @ turn.T + (100, 30), 0.7 * t[:right, 2], t[:right, 3] + angle]
    best = point_transform(MatchedPoints(t, g, np.full(n, 0.5)))
    assert np.allclose(best.matrix, np.c_[turn, (100, 30)], atol=0.5)
    assert (best.inliers < right).sum() >= 0.8 * right
    assert best.score == 0.5 * len(best.inliers) <= 0.5 * right * 1.1


# ----- invariances

def test_the_same_alone_and_in_any_order(verifier):
    picture = drawing(50)
    picture.paste(TRAINING[3].resize((150, 150)), (10, 20))
    prepared = verifier.prepare(picture)
    rows = verifier.candidates(prepared, 10)
    together = {match.row: match for match in verifier.verify(prepared, rows)}
    for other in (rows[::-1], *([row] for row in rows)):
        assert all(match == together[match.row] for match in verifier.verify(prepared, other))
    found(verifier, TRAINING[5])
    assert {match.row: match for match in verifier.verify(verifier.prepare(picture), rows)} == together


def test_the_same_with_a_folder_and_without(tmp_path):
    alone = PointVerifier(keys(3), openers(TRAINING[:3]))
    kept = PointVerifier(keys(3), openers(TRAINING[:3]), tmp_path)

    def closed():
        raise AssertionError("a picture was opened again")

    again = PointVerifier(keys(3), [closed] * 3, tmp_path)
    assert (tmp_path / "points/descriptors.u8").exists()
    for picture in (ImageOps.mirror(TRAINING[2]), drawing(60)):
        assert found(kept, picture) == found(again, picture) == found(alone, picture)


def test_rows_that_are_left_out_are_no_candidates(verifier):
    prepared = verifier.prepare(TRAINING[6])
    assert verifier.candidates(prepared, 3)[0] == 6
    assert 6 not in verifier.candidates(prepared, 99, without=[6])
    assert len(verifier.candidates(prepared, 3)) <= 3


def test_features_of_the_mirror_image_are_those_that_extraction_finds():
    picture = TRAINING[1].resize((SIDE, SIDE))  # taken as it is, so that the mirror commutes with all
    told, extracted = mirror_image(local_features(picture)), local_features(ImageOps.mirror(picture))
    near = np.linalg.norm(told.places[:, None] - extracted.places[None], axis=2)
    turned = np.abs((told.angles[:, None] - extracted.angles[None] + 180) % 360 - 180)
    same = (near * SIDE < 1) & (turned < 5)   # coarse ones are found on every second pixel
    assert same.any(1).mean() > 0.85
    mine, theirs = np.argwhere(same).T
    off = np.linalg.norm(told.descriptors[mine].astype(float) - extracted.descriptors[theirs], axis=1)
    assert np.median(off) < 8          # of 512


# ----- what is no match

def test_nothing_is_found_between_noise_pictures():
    pictures = [noise(7, i, side=96) for i in range(4)]
    noisy = PointVerifier(keys(4), openers(pictures))
    assert all(match.score < 4 for i in range(4) for match in found(noisy, noise(8, i, side=96)))
    assert found(noisy, pictures[3])[0].row == 3


def test_fresh_drawings_score_far_below_copies(verifier):
    scores = [match.score for i in range(5) for match in found(verifier, drawing(200 + i))]
    assert max(scores, default=0) < SURE / 2


def test_what_many_training_pictures_share_scores_low():
    emblem = drawing(300, size=(100, 100), n=40)
    pictures = [drawing(i) for i in range(10)]
    for picture in pictures[:8]:
        picture.paste(emblem, (20, 20))
    alone = [drawing(i) for i in range(10)]
    alone[0].paste(emblem, (20, 20))
    asked = drawing(400)
    asked.paste(emblem, (120, 110))
    shared = found(PointVerifier(keys(10), openers(pictures)), asked)
    once = found(PointVerifier(keys(10), openers(alone)), asked)
    assert once[0].row == 0
    assert max((match.score for match in shared), default=0) < once[0].score / 2


def test_twins_among_the_training_pictures_do_not_hide_a_copy(verifier):
    faded = [ImageEnhance.Brightness(TRAINING[1]).enhance(v) for v in (0.9, 1.05)]
    twins = PointVerifier(keys(6), openers([*TRAINING[:4], *faded]))
    assert found(twins, TRAINING[1])[0].score > 0.9 * found(verifier, TRAINING[1])[0].score


@pytest.mark.parametrize("picture", [
    Image.new("RGB", (1, 1)), Image.new("RGB", (20_000, 100), "white"), Image.new("RGB", (64, 64), "red"),
    noise(3, side=4)], ids=["1 × 1", "20,000 × 100", "flat", "4 × 4"])
def test_a_picture_without_features_matches_nothing(verifier, picture):
    assert found(verifier, picture) == []
    prepared = verifier.prepare(picture)
    assert verifier.verify(prepared, [0, 1]) == []
    mixed = PointVerifier(keys(3), openers([picture, TRAINING[0], TRAINING[1]]))
    assert found(mixed, TRAINING[0])[0].row == 1
    assert mixed.verify(mixed.prepare(TRAINING[0]), [0]) == []


@pytest.mark.parametrize("n", [0, 1])
def test_no_training_picture_or_one(n):
    few = PointVerifier(keys(n), openers(TRAINING[:n]))
    assert [match.row for match in found(few, TRAINING[0])] == [0] * n
    assert found(few, TRAINING[0], without=range(n)) == []


def test_features_are_few_and_spread():
    picture = Image.new("RGB", (512, 512), (90, 90, 90))
    picture.paste(drawing(1, size=(256, 512), n=900), (0, 0))       # busy on the left
    picture.paste(drawing(2, size=(200, 200), n=20), (300, 150))
    features = local_features(picture)
    assert len(features) <= 320
    assert (features.places[:, 0] > 0.5).sum() >= 40
    assert len(local_features(picture, GENERATED_MOST)) > len(features)
    assert ((features.places >= 0) & (features.places <= 1)).all()


@pytest.mark.parametrize(("size", "taken"), [
    ((640, 640), (320, 320)), ((1280, 320), (640, 160)), ((1, 1), (8, 8)), ((20_000, 100), (1280, 6)),
    ((64, 64), (320, 320))])
def test_pictures_are_taken_at_one_area(size, taken):
    assert working_size(*size) == taken


def test_no_step_draws_random_numbers_of_opencv(verifier):
    cv2.setRNGSeed(1)
    before = found(verifier, TRAINING[7])
    cv2.setRNGSeed(2)
    assert found(verifier, TRAINING[7]) == before
