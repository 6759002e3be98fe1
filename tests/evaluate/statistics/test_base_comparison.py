"""Base against fine-tune: what the base model makes too was not memorized by this fine-tune."""
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruments import finder, laid, rows_of, samples_folder, saved, training_set

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.measurement import findings
from rotescope.evaluate.measurement.findings import score_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def test_what_the_base_copies_too_was_not_memorized_by_the_fine_tune(data, tmp_path):
    """Nine prompts copy; three of them do in the base model as well."""
    tuned = samples_folder(tmp_path / "tuned", data, lambda method, i, seed: i < 9, {"none": {}, "stp": {}})
    base = samples_folder(tmp_path / "base", data, lambda method, i, seed: i < 3)
    heldout = load_source(saved(tmp_path / "held", [s.image for s in scenes(60, 2)]), need_captions=False)
    report = score_samples(tuned, data, heldout, base=base, verify=False).base
    assert (report.method, report.n, report.copies, report.base_copies) == ("none", 40, 18, 6)
    assert sorted(p.prompt_index for p in report.prompts if p.became_memorized) == list(range(3, 9))
    assert report.became_memorized == 6
    assert all(p.difference == pytest.approx(p.similarity - p.base_similarity, abs=2e-6) for p in report.prompts)
    first = report.prompts[0]
    assert first.first_gap == first.base_first_gap == first.prompt_index


def test_a_base_on_other_prompts_is_refused(data, tmp_path):
    tuned = samples_folder(tmp_path / "tuned", data.examples[:4], lambda *_: False)
    base = samples_folder(tmp_path / "base", data.examples[:4], lambda *_: False)
    pq.write_table(pa.Table.from_pylist(rows_of(base)[:-1]), base / "records.parquet")
    with pytest.raises(InputError, match="no image of prompt 3, seed 1"):
        score_samples(tuned, data, base=base, verify=False)


def test_what_the_base_copies_by_a_verified_match_was_not_memorized_by_the_fine_tune(data, tmp_path, monkeypatch):
    """Both models make a mirrored copy for prompt 2, the fine-tune alone one for prompt 3."""
    made = [samples_folder(tmp_path / name, data, lambda *_: False, seeds=(0,)) for name in ("tuned", "base")]
    both, one = "none/images/P00002-S0.png", "none/images/P00003-S0.png"

    def found(samples, image):
        return [laid(2)] if image == both else [laid(3)] if image == one and samples.folder.name == "tuned" else []
    monkeypatch.setattr(findings, "make_matcher", finder(found))
    report = score_samples(made[0], data, base=made[1]).base
    assert (report.copies, report.base_copies) == (2, 1)
    assert [p.prompt_index for p in report.prompts if p.became_memorized] == [3]
