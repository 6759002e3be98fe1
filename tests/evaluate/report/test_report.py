"""The report as a value: its fields, its JSON and the schema of that, its files, what a notebook shows."""
import json
from dataclasses import FrozenInstanceError, replace

import jsonschema
import pytest
from instruments import finder, laid, samples_folder, training_set

from rotescope.common.errors import InputError
from rotescope.evaluate.measurement import findings
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report.report import SCHEMA, SCHEMA_VERSION, report_schema

METHODS = {"none": {"before": 0.0, "transition": 1000}, "stp": {"before": 0.0, "transition": 600}}
HOSTILE = ("settings", "verdict", "groups", "label", "<script>alert(1)</script>")  # names of prompt groups


def copied(method, i, seed):
    return i % 3 == 0 and method == "none"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    """Plain guidance copies each third prompt; with held-out pictures, a base model, a sweep and a copy
    of a part, so that every section is there."""
    folder = tmp_path_factory.mktemp("report")
    samples = samples_folder(folder / "samples", data, copied, METHODS, ("duplicated", "control"))
    base = samples_folder(folder / "base", data, lambda *_: False)
    sweep = samples_folder(folder / "sweep", data.examples[:6], copied,
                           {"d600": {"before": 0.0, "transition": 600}})
    part = laid(5, (0.5, 0, 0, 0, 0.5, 0), 1.0, 0.25, points=(((0.1, 0.1), (0.2, 0.2)),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(findings, "make_matcher", finder({"stp/images/P00001-S0.png": [part]}))
        return score_samples(samples, data, training_set(folder / "held", seed=8), base=base, sweep=sweep)


@pytest.fixture(scope="module")
def odd(data, tmp_path_factory):
    """Prompt groups that bear the names of the report's own keys."""
    folder = samples_folder(tmp_path_factory.mktemp("odd") / "s", data, copied, METHODS, HOSTILE)
    return score_samples(folder, data, verify=False)


# ----- fields

def test_figures_are_reached_by_method_and_group(report):
    rate = report["none"]["duplicated"].copy_rate
    assert (rate.value, rate.n_images, rate.n_prompts) == (14 / 40, 40, 20)
    assert 0 < rate.low < rate.value < rate.high < 1
    assert report["none"].settings == METHODS["none"]
    assert (report.verdict.outcome, report.verdict.passed, report.verdict.rule) == ("failed", False,
                                                                                    "leaked_prompts>0")
    assert report.verdict.text == " ".join(report.verdict.reasons)
    assert [line[:2] for line in report.each_group()] == [
        (method, group) for method in METHODS for group in ("duplicated", "control")]
    with pytest.raises(FrozenInstanceError):
        report.title = "another"


def test_a_prompt_group_may_have_any_name(odd, tmp_path):
    """A group called `settings` once took the place of a method's settings."""
    assert list(odd["none"].groups) == list(HOSTILE)
    assert odd["none"].settings == METHODS["none"]
    found = odd.as_json()["methods"]["none"]
    assert found["settings"] == METHODS["none"]
    assert {name: group["n"] for name, group in found["groups"].items()} == dict.fromkeys(HOSTILE, 16)
    page = odd.save(tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in page


# ----- JSON

@pytest.mark.parametrize("which", ["report", "odd", "bare"])
def test_json_is_what_the_schema_says(which, request, data, tmp_path):
    if which == "bare":
        one = samples_folder(tmp_path / "s", data[:2], lambda *_: False)
        (one / "run.json").unlink()
        found = score_samples(one, data, verify=False, exact="none").as_json()
    else:
        found = request.getfixturevalue(which).as_json()
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    assert found["schema_version"] == SCHEMA_VERSION
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"verdict": found["verdict"] | {"outcome": None}}, schema)


def test_the_schema_in_the_package_is_that_of_the_types():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == report_schema(), \
        "run python -m rotescope.evaluate.report.report"


def test_json_keeps_six_digits_and_memory_keeps_all(report):
    rate = report["none"]["duplicated"].copy_rate
    found = report.as_json()["methods"]["none"]["groups"]["duplicated"]
    assert found["copy_rate_interval"] == [round(rate.low, 6), round(rate.high, 6)]
    assert found["copy_rate_interval"] != [rate.low, rate.high]
    assert "NaN" not in report.to_json()


# ----- files and notebooks

def test_save_writes_every_file_whole_or_none(report, tmp_path):
    page = report.save(tmp_path / "out", junit_xml="junit.xml", redact=True)
    assert page == tmp_path / "out/report.html"
    written = sorted(p.name for p in page.parent.iterdir())
    assert written == ["badge.svg", "junit.xml", "model_card.md", "pairs.parquet", "report.html", "report.json"]
    assert (tmp_path / "out/report.json").read_text(encoding="utf-8") == report.to_json()
    with pytest.raises(InputError, match="not empty"):
        report.save(tmp_path / "out")
    report.save(tmp_path / "out", overwrite=True, junit_xml=tmp_path / "elsewhere.xml")
    assert "junit.xml" not in {p.name for p in page.parent.iterdir()}
    assert (tmp_path / "elsewhere.xml").exists()


def test_a_notebook_shows_the_verdict_and_a_line_a_group(report, odd):
    shown = report._repr_html_()
    assert report.verdict.headline in shown
    assert shown.count("<tr>") == 1 + 4
    assert "14 of 40" in shown
    assert "<img" not in shown
    assert "<script" not in odd._repr_html_()
    assert "<script" not in replace(report, notes=("<script>",))._repr_html_()
    assert repr(report) == "<Report: failed by leaked_prompts>0; 160 images, none, stp>"
