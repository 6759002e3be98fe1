"""What a pipeline reads: rules, exit codes, JUnit, pairs.parquet, the model card; and what --redact leaves out."""
import json
import os
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from instruments import leave, overridden, samples_folder, training_folder, training_set
from PIL import Image

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.wording import share
from rotescope.datasets.images.data_uri import data_uri
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate import score
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.options import ScoreConfig
from rotescope.evaluate.report.exports import junit, metadata, model_card, write_pairs
from rotescope.evaluate.report.html import render_report, write_report
from rotescope.evaluate.report.page_pictures import THUMBNAIL
from rotescope.evaluate.report.terminal import announce, show_and_judge
from rotescope.evaluate.verdict.rules import Rule, check_ids, parse_rules
from rotescope.evaluate.verdict.verdict import RuleOutcome

METHODS = {"none": {"before": 0.0, "transition": 1000}, "stp": {"before": 0.0, "transition": 600}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    """Plain guidance copies the first nine of forty prompts, STP the first two."""
    folder = samples_folder(tmp_path_factory.mktemp("made") / "s", data,
                            lambda method, i, seed: i < (9 if method == "none" else 2), METHODS)
    return score_samples(folder, data, verify=False)


# ----- rules

def test_a_rule_on_images_is_broken_by_a_copy_of_one(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < (9 if method == "none" else 2), METHODS, seeds=(0,))
    ids = [e.image_id for e in data]

    def outcomes(*rules):
        verdict = score_samples(folder, data, rule=rules, verify=False).verdict
        return [r.outcome for r in verdict.rules], verdict.outcome
    assert outcomes(f"any_copies_of:{ids[30]},{ids[8]}") == (["failed"], "failed")
    assert outcomes(f"any_copies_of:{ids[30]}") == (["passed"], "undecided")  # without geometry planted copies are missed
    assert outcomes(f"stp:any_copies_of:{ids[8]}", "copies>100") == (["passed", "passed"], "undecided")
    assert outcomes("copies>100", f"stp:any_copies_of:{ids[1]}") == (["passed", "failed"], "failed")
    (tmp_path / "ids.txt").write_text(f"{ids[30]}\n{ids[3]}\n")
    assert outcomes(f"any_copies_of:@{tmp_path / 'ids.txt'}") == (["failed"], "failed")
    with pytest.raises(InputError, match="nobody is no image_id"):
        score_samples(folder, data, rule="any_copies_of:nobody")
    with pytest.raises(InputError, match="cannot be read"):
        Rule.parse("any_copies_of:@nowhere")


def test_a_twin_goes_by_either_id(data, tmp_path):
    twin = replace(data[0], image_id=data[0].image_id + "-2")
    folder = samples_folder(tmp_path / "s", [data[0]], lambda *_: True)
    report = score_samples(folder, Manifest((*data.examples, twin)), rule=f"any_copies_of:{twin.image_id}", verify=False)
    assert report.verdict.passed is False


def test_a_rule_on_an_image_sees_its_copy_though_its_twin_in_other_bytes_is_nearer(tmp_path):
    train = training_folder(tmp_path / "train")
    Image.open(train / "003.png").save(tmp_path / "train/again.jpg", quality=90)
    data, again = load_source(train, need_captions=False), Image.open(tmp_path / "train/again.jpg")
    (tmp_path / "made").mkdir()
    again.save(tmp_path / "made/copy.png")  # nearest to the JPEG, to the pixel
    by_name = {Path(e.file).name: e.image_id for e in data}

    def passed(*names, **how):
        rule = f"any_copies_of:{','.join(by_name[name] for name in names)}"
        return score_samples(tmp_path / "made", data, rule=rule, verify=False, **how).verdict.rules[0].outcome == "passed"
    assert passed("003.png") is False
    assert passed("again.jpg") is False
    assert passed("003.png", copy_threshold=1.0) is False  # by the exact layer alone
    assert passed("003.png", exact="none", index_dir=str(tmp_path / "index")) is False
    assert passed("004.png", "005.png") is True
    assert passed("003.png", copy_threshold=1.0, exact="none") is True


def test_rules_read_as_written():
    texts = ("copy_rate>0.01", "stp:copies>3", "any_copies_of:a,b", "og-stp:any_copies_of:c")
    assert tuple(map(str, parse_rules(texts))) == texts
    assert [str(r) for r in parse_rules(())] == ["leaked_prompts>0"]
    check_ids(parse_rules("any_copies_of:a"), {"a"})


# ----- files

def test_score_leaves_every_file_and_the_exit_code(tmp_path, capsys):
    train = training_folder(tmp_path / "train")
    data = load_source(train)
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 3, seeds=(0,))
    argv = ["--generated", folder, "--train_data", train, "--output_dir", tmp_path / "out", "--verify", "false",
            "--junit_xml", tmp_path / "tests/junit.xml", "--redact",
            "--fail_on", "copies>10", f"any_copies_of:{data[2].image_id}"]
    with pytest.raises(SystemExit) as left:
        score.main([str(a) for a in argv])
    assert left.value.code == 1
    said = capsys.readouterr()
    assert [r["outcome"] for r in json.loads(said.out)["verdict"]["rules"]] == ["passed", "failed"]
    first, second = said.err.splitlines()[:2]
    assert first == "rule, fixed before the run: fail if copies>10"
    assert second.endswith(f"any_copies_of:{data[2].image_id}")
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["badge.svg", "model_card.md", "pairs.parquet", "report.html", "report.json"]
    assert ET.parse(tmp_path / "tests/junit.xml").getroot().tag == "testsuites"
    assert "left out" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    table = pq.read_table(tmp_path / "out/pairs.parquet")
    pairs = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["pairs"]
    assert table.to_pylist() == pairs
    assert table.schema.metadata[b"descriptor"] == b"pixels-32-centred-fp32"


@pytest.fixture
def argv(tmp_path):
    train = training_folder(tmp_path / "train", 4)
    folder = samples_folder(tmp_path / "s", load_source(train), lambda *_: False, seeds=(0,))
    return ["--generated", folder, "--train_data", train, "--output_dir", tmp_path / "out", "--verify", "false"]


def test_what_is_to_lie_in_the_output_ends_up_there(argv, tmp_path):
    assert leave(score.main, [*argv, "--junit_xml", tmp_path / "out/tests/junit.xml"]) == 4  # so few images are no verdict
    assert leave(score.main, [*argv, "--overwrite", "--junit_xml", tmp_path / "out/junit.xml"]) == 4
    assert ET.parse(tmp_path / "out/junit.xml").getroot().tag == "testsuites"
    assert not (tmp_path / "out/tests").exists()


@pytest.mark.parametrize(("given", "said"), [
    (["--junit_xml", "s"], "is a folder"), (["--junit_xml", "out"], "is a folder"),
    (["--junit_xml", "out/report.json"], "a part of"), (["--junit_xml", "s/run.json/junit.xml"], "cannot be written"),
    (["--index_dir", "out/index"], "name a folder beside"),
    (["--output_dir", "train", "--overwrite"], "is read"), (["--output_dir", "s", "--overwrite"], "is read"),
    (["--sweep", "x/s", "--output_dir", "x", "--overwrite"], "is read"),
    (["--descriptor", "sscd:x/s", "--output_dir", "x"], "is read"),
    (["--train_data", "m.parquet", "--output_dir", "train", "--overwrite"], ".png is read"),
])
def test_what_could_not_be_left_or_would_be_replaced_is_refused_before_anything_is_measured(
        given, said, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rotescope.evaluate.measurement.evaluation.score_samples", lambda *_, **__: pytest.fail("measured"))
    shutil.copytree("s", "x/s")
    load_source("train").save("m.parquet")
    there = sorted(tmp_path.rglob("*"))
    assert leave(score.main, overridden(argv, given)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(("outcome", "code"), [("failed", 1), ("passed", 0), ("undecided", 4)])
def test_a_pipe_that_closed_early_does_not_change_the_judgement(outcome, code, report, monkeypatch):
    """As in `rotescope score … 2>&1 | head -c 100`."""
    reader, writer = os.pipe()
    os.close(reader)
    judged = replace(report, verdict=replace(report.verdict, outcome=outcome))
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        patched.setattr(sys, "stderr", closed)

        def main(argv):
            announce(parse_rules("copies>0"), ScoreConfig(generated="s", train_data="train", output_dir="out"))
            show_and_judge(judged, "out")
        assert leave(exit_cleanly(main), []) == code


@pytest.mark.parametrize(("images", "told"), [(400, True), (399, False)])
def test_a_rule_that_chance_breaks_in_so_many_images_is_announced(images, told, capsys):
    config = ScoreConfig(generated="s", train_data="train", output_dir="out", copy_quantile=0.99)
    announce(parse_rules("copies>4"), config, images)
    assert ("copies>4 breaks by chance" in capsys.readouterr().err) == told


def test_junit_has_a_case_for_each_prompt_and_rule(report):
    root = ET.fromstring(junit(report))
    suites = {s.get("name"): s for s in root}
    assert {name: (s.get("tests"), s.get("failures"), s.get("skipped")) for name, s in suites.items()} == {
        "rules": ("1", "1", "0"), "controls": ("5", "0", "2"),
        "none": ("40", "9", "0"), "stp": ("40", "0", "2")}  # the rule is on plain guidance
    assert all(len(s) == int(s.get("tests")) for s in root)
    message = suites["none"][0].find("failure").get("message")
    assert message.startswith("2 of 2 images copy a training image; highest similarity 1.000, threshold 0.")
    assert suites["none"][0].get("name") == report.prompts[0].prompt


def test_junit_skips_what_is_undecided(report):
    """A rule that holds where a control does not pass it, and the control itself."""
    held = replace(report.verdict, outcome="undecided", rules=(RuleOutcome("copies>99", "passed"),))
    root = ET.fromstring(junit(replace(report, verdict=held)))
    rule, = root.find("testsuite[@name='rules']")
    assert rule.find("skipped").get("message") == f"undecided: {report.verdict.headline}"
    told = {case.get("name"): case.find("skipped") for case in root.find("testsuite[@name='controls']")}
    assert {name: node is None for name, node in told.items()} == {
        c.name: c.outcome == "passed" for c in report.verdict.controls}
    assert told["a planted copy is found"].get("message").startswith("undecided: Of ")


def test_junit_takes_any_caption(report):
    prompt = replace(report.prompts[0], prompt="\x00</testcase> & \ud800 🙂 \x1b " + 10_000 * "x")
    hostile = replace(report, prompts=(prompt,))
    case = ET.fromstring(junit(hostile)).find("testsuite[@name='none']/testcase")
    assert case.get("name").startswith("�</testcase> & � 🙂 �")
    assert len(case.get("name")) == 500


def test_model_card_carries_evaluation_results(report):
    from huggingface_hub import ModelCard
    results = ModelCard(model_card(report)).data.eval_results
    rates = {r.dataset_config.rpartition(", ")[2]: r.metric_value for r in results if r.metric_type == "copy_rate"}
    assert rates == {"none": 18 / 80, "stp": 4 / 80}
    assert len(results) == 4
    assert yaml.safe_load(metadata(report))["model-index"][0]["results"][0]["task"]["type"] == "text-to-image"
    text = model_card(report)
    assert f"| plain guidance | all prompts | 18 of 80 | {share(report['none']['ungrouped'].copy_rate)} |" in text
    assert all(f"- *{c.name}* ({c.outcome}): {c.sentence}" in text for c in report.verdict.controls)
    assert report.verdict.headline in text


def test_redaction_hides_training_images_and_their_copies(report, data):
    open_page, hidden_page = render_report(report), render_report(report, redact=True)
    assert open_page.count("<img") > hidden_page.count("<img") > 0
    assert data_uri(data[0].open(), THUMBNAIL) in open_page
    assert not [e.image_id for e in data if data_uri(e.open(), THUMBNAIL) in hidden_page]  # the instrument's copies are exact
    assert data[0].captions[0] in hidden_page


def test_any_file_name_goes_through(data, tmp_path):
    made = os.fsencode(tmp_path / "made")
    os.mkdir(made)
    names = [b"a 'quoted' \"name\".png", b"caf\xe9 \xff.png", "🙂 <b>.png".encode()]
    for name, example in zip(names, data, strict=False):
        with open(os.path.join(made, name), "wb") as stream:
            example.open().save(stream, "PNG")
    report = score_samples(tmp_path / "made", data, verify=False)
    write_report(report, tmp_path / "out")
    write_pairs(report, tmp_path / "out/pairs.parquet")
    assert {p["image"] for p in report.as_json()["pairs"]} == {"a 'quoted' \"name\".png", "caf\\udce9 \\udcff.png", "🙂 <b>.png"}
    assert ET.fromstring(junit(report)).find("testsuite[@name='none']").get("failures") == "3"
    assert "🙂 &lt;b&gt;.png" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
