"""What leaves the machine: no folder of it, and no picture that a report withholds."""
import base64
import json
import os
import re
import shutil

import pytest
import yaml
from huggingface_hub import RepoUrl
from instruments import JUDGED, leave
from training import config_of

from rotescope import cli
from rotescope.train.checkpoints import hub_upload
from rotescope.train.checkpoints.hub_upload import portable
from rotescope.train.engine.training import train_model


@pytest.mark.parametrize(("typed", "goes"), [
    ("../clients/acme/photos", "photos"), ("clients/acme/photos/", "photos"), ("./photos", "photos"),
    ("/srv/acme/photos", "photos"),
    ("photos", "photos"), ("..", "local"), ("../..", "local"), (".", "local"), ("~/photos", "photos"), ("../photos", "photos"),
    ("someone/pictures", "someone/pictures"), ("acme/here", "here"), ("", "")])
def test_of_a_path_only_the_last_name_goes_out(typed, goes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme/here").mkdir(parents=True)
    assert portable({"train_data": typed, "seed": typed}, ("train_data",)) == {"train_data": goes, "seed": typed}


def test_relative_paths_are_not_uploaded(base, images, tmp_path, monkeypatch):
    """Neither from the options, nor from where a run was resumed, nor from the parts' own configs."""
    monkeypatch.setattr(hub_upload, "create_repo", lambda name, **_: RepoUrl(f"https://huggingface.co/someone/{name}"))
    monkeypatch.setattr(hub_upload, "upload_folder", lambda folder_path, **_: shutil.copytree(folder_path, tmp_path / "sent"))
    shutil.copytree(images, tmp_path / "acme-secret/photos")
    shutil.copytree(base, tmp_path / "acme-secret/model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    config = config_of("../acme-secret/model", "../acme-secret/photos", "../acme-secret/runs/fine", max_train_steps=1,
                       cache_dir="../acme-secret/cache", push_to_hub=True)
    train_model(config, progress=False)
    sent = [p for p in (tmp_path / "sent").rglob("*") if p.is_file()]
    assert not [p.name for p in sent if b"acme-secret" in p.read_bytes()]
    options = yaml.safe_load((tmp_path / "sent/config.yaml").read_text())
    assert (options["train_data"], options["pretrained_model_name_or_path"], options["output_dir"], options["cache_dir"]) == (
        "photos", "model", "fine", "cache")
    assert json.loads((tmp_path / "sent/rotescope.json").read_text())["config"] == options


def test_a_redacted_audit_sets_apart_what_can_be_handed_on(base, images, tmp_path):
    argv = ["audit", "--model", base, "--train_data", images, "--base", "", "--seeds", "0", "--num_inference_steps", "1",
            "--device", "cpu", "--copy_threshold", "-1", "--max_prompts", "2", "--output_dir", tmp_path / "out", "--redact"]
    assert leave(cli.main, argv) in JUDGED
    shared = tmp_path / "out/to_share"
    assert sorted(os.listdir(shared)) == ["badge.svg", "model_card.md", "pairs.parquet", "report.html", "report.json"]
    assert json.loads((shared / "report.json").read_text())["verdict"]
    page = (shared / "report.html").read_text()
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)]
    assert not pictures  # all are copies at this threshold, and training images are withheld
    assert (tmp_path / "out/samples/records.parquet").exists()
