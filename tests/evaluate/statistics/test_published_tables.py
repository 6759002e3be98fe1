"""Statistics by the conventions of published tables."""
import numpy as np
import pytest
from instruments import samples_folder, training_set

from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.statistics.published_tables import dcr, membench


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def test_published_statistics_by_hand():
    top1 = np.array([0.2, 0.4, 0.6, 0.8])
    assert vars(dcr(top1)) == pytest.approx({
        "mean": 0.5, "std": np.sqrt(0.05), "share_over_half": 0.5, "p75": 0.65, "p90": 0.74, "p95": 0.77})
    found = membench([0.9, 0.1, 0.2, 0.3, 0.6], [1, 1, 1, 1, 2])
    assert vars(found) == pytest.approx({"max": 0.75, "top3": (1.4 / 3 + 0.6) / 2, "share_over_half": 0.4, "n_prompts": 2})


def test_conventions_come_out_of_the_same_run_by_name(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 20)
    found = score_samples(folder, data, verify=False).conventions
    assert found.membench.methods["none"]["ungrouped"].max > 0.5
    assert found.dcr.methods["none"]["ungrouped"].share_over_half >= 0.5
    assert found.dcr.train_to_train.mean > 0
    assert not found.dcr.comparable  # pixels are no SSCD
