"""The audit from end to end: generators whose copies are known, the base model beside the fine-tune, the index command."""
import errno
import json
import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruments import JUDGED, leave, overridden, rows_of, samples_folder, training_folder
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tiny import image_folder, saved_pipeline, tiny_pipeline

from rotescope.commands import audit as audit_command
from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.readers.sources import load_source, read_source
from rotescope.evaluate import index_images as indexing
from rotescope.evaluate import score
from rotescope.evaluate.measurement.evaluation import score_folder
from rotescope.evaluate.neighbours.index_folder import shard_of
from rotescope.evaluate.options import ScoreConfig
from rotescope.mitigate.budget import budgeted_sampling as planned
from rotescope.mitigate.sampling.sampler import RECORD_SCHEMA
from rotescope.procedures import audit


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("lora")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


@pytest.mark.parametrize("k", [0, 13, pytest.param(40, marks=pytest.mark.slow)])
def test_a_generator_that_copies_k_of_n_prompts_through_the_whole_audit(model, tmp_path, monkeypatch, k):
    """Only the sampler is replaced: by one that never, sometimes or always copies."""
    train = training_folder(tmp_path / "train", 40)
    data = load_source(train)

    monkeypatch.setattr(audit, "sample_with", copying_sampler(data, k))
    held = training_folder(tmp_path / "held", 60, 8)
    argv = ["--model", model, "--train_data", train, "--heldout_data", held, "--seeds", "0", "1",
            "--output_dir", tmp_path / "out", "--fail_on", "copies>0", "--device", "cpu", "--verify", "false"]
    assert leave(audit_command.main, argv) == (1 if k else 4)  # without geometry planted copies are missed
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    cell = report["methods"]["none"]["groups"]["ungrouped"]
    assert (cell["copies"], cell["n"], cell["copy_rate"], cell["prompts_copied"]) == (2 * k, 80, k / 40, k)
    assert {p["expected"] for p in report["prompts"] if p["copies"]} == {e.image_id for e in data.examples[:k]}
    assert all((p["p"] < 1e-4) == bool(p["copies"]) for p in report["prompts"])


def pictures(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(Path(folder).rglob("*.png"))}


def test_the_base_of_a_lora_is_the_pipeline_with_its_adapter_off(model, lora, tmp_path):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--train_data", train, "--seeds", "3", "--num_inference_steps", "2", "--device", "cpu",
            "--mitigation", "none", "og-stp", "--verify", "false"]
    assert leave(audit_command.main, [*argv, "--lora", lora, "--base", "auto", "--output_dir", tmp_path / "lora"]) == 4
    assert leave(audit_command.main, [*argv, "--output_dir", tmp_path / "plain", "--base", model]) == 4
    base, plain, tuned = (pictures(tmp_path / part) for part in ("lora/base", "plain/samples/none", "lora/samples/none"))
    assert list(base) == list(plain) == list(tuned)
    assert all(np.array_equal(base[name], plain[name]) for name in plain)
    assert not all(np.array_equal(base[name], tuned[name]) for name in tuned)
    report = json.loads((tmp_path / "lora/report.json").read_text(encoding="utf-8"))
    assert report["base"]["n"] == 4
    assert report["background"]["base"]["n"] == 4
    attached = {c["name"]: c for c in report["verdict"]["controls"]}["attached"]
    assert (attached["outcome"], attached["figure"] > 1e-3) == ("passed", True)
    told = json.loads((tmp_path / "plain/report.json").read_text(encoding="utf-8"))
    assert told["verdict"]["controls"][0]["sentence"].startswith("All 4 images are the base model's to the bit")
    same = told["base"]
    assert all(p["difference"] == 0 for p in same["prompts"])
    assert (same["became_memorized"], same["p"]) == (0, 1)


def test_a_base_that_cannot_be_told_is_asked_for(model, tmp_path, capsys):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--train_data", train, "--output_dir", tmp_path / "out", "--device", "cpu", "--base"]
    assert leave(audit_command.main, [*argv, "auto"]) == 2
    assert "does not say what it was fine-tuned from" in capsys.readouterr().err
    assert leave(audit_command.main, [*argv, tmp_path / "nowhere"]) == 2
    assert not (tmp_path / "out").exists()


# ----- the re-trigger check

def copying_sampler(data, k):
    """Of every prompt's images, those of the first k of `data` are copies."""
    def sample(config, pipe, prompts, policies, folder, seeds):
        samples_folder(folder, data, lambda method, i, seed: i < k, {name: asdict(p) for name, p in policies.items()},
                       seeds=config.seeds)
    return sample


def test_what_was_copied_most_is_sought_again(model, tmp_path, monkeypatch):
    """Only the audit's sampler is replaced; the search and its samples are real."""
    data = load_source(training_folder(tmp_path / "train", 20))
    monkeypatch.setattr(audit, "sample_with", copying_sampler(data, 2))
    held = training_folder(tmp_path / "held", 6, 8)
    for i, file in enumerate(sorted(held.glob("*.txt"))):
        file.write_text(f"a picture {i} that no model saw")
    argv = ["--model", model, "--train_data", tmp_path / "train", "--heldout_data", held, "--seeds", "0", "--verify", "false",
            "--mitigation", "og-stp", "--num_inference_steps", "2", "--device", "cpu", "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, [*argv, "--retrigger", "1"]) in JUDGED
    found = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["retrigger"]
    alone = json.loads((tmp_path / "out/retrigger/retrigger.json").read_text(encoding="utf-8"))
    sought, = (i["image_id"] for i in alone["images"] if i["group"] == "training")
    assert sought in {e.image_id for e in data.examples[:2]}
    assert list(found["results"]) == ["none", "og-stp"]
    assert found["results"]["og-stp"]["heldout"]["embedding"]["images"] == found["images"] == 1
    assert {key: alone[key] for key in found if key != "images"} == {k: v for k, v in found.items() if k != "images"}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Suppressed, or erased?" in page
    assert found["conclusions"][0][:40] in page
    assert found["conclusions"][0] in (tmp_path / "out/model_card.md").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (alone["copy_threshold"], alone["threshold_rule"]) == (
        pytest.approx(report["copy_threshold"], abs=1e-6), report["threshold_rule"])


def test_where_nothing_was_copied_nothing_is_sought(model, tmp_path, monkeypatch):
    data = load_source(training_folder(tmp_path / "train", 20))
    monkeypatch.setattr(audit, "sample_with", copying_sampler(data, 0))
    argv = ["--model", model, "--train_data", tmp_path / "train", "--seeds", "0", "--verify", "false", "--device", "cpu",
            "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, [*argv, "--retrigger", "3"]) in JUDGED
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["retrigger"] == {"images": 0}
    assert not (tmp_path / "out/retrigger").exists()
    assert leave(audit_command.main, [*argv, "--overwrite", "--retrigger", "-1"]) == 2


def test_a_failed_search_does_not_cost_the_audit(model, tmp_path, monkeypatch):
    data = load_source(training_folder(tmp_path / "train", 20))
    monkeypatch.setattr(audit, "sample_with", copying_sampler(data, 2))
    argv = ["--model", model, "--train_data", tmp_path / "train", "--heldout_data", tmp_path / "train", "--seeds", "0",
            "--verify", "false", "--device", "cpu", "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, [*argv, "--retrigger", "2"]) in JUDGED
    assert "name others" in json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["retrigger"]["failed"]
    assert "The re-trigger check failed" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


# ----- what fails, and when

def alone(folder):
    """One picture, twice."""
    image_folder(folder, n=1)
    for suffix in (".png", ".txt"):
        shutil.copy(folder / f"0{suffix}", folder / f"1{suffix}")
    return folder


@pytest.mark.parametrize(("given", "said"), [
    (["--train_data", "alone"], "at least two different training images"),
    (["--copy_null", "heldout", "--heldout_data", "train"], "needs --heldout_data"),
    (["--prompt_sets", "empty", "--fail_on", "own_copy_rate>0.5"], "no prompt names its training image"),
    (["--plan", "ranked", "--budget", "9", "--detector", "magnitude:n=1", "--fail_on", "stp:copies>0"], "was not sampled"),
    (["--junit_xml", "train"], "is a folder"), (["--output_dir", "train", "--overwrite"], "is read"),
])
def test_wrong_input_is_found_before_the_model_is_loaded(given, said, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "open_model", lambda *_: pytest.fail("loaded"))
    image_folder(tmp_path / "train", n=4)
    alone(tmp_path / "alone")
    argv = ["--model", model, "--train_data", "train", "--output_dir", "out", "--device", "cpu"]
    assert leave(audit_command.main, overridden(argv, given)) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("error", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 3), (KeyboardInterrupt(), 130)])
def test_samples_outlive_what_fails_after_them(error, code, model, tmp_path, monkeypatch, capsys):
    """Only the sampler and what fails are replaced; what is printed goes on, and comes to the same figures."""
    data = load_source(training_folder(tmp_path / "train", 20))
    monkeypatch.setattr(audit, "sample_with", copying_sampler(data, 2))
    (tmp_path / "my out.samples").mkdir()
    argv = ["--model", model, "--train_data", tmp_path / "train", "--base", model, "--seeds", "0", "--verify", "false",
            "--device", "cpu", "--title", "A 'title'", "--fail_on", "copies>1"]

    def fail(*_):
        raise error
    with monkeypatch.context() as patched:
        patched.setattr(audit, "write_all", fail)
        assert leave(audit_command.main, [*argv, "--output_dir", tmp_path / "my out"]) == code
    *_, kept, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    words = shlex.split(kept.partition("go on with: ")[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my out.base-2", "my out.samples", "my out.samples-2", "train"]
    assert words[:6] == ["rotescope", "score", "--generated", f"{tmp_path}/my out.samples-2", "--base_generated",
                         f"{tmp_path}/my out.base-2"]
    if code == 130:  # the same words, and the same samples
        return
    assert leave(score.main, words[2:]) == leave(audit_command.main, [*argv, "--output_dir", tmp_path / "whole"]) == 1
    one, other = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("my out", "whole"))
    assert all(one[key] == other[key] for key in one.keys() - {"created", "config", "hashes"})


# ----- prompt sets and plans

def test_prompt_sets_are_groups_of_the_report(model, tmp_path):
    train, held = image_folder(tmp_path / "train", n=4), image_folder(tmp_path / "held", n=10)
    (tmp_path / "own.txt").write_text("a dog\na cow\n")
    argv = ["--model", model, "--train_data", train, "--heldout_data", held, "--prompt_sets", "captions", "heldout", "empty",
            "--prompts", tmp_path / "own.txt", "--max_prompts", "3", "--empty_images", "5", "--seeds", "0", "1",
            "--device", "cpu", "--num_inference_steps", "1", "--verify", "false", "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, argv) in JUDGED
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    cells = report["methods"]["none"]["groups"]
    assert [(group, cell["n"], cell["n_prompts"]) for group, cell in cells.items()] == [
        ("captions", 6, 3), ("heldout", 6, 3), ("empty", 5, 1), ("file", 4, 2)]
    assert report["prompt_sets"] == {"captions": {"prompts": 4, "sampled": 3}, "heldout": {"prompts": 6, "sampled": 3},
                                     "empty": {"prompts": 1, "sampled": 1}, "file": {"prompts": 2, "sampled": 2}}
    assert report["plan"] is None
    assert {p["prompt"] for p in report["pairs"] if p["group"] == "heldout"} == {
        "a crown on a red background", "a gift on a red background", "a rocket on a red background"}
    assert {p["seed"] for p in report["pairs"] if p["group"] == "empty"} == {0, 1, 2, 3, 4}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Held-out captions · 3 of 6 prompts" in page
    assert "The empty prompt<" in page


def test_a_ranked_plan_finds_the_prompts_that_leak(model, tmp_path, monkeypatch):
    """Twenty prompts whose scores fall with their number; 2, 3 and 5 give their training image every time. Only the scores and
    the images are replaced. Of 24 images the scores cost 20 × 2 / 4 = 10, so the rounds are of 8, 4 and 2."""
    train = training_folder(tmp_path / "train", 20)
    data = load_source(train)

    def scores(pipe, prompts, detector, **_):
        return iter([-float(i) for i in range(len(prompts))])

    def shard(pipe, prompts, method, policy, batch, file, folder, settings):
        part = samples_folder(file.with_suffix(".d"), data, lambda m, i, seed: i in (2, 3, 5), {method: {}}, seeds=(0, 1, 2))
        rows = {(r["prompt_index"], r["seed"]): r for r in rows_of(part)}
        (folder / method / "images").mkdir(parents=True, exist_ok=True)
        for i, seed, _ in batch:
            (part / rows[i, seed]["image"]).rename(folder / rows[i, seed]["image"])
        pq.write_table(pa.Table.from_pylist([rows[i, seed] for i, seed, _ in batch], RECORD_SCHEMA), file)
    monkeypatch.setattr(planned, "score_prompts", scores)
    monkeypatch.setattr(planned, "write_shard", shard)
    argv = ["--model", model, "--train_data", train, "--seeds", "0", "1", "2", "--num_inference_steps", "2", "--device", "cpu",
            "--plan", "ranked", "--detector", "magnitude:n=1", "--verify", "false", "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, [*argv, "--budget", "24"]) in JUDGED
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    plan = report["plan"]
    assert {k: plan[k] for k in ("name", "score_images", "images", "prompts", "sampled", "rounds")} == {
        "name": "ranked", "score_images": 10.0, "images": 14, "prompts": 20, "sampled": 8, "rounds": [8, 4, 2]}
    assert [p["images"] for p in plan["ranking"]] == [2, 2, 3, 3, 1, 1, 1, 1] + 12 * [0]
    cell = report["methods"]["none"]["groups"]["ungrouped"]
    assert (cell["n"], cell["copies"], cell["prompts_copied"]) == (14, 7, 3)
    verdict = report["verdict"]
    assert (verdict["rule"], verdict["outcome"]) == ("leaked_prompts>0", "failed")
    assert "3 prompts were found leaking among 8 sampled of 20" in verdict["text"]
    assert "say nothing of the prompts that were not sampled" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_ranked_plan_on_a_real_model_gives_the_images_of_a_plain_run(model, lora, tmp_path):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--lora", lora, "--base", "auto", "--train_data", train, "--seeds", "3", "4", "5",
            "--device", "cpu", "--num_inference_steps", "2", "--mitigation", "none", "og-stp", "--verify", "false"]
    ranked = [*argv, "--plan", "ranked", "--detector", "magnitude:n=1", "--budget", "9", "--batch_size", "3"]
    assert leave(audit_command.main, [*ranked, "--output_dir", tmp_path / "one"]) in JUDGED
    assert leave(audit_command.main, [*argv, "--output_dir", tmp_path / "all"]) in JUDGED
    for part in ("samples/none", "samples/og-stp", "base/none"):
        one, everything = pictures(tmp_path / "one" / part), pictures(tmp_path / "all" / part)
        assert (len(one), len(everything)) == (7, 12)  # 9 less 4 × 2 / 4 for the scores
        assert max(np.abs(one[name].astype(int) - everything[name]).max() for name in one) <= 1
    report = json.loads((tmp_path / "one/report.json").read_text(encoding="utf-8"))
    assert {m: found["groups"]["ungrouped"]["n"] for m, found in report["methods"].items()} == {"none": 7, "og-stp": 7}
    assert (report["plan"]["rounds"], report["base"]["n"]) == ([4, 2, 1], 4)
    assert [p["rank"] for p in report["plan"]["ranking"]] == [1, 2, 3, 4]


def test_a_budget_alone_samples_at_random(model, tmp_path):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--train_data", train, "--seeds", "3", "4", "--device", "cpu", "--num_inference_steps", "1",
            "--verify", "false", "--budget", "3", "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, argv) in JUDGED
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert [p["images"] for p in report["plan"]["ranking"]].count(1) == report["methods"]["none"]["groups"]["ungrouped"]["n"] == 3
    assert "3 of 4 prompts were sampled, drawn at random" in report["verdict"]["text"]


@pytest.mark.parametrize(("given", "message"), [
    (["--plan", "best"], "take uniform or ranked"), (["--plan", "ranked"], "needs a --budget"),
    (["--plan", "ranked", "--budget", "23", "--detector", "magnitude:n=8", "--num_inference_steps", "2"], "cost as much as 24"),
    (["--plan", "ranked", "--budget", "99", "--detector", "sale"], "did you mean 'sail'"), (["--budget", "0"], "samples nothing"),
    (["--plan", "ranked", "--budget", "99", "--fail_on", "copy_rate>0.5"], "needs a random sample"),
    (["--plan", "ranked", "--budget", "9", "--prompt_sets", "empty"], "these belong to none"),
    (["--empty_images", "0"], "must be 1 or more"), (["--prompt_sets", "heldout"], "needs captions"),
    (["--prompts", "gone.txt"], "no prompts file"),
])
def test_a_plan_that_cannot_be_followed_is_refused(given, message, model, images, tmp_path, capsys):
    argv = ["--model", model, "--train_data", images, "--output_dir", tmp_path / "out", "--device", "cpu"]
    assert leave(audit_command.main, [*argv, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_of_odd_names_go_through(model, tmp_path):
    odd = tmp_path / os.fsdecode(b"tr\xff \xe9")
    image_folder(odd / "train", n=4)
    argv = ["--model", model, "--train_data", odd / "train", "--output_dir", odd / "out", "--seeds", "3", "--device", "cpu",
            "--num_inference_steps", "1", "--verify", "false", "--junit_xml", odd / "out/junit.xml"]
    assert leave(audit_command.main, argv) in JUDGED
    argv = ["--generated", odd / "out/samples", "--train_data", odd / "train", "--output_dir", odd / "again", "--verify", "false"]
    assert leave(score.main, argv) in JUDGED
    one, other = (json.loads((odd / name / "report.json").read_text(encoding="utf-8")) for name in ("out", "again"))
    assert one["methods"] == other["methods"]
    assert (odd / "out/junit.xml").exists()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


def frames():
    return {"save_all": True, "append_images": [Image.new("RGB", (64, 64), "red")]}


KINDS = {  # name -> what it makes of a picture, how it is saved; None: as nothing at all
    "bomb.png": (lambda picture: Image.new("1", (10_000, 9_000)), dict), "empty.png": None,
    "animated.gif": (lambda picture: picture, frames), "turned.jpg": (lambda picture: picture, turned),
    "four.jpg": (lambda picture: picture.convert("CMYK"), dict),
    "deep.png": (lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), dict)}


def with_kinds(folder, names, number=0):
    """A picture of each kind more, with a caption -> the folder."""
    for name, picture in zip(names, (s.image for s in scenes(9, 70 + number)), strict=False):
        (folder / name).with_suffix(".txt").write_text(f"a {name}")
        if KINDS[name]:
            make, options = KINDS[name]
            make(picture).save(folder / name, **options())
        else:
            (folder / name).touch()
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_score_takes_or_leaves_out_every_kind_of_image(name, tmp_path):
    for i, part in enumerate(("train", "held", "made")):
        with_kinds(training_folder(tmp_path / part, 3, 7 + i), [name], i % 2)
    report = score_folder(ScoreConfig(generated=str(tmp_path / "made"), train_data=str(tmp_path / "train"), verify=False,
                                      heldout_data=str(tmp_path / "held"), output_dir=str(tmp_path / "out")))
    bad = name in ("bomb.png", "empty.png")
    assert [(item.of, Path(item.name).name) for item in report.left_out] == [
        (of, name) for of in ("training", "held-out", "generated") if bad]
    assert (report.training_images.unique, report.background.heldout.n) == ((3, 3) if bad else (4, 4))
    assert {p.image: p.similarity for p in report.pairs}.get(name) == (None if bad else pytest.approx(1, abs=1e-3))


def test_an_audit_takes_or_leaves_out_every_kind_of_image(model, tmp_path, monkeypatch):
    """Only the sampler is replaced, by one that copies every picture that can be read."""
    train = with_kinds(training_folder(tmp_path / "train", 3), KINDS)
    monkeypatch.setattr(audit, "sample_with", copying_sampler(read_source(train).manifest, 9))
    argv = ["--model", model, "--train_data", train, "--seeds", "0", "--verify", "false", "--device", "cpu",
            "--output_dir", tmp_path / "out"]
    assert leave(audit_command.main, argv) in JUDGED
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert {Path(item["name"]).name for item in report["left_out"]} == {"bomb.png", "empty.png"}
    cell = report["methods"]["none"]["groups"]["ungrouped"]
    assert cell["own_copy_rate"] == cell["copy_rate"] == 1
    assert cell["n"] == 7


# ----- the index command

def test_index_embeds_in_shards_and_merges(tmp_path, capsys):
    train = training_folder(tmp_path / "train", 12)
    for i in (1, 2, 3):
        assert leave(indexing.main, ["--train_data", train, "--shard", f"{i}/3", "--index_dir", tmp_path / f"s{i}"]) == 0
    shards = [tmp_path / f"s{i}" for i in (1, 2, 3)]
    assert leave(indexing.main, ["--merge", *shards, "--index_dir", tmp_path / "all"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"] == 12
    before = (tmp_path / "all/keys.bin").read_bytes()
    assert leave(indexing.main, ["--train_data", train, "--index_dir", tmp_path / "all"]) == 0
    assert (tmp_path / "all/keys.bin").read_bytes() == before  # nothing was left to embed


@pytest.mark.parametrize("text", ["0/4", "5/4", "1-4", "a"])
def test_a_shard_that_cannot_be_read_is_refused(text):
    with pytest.raises(InputError, match="cannot read the shard"):
        shard_of(text)
