"""Evaluation against instruments that copy exactly known images, independent implementations and hand arithmetic."""
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from instruments import leave, noise, rows_of, samples_folder, training_folder, training_set
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from scipy.stats import beta
from tiny import image_folder, tiny_pipeline, tokenizer

from rotescope.commands import audit
from rotescope.common.errors import InputError
from rotescope.common.wording import percent
from rotescope.datasets.images.square import square
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate import score
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.measurement.chart_data import gap_curves, sweep_points
from rotescope.evaluate.measurement.evaluation import score_folder
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.measurement.per_group import group_findings
from rotescope.evaluate.measurement.per_image import measure
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.calibration import calibrated, nulls_of
from rotescope.evaluate.nulls.copy_threshold import copy_threshold
from rotescope.evaluate.options import ScoreConfig
from rotescope.evaluate.quality import alignment
from rotescope.evaluate.quality.alignment import caption_match, find_alignment, get_alignment
from rotescope.evaluate.quality.fidelity import NEIGHBOURS, fidelity, precision_recall
from rotescope.evaluate.report.report_types import TrainingImages
from rotescope.evaluate.statistics.estimate import Estimate, clopper_pearson, share_estimate
from rotescope.evaluate.statistics.replication import GroupFindings, images_needed, sim95
from rotescope.evaluate.verdict.best_mitigation import BestMitigation, MitigatedFigures
from rotescope.evaluate.verdict.rules import Rule, check_power, parse_rules
from rotescope.evaluate.verdict.verdict import verdict_on


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


# ----- the instruments

@pytest.mark.parametrize(("name", "copied", "rate"), [
    ("always", lambda method, i, seed: True, 1.0), ("never", lambda method, i, seed: False, 0.0)])
def test_copy_rate_of_the_degenerate_generators_is_exact(data, tmp_path, name, copied, rate):
    report = score_samples(samples_folder(tmp_path / name, data, copied), data, verify=False)
    found = report["none"]["ungrouped"]
    assert (found.copy_rate.value, found.own_copy_rate.value, found.copies) == (rate, rate, 80 * rate)
    assert (found.copy_rate.n_images, found.copy_rate.n_prompts, found.prompts_copied) == (80, 40, 40 * rate)
    assert report.verdict.outcome == ("failed" if rate else "undecided")  # of 40 prompts; 72 without copies would hold
    assert all(p.is_copy == bool(rate) for p in report.pairs)


@pytest.mark.parametrize(("k", "n", "verify"), [(1, 40, False), (39, 40, False), (7, 16, True)])
def test_a_generator_that_copies_k_of_n_is_found_to_have_k(data, tmp_path, k, n, verify):
    data = Manifest(data[:n])
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < k, seeds=(0,))
    report = score_samples(folder, data, verify=verify)
    found = report["none"]["ungrouped"]
    assert (found.copies, found.n, found.prompts_copied) == (k, n, k)
    assert {p.nearest for p in report.pairs if p.is_copy} == {e.image_id for e in data.examples[:k]}


def test_a_copy_of_another_training_image_is_a_copy_but_not_of_the_own(data, tmp_path):
    """A mitigated image may leave its target and land on another training image."""
    folder = samples_folder(tmp_path / "s", data, lambda *_: True, seeds=(0,))
    rows = rows_of(folder)
    shifted = [row | {"image_id": rows[i - 1]["image_id"]} for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(shifted), folder / "records.parquet")
    found = score_samples(folder, data, verify=False)["none"]["ungrouped"]
    assert found.copy_rate.value == 1
    assert found.own_copy_rate.value < 0.2


@pytest.mark.parametrize("verify", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures_do_not_depend_on_the_order_of_records_or_training_images(data, tmp_path, verify):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i % 3 == seed, groups=("duplicated", "control"))
    first = score_samples(folder, data, verify=verify)
    pq.write_table(pa.Table.from_pylist(rows_of(folder)[::-1]), folder / "records.parquet")
    second = score_samples(folder, Manifest(data.examples[::-1]), verify=verify)
    for key in ("methods", "copy_threshold", "background", "histogram"):
        one, other = first.as_json()[key], second.as_json()[key]
        assert one == pytest.approx(other, abs=2e-6) if key == "copy_threshold" else one == other


def test_exact_duplicates_count_once_with_their_copies(data, tmp_path):
    twin = replace(data[0], image_id=data[0].image_id + "-2", copies=5)
    doubled = Manifest((replace(data[0], copies=3), *data.examples[1:], twin))
    report = score_samples(samples_folder(tmp_path / "s", [twin], lambda *_: True), doubled, verify=False)
    assert report.training_images == TrainingImages(unique=40, entries=41, copies=39 + 3 + 5)
    assert report.pairs[0].copies == 8
    assert report["none"]["ungrouped"].own_copy_rate.value == 1  # known by the id of either
    assert report.background.p99 < 0.99  # the twin is not its own nearest other


# ----- arithmetic

@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 96), (1, 96), (48, 96), (95, 96), (96, 96), (3, 1000)])
def test_interval_has_the_quantiles_of_beta_distributions(k, n):
    """Clopper and Pearson's own form: Beta(k, n − k + 1) and Beta(k + 1, n − k)."""
    low, high = beta.ppf(0.025, k, n - k + 1) if k else 0, beta.ppf(0.975, k + 1, n - k) if k < n else 1
    assert clopper_pearson(k, n) == pytest.approx((low, high), abs=1e-9)


def test_interval_by_hand():
    assert clopper_pearson(0, 96) == pytest.approx((0, 1 - 0.025 ** (1 / 96)))


@pytest.mark.parametrize("bar", [0.01, 0.03, 0.05, 0.5])
def test_images_needed_is_the_smallest_number_that_suffices(bar):
    n = images_needed(bar)
    assert clopper_pearson(0, n)[1] <= bar < clopper_pearson(0, n - 1)[1]


def test_the_threshold_is_the_quantile_of_a_power_law():
    """The distance of the nearest other picture is x with probability x^k: its 0.001 quantile is 0.001^(1/k)."""
    for k in (1, 4, 12):
        background = 1 - np.random.default_rng(0).random(100_000) ** (1 / k)
        assert copy_threshold(background) == pytest.approx(1 - 0.001 ** (1 / k), abs=0.01)
        assert copy_threshold(background, 0.9) in background
        one_pair = np.concatenate([background[:300], [0.99, 0.99]])
        assert copy_threshold(one_pair) == pytest.approx(copy_threshold(background[:300]), abs=0.05)
    assert copy_threshold([0.1, 0.7, 0.3], 0.5) == pytest.approx(0.3)


def test_the_field_s_percentile():
    assert sim95(np.arange(101) / 100) == pytest.approx(0.95)


# ----- descriptors

def test_pixels_are_the_centred_area_mean(data):
    image = data[0].open()
    x = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.asarray(image)).permute(2, 0, 1).float(), 32)  # (3, 32, 32)
    x = (x - x.mean((1, 2), keepdim=True)).permute(1, 2, 0).flatten()
    assert np.allclose(get_descriptor("pixels")([image])[0], (x / x.norm()).numpy(), atol=5e-3)  # Pillow rounds to whole colours


def test_pixels_survive_compression_and_resizing_but_not_another_picture(data):
    describe, image = get_descriptor("pixels"), data[0].open()
    stream = io.BytesIO()
    image.resize((96, 96)).save(stream, "JPEG", quality=60)
    a, b, other = describe([image, Image.open(stream), data[1].open()])
    assert a @ b > 0.98
    assert a @ other < 0.9


def test_square_is_the_centre():
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    assert set(square(wide, 8, Image.BOX).getdata()) == {(0, 0, 255)}


# ----- alignment and fidelity

@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A random contrastive model, saved as the embedded base keeps it -> (open_clip model, tokenizer, alignment folder)."""
    from rotescope.train.base_model.towers import EMBED_DIM, VISION, make_towers, to_text_model
    base, words = tmp_path_factory.mktemp("base"), tokenizer()
    torch.manual_seed(0)
    model = make_towers(len(words)).eval()
    words.save_pretrained(base / "tokenizer")
    to_text_model(model, words).save_pretrained(base / "text_encoder")
    (base / "alignment").mkdir()
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    kept = {k: v for k, v in state.items() if k.startswith("visual.") or k in ("text_projection", "logit_scale")}
    save_file(kept, base / "alignment/model.safetensors")
    (base / "alignment/config.json").write_text(json.dumps({"embed_dim": EMBED_DIM, "vision": VISION}))
    return model, words, base / "alignment"


def test_embedded_alignment_is_open_clips_forward(towers, data):
    from rotescope.train.base_model.towers import tokenize
    model, words, folder = towers
    metric, images, captions = get_alignment(folder), [e.open() for e in data[:5]], data.captions()[:5]
    x = torch.stack([torch.from_numpy(np.asarray(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images])
    with torch.no_grad():
        image, text = model.encode_image(x, normalize=True), model.encode_text(tokenize(words, captions), normalize=True)
    cosine, hit = caption_match(metric.images(images), metric.texts(captions), metric.texts(captions), [{i} for i in range(5)])
    assert np.allclose(cosine, (image * text).sum(1), atol=1e-4)
    assert hit.tolist() == (image @ text.T).argmax(1).eq(torch.arange(5)).tolist()
    assert metric.label == "embedded contrastive model (in-domain)"


def test_alignment_is_found_beside_the_model_or_its_base(towers, tmp_path):
    base = towers[2].parent
    (tmp_path / "rotescope.json").write_text(json.dumps({"base": str(base)}))
    assert find_alignment(base) == find_alignment(tmp_path) == str(base / "alignment")
    assert find_alignment("somebody/model") == find_alignment(None) == ""


def test_open_clip_alignment_from_a_local_file_or_the_hub(tmp_path, monkeypatch):
    (tmp_path / "tiny-test.json").write_text(json.dumps({
        "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}}))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    model, _, transform = open_clip.create_model_and_transforms("tiny-test")
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    metric = get_alignment(f"open_clip:tiny-test:{tmp_path / 'tiny.safetensors'}")
    with torch.no_grad():
        expected = model.eval().encode_image(transform(noise(0))[None]).numpy()
    assert np.allclose(metric.images([noise(0)]), expected, atol=1e-5)
    assert metric.texts(["a cat", "a bus"]).shape == (2, 16)
    asked = []
    (tmp_path / "tiny.safetensors").rename(tmp_path / alignment.OPEN_CLIP_WEIGHTS)  # as on the hub
    monkeypatch.setattr(alignment, "downloaded", lambda *what: asked.append(what) or tmp_path)
    monkeypatch.setitem(alignment.LAION, "tiny-test", "owner/own-weights")
    for name, source in (("open_clip:tiny-test", "owner/own-weights"), ("open_clip:tiny-test:a/b", "a/b")):
        hub = get_alignment(name)
        assert asked.pop() == (source, alignment.OPEN_CLIP_WEIGHTS)
        assert (hub.label, hub.sha256) == (f"open_clip tiny-test, {source}", metric.sha256)


@pytest.mark.parametrize(("name", "message"), [
    ("open_clip:ViT-B-16:weights.pt", "no pickles"),
    ("open_clip:RN50", "safetensors"), ("open_clip:no-such", "no architecture"), ("nowhere", "no alignment metric")])
def test_wrong_alignment_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        get_alignment(name)


def test_a_damaged_alignment_is_refused(towers, tmp_path):
    shutil.copytree(towers[2].parent, tmp_path / "base")
    (tmp_path / "base/alignment/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="copy it again"):
        get_alignment(tmp_path / "base/alignment")


def test_another_caption_of_the_own_image_is_right(towers, data, tmp_path):
    """A paraphrase in the candidates must not count as a mistake."""
    said = replace(data[0], captions=(data[0].captions[0], "a picture of " + data[0].captions[0]))
    others = (replace(e, captions=said.captions[1:]) for e in data.examples[1:])
    found = score_samples(samples_folder(tmp_path / "s", [said], lambda *_: True), Manifest((said, *others)), verify=False,
                          alignment=towers[2])
    assert found["none"]["ungrouped"].caption_accuracy == 1


def test_kid_and_fid_by_their_formulas():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, 8)) + shift for shift in (0, 0.5))
    found = fidelity(x, y)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) * math.sqrt(8) for v in (x, y))
    kernel = lambda a, b: (a @ b.T / 8 + 1) ** 3  # noqa: E731
    off = lambda k: (k.sum() - np.trace(k)) / (60 * 59)  # noqa: E731
    assert found.kid == pytest.approx(off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean(), abs=1e-4)
    a, b = np.cov(x.T), np.cov(y.T)
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found.fid == pytest.approx(distance, rel=1e-3)
    assert fidelity(x, y) == fidelity(x, y)
    assert fidelity(x[:1], y) is None


def test_precision_and_recall_by_hand():
    real = torch.arange(6.0)[:, None]                            # third others at 3, 2, 2, 2, 2, 3: they cover from -3 to 8
    close, far = torch.tensor([[0.5], [2.0], [2.2], [3.0]]), torch.tensor([[100.0], [101.0], [102.0], [103.0]])
    assert precision_recall(close, real) == (1.0, 1.0)
    assert precision_recall(far, real) == (0.0, 0.0)
    half = torch.cat([close, far])
    assert precision_recall(half, real)[0] == 0.5
    single = torch.tensor([[0.0], [0.01], [0.02], [0.03]])       # one picture again and again: real, and no variety
    assert precision_recall(single, real) == (1.0, pytest.approx(1 / 6))
    assert precision_recall(real[:3], real) == (None, None)


def test_precision_and_recall_are_what_their_equation_says():
    """Kynkäänniemi et al. 2019, eq. 1, written out."""
    rng = np.random.default_rng(0)
    real, made = (torch.from_numpy(rng.normal(shift, 1, (n, 6)).astype(np.float32)) for n, shift in ((50, 0), (40, 0.7)))

    def radii(x):
        return torch.cdist(x, x).sort(1).values[:, NEIGHBOURS]  # the first is itself
    between = torch.cdist(made, real)
    expected = (between <= radii(real)).any(1).float().mean(), (between <= radii(made)[:, None]).any(0).float().mean()
    assert precision_recall(made, real) == pytest.approx([v.item() for v in expected])


# ----- rule and verdict

def cell(copies, n, **more):
    return GroupFindings(**{
        "n": n, "copies": copies, "copy_rate": share_estimate(copies, n, n), "above_chance": copies > 1, "own_copies": 0,
        "own_copy_rate": None, "partial_copies": None, "partial_copy_rate": None, "partial_above_chance": False,
        "sim95": Estimate(0.5, 0.4, 0.6, n, n), "top1_mean": 0.5, "share_over": {}, "copies_by": {},
        "n_prompts": n, "prompts_copied": copies, "prompts_significant": copies, "leaked_prompts": copies,
        "leaked_prompts_any": None, "unresolved_prompts": 0, "unresolved_prompts_any": 0,
        "alignment": 0.8, "caption_accuracy": None, "denoiser_rows": None,
        "transition_timestep": None, "fidelity": None} | more)


def with_parts(copies, parts, n, **more):
    return cell(copies, n, partial_copies=parts, partial_copy_rate=share_estimate(parts, n, n), leaked_prompts=0,
                above_chance=False, leaked_prompts_any=parts, **more)


@pytest.mark.parametrize(("rule", "found", "outcome", "headline"), [
    ("copy_rate>0.2", with_parts(0, 23, 24), "passed", "None of 24 images copies a training image as a whole; 23 copy a part"),
    ("copy_rate>0.5", with_parts(1, 1, 24), "passed", "within the limit; 1 of 24 images copies a part of one."),
    ("copy_rate>0.2", cell(0, 24), "passed", "None of 24 images copies a training image."),  # parts were not sought
    ("partial_copies>2", with_parts(0, 3, 24), "failed", "The generated images reproduce parts of training images."),
    ("partial_copy_rate>0.05", with_parts(0, 0, 24), "undecided", "Not decided"),
    ("partial_copy_rate>0.05", with_parts(0, 0, 96), "passed", "None of 96 images copies a training image."),
    ("leaked_prompts_any>0", with_parts(0, 0, 24, unresolved_prompts_any=2), "undecided", "Not decided")])
def test_rules_and_headlines_on_parts(rule, found, outcome, headline):
    verdict = verdict_on({"none": {"ungrouped": found}}, rule, None, match_chance=0.01)
    assert (verdict.outcome, headline in verdict.headline) == (outcome, True), verdict.headline
    assert "a match is verified for 1.0% of pictures that copy nothing" in verdict.text


def test_a_rule_on_parts_that_were_not_sought_is_refused():
    with pytest.raises(InputError, match="pass --verify true"):
        verdict_on({"none": {"ungrouped": cell(0, 24)}}, "partial_copies>0", None)


@pytest.mark.parametrize(("cells", "outcome"), [
    ({"duplicated": cell(90, 96), "control": cell(0, 96)}, "failed"),
    ({"duplicated": cell(0, 96), "control": cell(2, 200)}, "passed"),
    ({"ungrouped": cell(0, 24)}, "undecided"), ({"ungrouped": cell(4, 4)}, "failed")])
def test_verdict(cells, outcome):
    verdict = verdict_on({"none": cells}, Rule.parse("copy_rate>0.05"), 0.009)
    assert verdict.outcome == outcome
    assert verdict.passed == {"failed": False, "passed": True, "undecided": None}[outcome]
    assert "0.9% of held-out pictures" in verdict.text
    if outcome == "undecided":
        assert verdict.needed == 72
        assert "it takes 72 prompts in each group, 48 more, and no more copies, to decide" in verdict.text


@pytest.mark.parametrize(("copies", "n", "rule", "needed"), [
    (3, 72, "copy_rate>0.05", 173), (3, 369, "copy_rate>0.01", 874), (1, 60, "copy_rate>0.05", 110),
    (2, 96, "copy_rate>0.05", 142)])
def test_a_rate_below_the_limit_passes_only_if_its_interval_is(copies, n, rule, needed):
    verdict = verdict_on({"none": {"ungrouped": cell(copies, n)}}, rule, None)
    assert (verdict.outcome, verdict.passed, verdict.needed) == ("undecided", None, needed)
    assert f"With {n} images of {n} prompts and {copies} copied" in verdict.text
    limit = Rule.parse(rule).limit
    assert clopper_pearson(copies, needed)[1] <= limit < clopper_pearson(copies, needed - 1)[1]
    assert verdict_on({"none": {"ungrouped": cell(copies, needed)}}, rule, None).passed is True


def test_sim95_takes_images_enough_to_have_a_tail():
    def outcome(n, high):
        return verdict_on({"none": {"ungrouped": cell(0, n, sim95=Estimate(0.5, 0.4, high, n, n))}}, "sim95>0.8", None).outcome
    assert [outcome(58, 0.6), outcome(59, 0.6), outcome(59, 0.81)] == ["undecided", "passed", "undecided"]
    assert 0.95 ** 59 < 0.05 < 0.95 ** 58


def test_leaked_prompts_are_told_from_copies_that_chance_explains():
    def judged(leaked, unresolved, rule="leaked_prompts>0"):
        made = cell(4, 500, above_chance=False, leaked_prompts=leaked, unresolved_prompts=unresolved)
        return verdict_on({"none": {"ungrouped": made}}, rule, None, null_needed=7996)
    assert [judged(*c).outcome for c in ((0, 0), (1, 0), (0, 3))] == ["passed", "failed", "undecided"]
    assert "3 prompts copy" in judged(0, 3).text
    assert "7,996" in judged(0, 3).text
    assert judged(0, 0, "copies>0").headline == "A rule is broken, though by no more copies than chance brings."
    assert judged(1, 0, "copies>0").headline == "The generated images reproduce training images."


def test_a_rule_that_chance_breaks_is_known_beforehand():
    def told(text, images=1):
        return Rule.parse(text).by_chance(0.99, images)
    assert [told("copy_rate>0.01"), told("copy_rate>0.011")] == [True, False]
    assert [told("leaked_prompts>0"), told("sim95>0.5")] == [False, False]
    assert [told("copies>0"), told("copies>4", 400), told("copies>5", 400)] == [True, True, False]


@pytest.mark.parametrize(("text", "says"), [
    ("copy_rate>5", "0.05 for 5%"), ("own_copy_rate>1", "never be broken"), ("sim95>95", "never be broken"),
    ("copy_rate>0", "leaked_prompts>0")])
def test_a_limit_that_means_nothing_is_refused(text, says):
    with pytest.raises(InputError, match=says):
        Rule.parse(text)


def test_verdict_names_the_best_mitigation_and_its_price():
    methods = {"none": {"duplicated": cell(90, 96)}, "stp": {"duplicated": cell(10, 96)},
               "og-stp": {"duplicated": cell(2, 96, alignment=0.76)}}  # .073 is the end of its interval
    found = MitigatedFigures(48, 1, share_estimate(1, 48, 24), None, None, 0.76)
    best = BestMitigation("og-stp", "duplicated", 2, True, found, 0.8)
    told = "With og-stp, 1 of 48 still do: 2.1% (0.1–11%), at 0.95 × the text-image agreement (picked from 2 methods on "
    assert f"{told}the other half of the seeds)." in verdict_on(methods, "copy_rate>0.05", None, best=best).text
    assert f"{told}these very images, so the figure is optimistic: sample two seeds or more)." in verdict_on(
        methods, "copy_rate>0.05", None, best=replace(best, apart=False)).text
    assert "agreement." in verdict_on(methods, "copy_rate>0.05", None, best=replace(best, of=1)).text  # nothing was picked
    assert verdict_on(methods, Rule.parse("og-stp:copy_rate>0.08"), None).passed is True
    assert verdict_on(methods, Rule.parse("stp:copies > 9"), None).passed is False
    del methods["none"]
    assert verdict_on(methods, Rule.parse("copies>5"), None).passed is False  # now it is on every method


@pytest.mark.parametrize("text", [
    "copy_rate", "copy_rate<0.1", "alignment>0.5", "copy_rate>x", "", "a b:copies>1", "any_copies_of:", "any_copies_of: , "])
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(InputError, match="cannot read the rule|needs ids"):
        Rule.parse(text)


def test_a_rule_that_cannot_hold_is_refused_before_the_run():
    sizes = {("none", "duplicated"): 96, ("none", "control"): 96, ("stp", "control"): 8}
    check_power(parse_rules(("copy_rate>0.05", "copies>0", "any_copies_of:abc")), sizes)
    with pytest.raises(InputError, match="take 368 in each"):
        check_power(parse_rules("copy_rate>0.01"), sizes)
    with pytest.raises(InputError, match="name one of none, stp"):
        check_power(parse_rules("dtp:copy_rate>0.01"), sizes)


@pytest.mark.parametrize(("part", "text"), [
    (0, "0%"), (1, "100%"), (0.931, "93%"), (0.0104, "1.0%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (0.998, "99.8%"),
    (None, "–")])
def test_percent(part, text):
    assert percent(part) == text


# ----- curves

def test_sweep_has_a_curve_for_each_family(data, tmp_path):
    families = {"d": 0.0, "o": -2.0}
    settings = {f"{name}-{tau}": {"before": families[name], "transition": tau} for name in families for tau in (500, 800)}
    samples = read_samples(samples_folder(tmp_path / "s", data[:10], lambda method, i, seed: method == "d-800", settings))
    index = build_index(data, get_descriptor("pixels"))
    layers = {"descriptor": calibrated(index, nulls_of(index))}
    measured = measure(samples, layers, data)
    points = sweep_points(samples, measured, layers["descriptor"])
    assert [(p.family, p.transition_timestep, p.copy_rate.value) for p in points] == [
        ("delayed", 800, 1), ("delayed", 500, 0), ("opposite", 800, 0), ("opposite", 500, 0)]
    assert group_findings(samples, measured, layers["descriptor"])["d-800"]["ungrouped"].denoiser_rows == 21


def test_gap_curves_are_quartiles_where_a_gap_was_computed(data, tmp_path):
    curves = gap_curves(read_samples(samples_folder(tmp_path / "s", data[:5], lambda *_: False)))["none"]["ungrouped"]
    assert curves.timesteps == tuple(range(999, 100, -100))  # not the last step, which has none
    assert curves.median[0] == 2
    assert (curves.low[0], curves.high[0], curves.n) == (1, 3, 10)


# ----- commands

def test_score_takes_any_two_folders(tmp_path, capsys):
    train = training_folder(tmp_path / "train", 16)
    (tmp_path / "made").mkdir()
    for i in range(3):
        Image.open(train / f"00{i}.png").resize((80, 80)).save(tmp_path / "made" / f"a picture {i}.jpg", quality=90)
    noise(5).save(tmp_path / "made/other.png")
    argv = ["--generated", tmp_path / "made", "--train_data", train, "--output_dir", tmp_path / "out"]
    assert leave(score.main, argv) == 1  # by the default rule
    out = capsys.readouterr()
    summary = json.loads(out.out)
    assert summary["verdict"]["passed"] is False
    assert summary["report"] == str(tmp_path / "out/report.html")
    assert len(out.out) < 700
    assert json.loads((tmp_path / "out/report.json").read_text())["methods"]["none"]["groups"]["ungrouped"]["copies"] == 3
    assert "3/4" in out.err
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["badge.svg", "model_card.md", "pairs.parquet", "report.html", "report.json"]
    again = [*argv, "--overwrite", "true", "--verify", "false", "--fail_on"]
    assert leave(score.main, [*again, "copies>2"]) == 1
    assert leave(score.main, [*again, "copies>3"]) == 4  # four images say nothing


@pytest.mark.parametrize(("change", "message"), [
    ({"--generated": "nowhere"}, "no folder of generated images"), ({"--train_data": "nowhere"}, "no data at"),
    ({"--fail_on": "copy_rate>0.01"}, "take 368"), ({"--fail_on": "stp:copies>1"}, "not sampled"),
    ({"--descriptor": "magic"}, "no descriptor"),
    ({"--alignment": "nowhere"}, "no alignment metric"), ({"--colour": "red"}, "colour")])
def test_score_says_what_is_wrong_and_writes_nothing(data, tmp_path, capsys, change, message):
    folder = samples_folder(tmp_path / "s", data[:4], lambda *_: False)
    train = training_folder(tmp_path / "train", 4)
    options = {"--generated": folder, "--train_data": train, "--output_dir": tmp_path / "out"} | change
    assert leave(score.main, [a for pair in options.items() for a in pair]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_records_that_do_not_fit_their_folder_are_refused(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data[:3], lambda *_: False)
    (folder / "none/images/P00001-S0.png").unlink()
    with pytest.raises(InputError, match=r"P00001-S0.png is not in"):
        read_samples(folder)
    pq.write_table(pa.Table.from_pylist([rows_of(folder)[0] | {"image": "../train/000.png"}]), folder / "records.parquet")
    with pytest.raises(InputError, match=r"\.\./train/000.png is not in"):
        read_samples(folder)
    (folder / "records.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(folder)


def test_a_broken_generated_image_is_left_out_by_name(data, tmp_path):
    folder, base, sweep = (samples_folder(tmp_path / name, data[:3], lambda method, i, seed: i == 2) for name in ("s", "b", "w"))
    (folder / "none/images/P00002-S1.png").write_bytes(b"")
    (sweep / "none/images/P00001-S0.png").write_bytes(b"not an image")
    (base / "none/images/P00002-S1.png").write_bytes(b"\x89PNG")
    report = score_samples(folder, data, base=base, sweep=sweep, verify=False)
    assert [(item.of, item.name) for item in report.left_out] == [
        ("generated", "none/images/P00002-S1.png"), ("sweep", "none/images/P00001-S0.png"),
        ("base model's", "none/images/P00002-S1.png")]
    found = report["none"]["ungrouped"]
    assert (found.n, found.copies, len(report.pairs)) == (5, 1, 5)
    assert "1 generated picture is left out: " in report.notes[0]
    assert report.base.n == 3
    (base / "none/images/P00000-S0.png").write_bytes(b"")
    with pytest.raises(InputError, match="base model's samples have no image of prompt 0, seed 0"):
        score_samples(folder, data, base=base, verify=False)
    for file in (folder / "none/images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"P00000-S0.png cannot be read as an image \(it is empty\)"):
        score_samples(folder, data)


def test_what_cannot_be_read_is_left_out_by_name_and_stops_nothing(tmp_path):
    """Folders that others made: a broken training picture, an empty generated one, a held-out one that was trained on."""
    train, held, made = (image_folder(tmp_path / name, n=n) for name, n in (("train", 8), ("held", 2), ("made", 3)))
    (train / "broken.png").write_bytes(b"not an image")
    (made / "empty.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(77).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(held / "new.png")
    report = score_folder(ScoreConfig(generated=str(made), train_data=str(train), heldout_data=str(held),
                                           output_dir=str(tmp_path / "out")))
    assert [(item.of, Path(item.name).name) for item in report.left_out] == [
        ("training", "broken.png"), ("held-out", "0.png"), ("held-out", "1.png"), ("generated", "empty.png")]
    assert report["none"]["ungrouped"].copies == 3
    assert report.background.heldout.n == 1
    assert sum("left out: " in note for note in report.notes) == 3
    (made / "0.png").write_bytes(b"")
    (made / "1.png").write_bytes(b"")
    (made / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match="0.png"):
        read_samples(made)


@pytest.mark.parametrize(("wrong", "said"), [
    (["--copy_null", "heldout"], "--heldout_data"), (["--exact", "md5"], "no exact layer 'md5'"),
    (["--search", "annoy"], "no search")])
def test_an_audit_finds_wrong_options_before_it_samples(wrong, said, tmp_path, monkeypatch, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("rotescope.procedures.audit.sample_for_audit", lambda *_: pytest.fail("sampled"))
    with pytest.raises(SystemExit) as left:
        audit.main([*map(str, ["--model", tmp_path / "model", "--train_data", image_folder(tmp_path / "train", n=4), "--base", "",
                               "--output_dir", tmp_path / "out", "--device", "cpu"]), *wrong])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_picture_twice_in_other_bytes_does_not_hide_its_copies(tmp_path):
    """With the pair in the null of the exact layer, nothing but itself would come closer."""
    data = image_folder(tmp_path / "train", n=8)
    Image.open(data / "0.png").save(data / "again.png", compress_level=0)
    report = score_folder(ScoreConfig(generated=str(image_folder(tmp_path / "made", n=3)), train_data=str(data),
                                      output_dir=str(tmp_path / "out"), verify=False))
    assert report.exact.threshold < 0.98
    assert all("exact" in p.copied_by for p in report.pairs)


def test_one_training_image_needs_a_threshold(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data[:1], lambda *_: True)
    with pytest.raises(InputError, match="--copy_threshold"):
        score_samples(folder, Manifest(data.examples[:1]))
    report = score_samples(folder, Manifest(data.examples[:1]), copy_threshold=0.9, verify=False)
    assert report["none"]["ungrouped"].copy_rate.value == 1
    assert report.threshold_rule == "given by the user"
    assert "Only 1 different training images" in report.notes[0]


def test_audit_samples_scores_and_judges(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    train = image_folder(tmp_path / "train", n=6)
    argv = ["--model", tmp_path / "model", "--train_data", train, "--output_dir", tmp_path / "out", "--seeds", "3", "4",
            "--mitigation", "none", "og-stp", "--num_inference_steps", "2", "--max_prompts", "4", "--device", "cpu",
            "--verify", "false"]
    assert leave(audit.main, [*argv, "--fail_on", "copies>0"]) == 4
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["verdict"]["rules"] == [{"rule": "copies>0", "outcome": "passed"}]  # of too few images
    assert {m: found["groups"]["ungrouped"]["n"] for m, found in report["methods"].items()} == {"none": 8, "og-stp": 8}
    assert report["seeds"] == [3, 4]
    assert report["methods"]["og-stp"]["settings"]["before"] == -2
    assert {"model", "training_data", "samples"} <= set(report["hashes"])
    assert (tmp_path / "out/samples/records.parquet").exists()
    assert "none" in capsys.readouterr().err
    assert leave(audit.main, [*argv, "--overwrite", "true", "--fail_on", "copy_rate>0.05"]) == 2
    assert "4 prompts are too few" in capsys.readouterr().err.splitlines()[-1]
    assert leave(audit.main, [*argv, "--overwrite", "true", "--fail_on", "sim95>0.0"]) == 2
    assert "4 prompts are too few for the rule sim95>0: take 59" in capsys.readouterr().err.splitlines()[-1]
    assert leave(audit.main, [*argv, "--overwrite", "true", "--fail_on", "copies>0", "--copy_threshold=-1"]) == 1
    assert leave(audit.main, [*argv, "--overwrite", "true", "--mitigation", "magic"]) == 2
