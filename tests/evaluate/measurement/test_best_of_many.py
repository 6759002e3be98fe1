"""The best of several mitigations is picked on one half of the seeds and measured on the other."""
import pytest
from instruments import samples_folder, training_set

from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.page_tables import verdict_tiles

METHODS = {name: {"before": 0.0, "transition": t} for t, name in ((1000, "none"), (700, "lucky"), (600, "even"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train", 12)


def copies(method, i, seed):
    """One method copies nothing on seeds 0 and 2, and everything on 1 and 3; the other every third image of all."""
    return method == "none" or (seed % 2 if method == "lucky" else i % 3 == 0)


def best_of(data, folder, seeds, methods=METHODS):
    report = score_samples(samples_folder(folder, data, copies, methods, seeds=seeds), data, verify=False)
    return report, report.verdict.best


def test_luck_on_one_half_does_not_show_in_the_figures(data, tmp_path):
    report, best = best_of(data, tmp_path / "s", (0, 1, 2, 3))
    assert (best.method, best.of, best.apart, best.optimistic) == ("lucky", 2, True, False)
    assert (best.found.copies, best.found.n, best.found.copy_rate.n_prompts) == (24, 24, 12)  # all of seeds 1 and 3
    assert "With lucky, 24 of 24 still do" in report.verdict.text
    assert "(picked from 2 methods on the other half of the seeds)." in report.verdict.text
    tile = verdict_tiles(report)[-1]
    assert (tile["figure"], tile["name"]) == ("100%", "lucky")
    assert tile["detail"].endswith("on the other seeds")


def test_on_one_seed_the_figure_is_called_optimistic(data, tmp_path):
    report, best = best_of(data, tmp_path / "s", (0,))
    assert (best.method, best.found.copies, best.found.n, best.optimistic) == ("lucky", 0, 12, True)
    assert "picked from 2 methods on these very images, so the figure is optimistic" in report.verdict.text
    assert "picked on these images" in verdict_tiles(report)[-1]["detail"]


def test_where_nothing_is_picked_all_seeds_count(data, tmp_path):
    report, best = best_of(data, tmp_path / "s", (0, 1), {name: METHODS[name] for name in ("none", "even")})
    assert (best.method, best.found.copies, best.found.n, best.optimistic) == ("even", 8, 24, False)
    assert "picked" not in report.verdict.text
    alone = score_samples(samples_folder(tmp_path / "one", data, copies, {"none": {}}, seeds=(0,)), data, verify=False)
    assert alone.verdict.best is None
