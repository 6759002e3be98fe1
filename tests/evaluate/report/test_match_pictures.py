"""What the page shows of a verified match: frames at the right pixels, points joined, one picture laid on the other."""
import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from instruments import finder, laid, noise, training_set
from PIL import Image, ImageOps

from rotescope.datasets.geometry.match import outlines
from rotescope.datasets.images.data_uri import data_uri
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.measurement import findings
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.html import render_report
from rotescope.evaluate.report.match_pictures import COMPARED, FRAMED, GAP, LINE, framed, joined, laid_on, sized, warp
from rotescope.evaluate.report.page_pictures import THUMBNAIL, shown_pairs, shown_parts

HOSTILE = '"><script>alert(1)</script> & <b>bold</b>'
CROP = (2, 0, -0.5, 0, 2, -0.5)      # the middle half of both sides, blown up
HALF = (0.5, 0, 0.25, 0, 0.5, 0.25)  # at half size in the middle


def black(width, height):
    return Image.new("RGB", (width, height), "black")


def inked(picture):
    """(left, top, right, bottom) of what is not black."""
    return picture.convert("L").point(lambda v: 255 * (v > 128)).getbbox()


# ----- frames

@pytest.mark.parametrize("size", [(64, 64), (192, 48), (400, 100), (60, 180), (1000, 1000)])
def test_a_frame_lies_where_the_outline_is_in_the_pictures_own_shape(size):
    picture = black(*size)
    drawn = framed(picture, ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)))
    width, height = drawn.size
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
    assert max(drawn.size) <= FRAMED
    box = (width / 4 - LINE, height / 4 - LINE, 3 * width / 4 + LINE + 1, 3 * height / 4 + LINE + 1)
    assert inked(drawn) == pytest.approx(box, abs=1)
    inside = drawn.crop((width // 4 + LINE + 2, height // 4 + LINE + 2, 3 * width // 4 - LINE - 2, 3 * height // 4 - LINE - 2))
    assert inside.getbbox() is None  # what matches stays as it is
    assert picture.getbbox() is None  # and so does the picture itself


def test_a_frame_of_the_whole_picture_lies_inside_it():
    drawn = np.asarray(framed(black(192, 96), ((0, 0), (1, 0), (1, 1), (0, 1))))
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (edge == 255).all()
    assert (drawn[LINE, LINE:-LINE] == 0).all()


def test_a_black_line_shows_on_white_and_a_white_one_on_black():
    for ground in ("white", "black"):
        levels = set(np.unique(np.asarray(framed(Image.new("RGB", (50, 50), ground), outlines(HALF)[0]))))
        assert levels == {0, 255}


def test_no_outline_and_no_picture():
    assert framed(None, ()) is None
    assert framed(black(64, 64), ()).getbbox() is None
    assert framed(black(1, 1), ((0, 0), (1, 0), (1, 1))).size == (FRAMED, FRAMED)
    assert framed(black(20_000, 100), ((0, 0), (1, 0), (1, 1))).size == (FRAMED, 1)


# ----- one laid on the other

@pytest.mark.parametrize(("size", "transform", "make"), [
    ((64, 64), (-1, 0, 1, 0, 1, 0), ImageOps.mirror),
    ((128, 40), (0, 1, 0, 1, 0, 0), lambda x: x.transpose(Image.TRANSPOSE)),
    ((96, 64), CROP, lambda x: x.crop((24, 16, 72, 48)).resize((96, 64), Image.BICUBIC))])
def test_the_training_image_is_laid_where_the_transform_says(size, transform, make):
    image = Image.effect_noise(size, 60).resize((size[0] // 4, size[1] // 4)).resize(size, Image.BICUBIC).convert("RGB")
    made = make(image)
    found = np.asarray(warp(image, transform, made.size), int)[2:-2, 2:-2]
    assert np.abs(found - np.asarray(made, int)[2:-2, 2:-2]).mean() < 1.5


def test_what_the_training_image_does_not_reach_is_grey():
    warped = np.asarray(warp(Image.new("RGB", (30, 30), "red"), HALF, (200, 80)))
    assert (warped[40, 100] == (255, 0, 0)).all()
    assert (warped[5, 100] == 127).all()
    assert (warped[40, 30] == 127).all()
    assert (np.abs(warped.astype(int) - 127).sum(2) > 0).mean() == pytest.approx(0.25, abs=0.01)


def test_a_transform_that_cannot_be_turned_round_shows_nothing():
    assert warp(black(9, 9), (0, 0, 0.5, 0, 0, 0.5), (9, 9)) is None
    assert laid_on(black(9, 9), black(9, 9), (0, 0, 0.5, 0, 0, 0.5)) is None


def test_lines_end_at_the_matched_points():
    left, right = sized(black(64, 32), COMPARED), sized(black(32, 32), COMPARED)
    drawn = np.asarray(joined(black(64, 32), black(32, 32), [((0.25, 0.5), (0.75, 0.25))]))
    assert drawn.shape == (max(left.height, right.height), left.width + GAP + right.width, 4)
    ys, xs = np.nonzero(drawn[..., :3].sum(2))
    assert xs.min() == pytest.approx(0.25 * left.width - 5, abs=2)
    assert xs.max() == pytest.approx(left.width + GAP + 0.75 * right.width + 5, abs=2)
    many = [((i / 30, 0.5), (i / 30, 0.5)) for i in range(30)]
    drawn = np.asarray(joined(black(64, 64), black(64, 64), many))
    starts = (drawn[192, :384, :3].astype(int) == 255).all(1)
    assert starts.any()


# ----- on the page

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four training images with hostile captions; one generated image is the second one mirrored, in a wide one lies the third,
    and one is noise -> (report, training images, generated images)."""
    folder = tmp_path_factory.mktemp("made")
    data = training_set(folder / "train", 12)
    data = Manifest(tuple(replace(e, captions=(HOSTILE + str(i),)) for i, e in enumerate(data)))
    wide = Image.new("RGB", (256, 128), "teal")
    wide.paste(data[2].open(), (96, 32))
    pictures = {"mirrored.png": ImageOps.mirror(data[1].open()), "wide.png": wide, f"{HOSTILE[:6]}.png": noise(1)}
    (folder / "s").mkdir()
    for name, picture in pictures.items():
        picture.save(folder / "s" / name)
    points = tuple(((1 - x, y), (x, y)) for x in (0.2, 0.8) for y in (0.3, 0.7))
    found = {"mirrored.png": [laid(1, (-1, 0, 1, 0, 1, 0), mirrored=True, points=points)],
             "wide.png": [laid(2, (0.25, 0, 0.375, 0, 0.5, 0.25), 1.0, 0.125, recoloured=True)]}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(findings, "make_matcher", finder(found))
        report = score_samples(folder / "s", data, descriptor="pixels", copy_threshold=0.99)
    return report, data, pictures


def test_both_pictures_of_a_match_are_framed(made):
    report, data, pictures = made
    (_, copies, n, pairs), = shown_pairs(report)
    assert (copies, n, [p["image"] for p in pairs]) == (1, 3, ["mirrored.png", f"{HOSTILE[:6]}.png"])  # the part stands apart
    whole = ((0, 0), (1, 0), (1, 1), (0, 1))
    assert pairs[0]["generated_uri"] == data_uri(framed(pictures["mirrored.png"], whole), THUMBNAIL)
    assert pairs[0]["training_uri"] == data_uri(framed(data[1].open(), whole), THUMBNAIL)
    assert pairs[1]["match"] is None
    assert pairs[1]["generated_uri"] == data_uri(pictures[f"{HOSTILE[:6]}.png"], THUMBNAIL)
    (_, found, sought, above_chance, parts), = shown_parts(report)
    assert (found, sought, above_chance, parts[0]["nearest"]) == (1, 3, True, data[2].image_id)
    shown = Image.open(io.BytesIO(base64.b64decode(parts[0]["generated_uri"].partition(",")[2])))
    assert shown.size == (192, 96)  # its own shape
    grey = np.asarray(shown.convert("RGB"), int)
    row, column = np.abs(grey[48] - (0, 128, 128)).sum(1) > 60, np.abs(grey[:, 96] - (0, 128, 128)).sum(1) > 60
    assert np.flatnonzero(row)[[0, -1]] == pytest.approx((0.375 * 192 - LINE, 0.625 * 192 + LINE), abs=2)
    assert np.flatnonzero(column)[[0, -1]] == pytest.approx((0.25 * 96 - LINE, 0.75 * 96 + LINE), abs=2)


def test_the_page_says_what_happened_and_compares_on_demand(made):
    page = render_report(made[0])
    assert "Mirrored, verified by points" in page
    assert "Filling 0.12 of the image, colours changed, verified by points" in page
    details = re.findall(r'<details class="compare"><summary>(.*?)</summary>(.*?)</details>', page, re.DOTALL)
    assert [(summary, body.count("<img")) for summary, body in details] == [
        ("Matched points, and one laid on the other", 2), ("One laid on the other", 1)]
    assert all("alt=" in image for _, body in details for image in re.findall("<img[^>]*>", body))


def test_captions_of_a_match_are_escaped(made):
    page = render_report(made[0])
    assert page.count("<script") == 1
    assert "<b>bold" not in page
    hostile = made[0].pairs[0]
    hostile = replace(hostile, match=replace(hostile.match, description=HOSTILE, verifier=HOSTILE))
    page = render_report(replace(made[0], pairs=(hostile, *made[0].pairs[1:])))
    assert page.count("<script") == 1
    assert "<b>bold" not in page


def test_redaction_hides_copies_whole_and_in_part_and_what_is_laid_on_them(made):
    report, data, pictures = made
    page = render_report(report, redact=True)
    assert 'class="compare"' not in page
    assert "Filling 0.12 of the image" in page  # the words stay
    images = [uri for uri in re.findall(r'src="(data:[^"]*)"', page)]
    assert set(images) == {data_uri(pictures[f"{HOSTILE[:6]}.png"], THUMBNAIL)}
