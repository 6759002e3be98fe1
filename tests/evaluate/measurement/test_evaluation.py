"""`score` and `CopyRate` in memory: against the folder, each other, and themselves in several
updates and processes."""

import numpy as np
import pytest
import torch
from instruments import STEPS, noise, samples_folder, training_folder
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.measurement.copy_rate import CopyRate
from rotescope.evaluate.measurement.evaluation import score
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.generation import GeneratedImage


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def data(train):
    return load_source(train)


@pytest.fixture(scope="module")
def images(data):
    """Three copies, one of them a JPEG's worth away, and five pictures of noise."""
    near = data[2].open().resize((80, 80)).resize((64, 64))
    return [data[0].open(), data[1].open(), near, *(noise(1, i) for i in range(5))]


def figures(report):
    """Without what a folder knows and memory does not: names and hashes of files."""
    return {key: getattr(report, key) for key in ("verdict", "copy_threshold", "background", "histogram")} | {
        "none": report["none"].groups, "pairs": [(p.similarity, p.is_copy) for p in report.pairs]}


# ----- score

def test_pictures_in_memory_give_the_figures_of_the_folder(images, train, data, tmp_path, capsys):
    (tmp_path / "made").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / f"made/{i}.png")
    from_folder = score(tmp_path / "made", train, verify=False)
    assert from_folder["none"]["ungrouped"].copies == 3
    for training in (str(train), data, [e.open() for e in data]):
        assert figures(score(images, training, verify=False)) == figures(from_folder)
    assert figures(score_samples(tmp_path / "made", data, verify=False)) == figures(from_folder)
    assert capsys.readouterr() == ("", "")  # a library says nothing
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]  # and writes nothing


def test_prompts_in_memory_are_those_of_records(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data[:6], lambda method, i, seed: i < 2,
                            groups=("duplicated", "control"))
    recorded = score(folder, data, verify=False)
    made = [GeneratedImage(data[i].open() if i < 2 else noise(0, i, seed),
                           Prompt(data[i].captions[0], ("duplicated", "control")[i % 2], data[i].image_id),
                           "none", seed,
                           noise_seed=0, denoiser_rows=20, denoiser_calls=10, transition_timestep=None,
                           prediction_gaps=gaps,
                           timesteps=STEPS, active=True) for i in range(6) for seed in (0,
                                                                           1) for gaps in [[1.0
                                                                                            + i] * len(STEPS)]]
    told = score(made, data, verify=False)
    known = ("copies", "copy_rate", "own_copy_rate", "sim95", "n_prompts", "prompts_copied", "leaked_prompts",
             "denoiser_rows")
    assert told.prediction_gaps["none"]["duplicated"].median == (3.0,) * len(STEPS)
    for group in ("duplicated", "control"):
        one, other = recorded["none"][group], told["none"][group]
        assert [getattr(one, key) for key in known] == [getattr(other, key) for key in known]
    assert [(p.prompt, p.p, p.leaked) for p in told.prompts] == [(p.prompt, p.p, p.leaked)
                                                                 for p in recorded.prompts]
    pairs = score([(one.image, one.prompt) for one in made], data, verify=False)
    assert pairs["none"]["ungrouped"].n_prompts == 6
    assert "alert" not in pairs._repr_html_()


def test_other_pictures_in_memory_are_the_null_and_the_base(images, data, tmp_path):
    heldout = [noise(5, i) for i in range(120)]
    report = score(images, data, heldout_data=[*heldout, data[0].open()], base_images=images[::-1],
                   verify=False,
                   copy_null="heldout", fail_on=["copies>2", "leaked_prompts>9"])
    assert report.background.heldout.n == 120  # the one that was trained on is no null
    assert "0.999 quantile of the similarity of each of 120 held-out pictures" in report.threshold_rule
    assert [r.outcome for r in report.verdict.rules] == ["failed", "passed"]
    assert report.base.n == len(images)
    assert report.save(tmp_path / "out").stat().st_size > 10_000


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_mode_of_pil_is_taken(mode, data):
    picture = Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)) if mode == "I;16" else Image.new(mode,
                                                                                                     (8, 8))
    assert score([picture], data, verify=False)["none"]["ungrouped"].n == 1


@pytest.mark.parametrize(("wrong", "said"), [
    (([], "TRAIN"), "no generated images"), ((["a.png"], "TRAIN"), "a str is no generated image"),
    (([("a.png", "a cat")], "TRAIN"), "not a PIL image"), ((7, "TRAIN"), "holds no generated images"),
    (([noise(0)], []), "no training pictures"), (([noise(0)], "nowhere"), "no data at"),
    (([noise(0)], None), "no training images"),
    (("nowhere", "TRAIN"), "no folder of generated images")])
def test_what_cannot_be_scored_is_said(wrong, said, train):
    made, training = wrong
    with pytest.raises(InputError, match=said):
        score(made, train if isinstance(training, str) and training == "TRAIN" else training)


# ----- CopyRate

def test_the_metric_is_the_copy_rate_of_score(images, train):
    metric = CopyRate(reference=train)
    metric.update(images)
    expected = score(images, train, verify=False)["none"]["ungrouped"].copy_rate
    assert metric.compute()[:4] == expected[:4]
    assert metric.compute().value == 3 / 8
    similarity = sorted(p.similarity for p in score(images, train, verify=False).pairs)
    assert torch.cat(metric.similarity).sort().values.tolist() == pytest.approx(similarity, abs=1e-6)


def test_apart_is_together_and_reset_begins_anew(images, data):
    metric = CopyRate(reference=[e.open() for e in data])
    for i in range(0, len(images), 3):
        metric.update(images[i:i + 3])
    assert metric.compute().value == 3 / 8
    metric.reset()
    with pytest.raises(InputError, match="call update first"):
        metric.compute()
    assert metric(images[:2]).value == 1  # forward: of this batch alone
    metric.update(images[3:5])
    assert metric.compute()[:1] == (0.5,)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float16", "bfloat16"])
def test_tensors_are_taken_as_pictures_are(images, data, kind):
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    metric = CopyRate(reference=data)
    metric.update(pixels if kind == "uint8" else (pixels.float() / 255).to(getattr(torch, kind)))
    assert metric.compute().value == 3 / 8


@pytest.mark.parametrize(("wrong", "said"), [
    (torch.zeros(3, 8, 8), "no batch of images"), (torch.full((1, 3, 8, 8), 2.0), "not all from 0 to 1"),
    (torch.full((1, 3, 8, 8), float("nan")), "not all from 0 to 1"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    (["a.png"], "a str is no image")])
def test_what_is_no_image_is_refused(data, wrong, said):
    with pytest.raises(InputError, match=said):
        CopyRate(reference=data).update(wrong)


def test_wrong_options_of_the_metric_are_refused_at_once(data):
    with pytest.raises(InputError, match="no exact layer 'magic'"):
        CopyRate(reference=data, exact="magic")
    with pytest.raises(InputError, match="--heldout_data"):
        CopyRate(reference=data, copy_null="heldout")


def _one_process(rank, folder, train):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    images = [image for _, image in zip(range(3), load_source(train), strict=False)]
    metric = CopyRate(reference=train)
    metric.update([e.open() for e in images] if rank == 0 else [noise(2, i) for i in range(5)])
    (folder / f"{rank}.txt").write_text(repr(tuple(metric.compute())))
    torch.distributed.destroy_process_group()


def test_states_of_all_processes_are_joined(images, data):
    """As if another process had seen the same."""
    metric = CopyRate(reference=data, distributed_available_fn=lambda: True,
                      dist_sync_fn=lambda x, group=None: [x, x])
    metric.update(images[:4])
    metric.update(images[4:])
    assert metric.compute()[::3] == (6 / 16, 16)
    assert len(metric.copied) == 2  # its own again


@pytest.mark.slow
def test_two_processes_agree_on_the_rate_of_all_images(train, tmp_path):
    torch.multiprocessing.spawn(_one_process, (tmp_path, train), nprocs=2)
    one, other = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert one == other
    assert one.startswith("(0.375, ")
    assert one.endswith("8, 1)")
