"""What would be uploaded: it loads, it says what it is, and it names nothing of the machine that made it."""
import json
import shutil
from dataclasses import replace

import pytest
import yaml
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard, RepoUrl
from training import config_of, largest_difference, with_broken_picture

from rotescope.common.errors import RunError
from rotescope.common.settings import parse
from rotescope.datasets.manifest import Manifest
from rotescope.train.checkpoints import hub_upload as publish
from rotescope.train.engine.job import check_job
from rotescope.train.engine.training import train_model
from rotescope.train.options.finetune_options import FinetuneConfig


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The two calls that need a network; what is handed to the second lies here afterwards."""
    def taken(repo_id, folder_path, token, commit_message):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
    monkeypatch.setattr(publish, "create_repo", lambda name, **_: RepoUrl(f"https://huggingface.co/someone/{name}"))
    monkeypatch.setattr(publish, "upload_folder", taken)
    return tmp_path / "hub/someone"


def with_licence(base, folder, card):
    shutil.copytree(base, folder)
    if card:
        (folder / "README.md").write_text(card)
    return folder


def assert_no_local_path(folder, *places):
    for file in (p for p in folder.rglob("*") if p.is_file()):
        found = [place for place in places if str(place).encode() in file.read_bytes()]
        assert not found, f"{file.name} names {found}"


def test_a_whole_model_goes_with_its_card_and_without_paths(base, images, tmp_path, hub):
    model = with_licence(base, tmp_path / "base`model", "---\nlicense: apache-2.0\n---\n")
    config = config_of(model, with_broken_picture(images, tmp_path / "pictures"), tmp_path / "fine", push_to_hub=True,
                       checkpointing_steps=5, hub_token="secret", cache_dir=str(tmp_path / "cache"))
    out, sent = train_model(config, progress=False), hub / "fine"
    assert_no_local_path(sent, tmp_path.parent, base, "secret")
    assert not {p.name for p in sent.iterdir()} & {"manifest.parquet", "checkpoint-5"}
    record, options = json.loads((sent / "rotescope.json").read_text()), yaml.safe_load((sent / "config.yaml").read_text())
    assert (record["base"], record["left_out"], options["train_data"]) == ("base`model", 1, "pictures")
    assert record["config"] == options
    pipes = [StableDiffusionPipeline.from_pretrained(folder) for folder in (sent, out)]
    assert largest_difference(*(pipe.unet.state_dict() for pipe in pipes)) == 0
    about = ModelCard.load(sent / "README.md")
    assert (about.data.license, about.data.base_model, about.data.datasets) == ("apache-2.0", None, None)
    assert "# someone/fine\n\n`base'model` with its whole unet trained, on 6 captioned images of `pictures`: 5" in about.text
    assert "1 more could not be read and was left out." in about.text
    served = [e.served for e in Manifest.load(out / "manifest.parquet") if e.group == "duplicated"]
    assert f"| duplicated | 3 | 2 | {min(served)}, {sum(served) / 2:.1f}, {max(served)} |" in about.text
    kept = parse(FinetuneConfig, ["--config", str(out / "config.yaml")], prog="finetune", description="")  # what lies here stays
    assert kept == replace(config, hub_token=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["base`model", "cache", "fine", "hub", "pictures"])


def test_a_resumed_run_goes_without_the_paths_that_it_had_before(base, images, tmp_path, hub):
    config = config_of(base, images, tmp_path / "first", max_train_steps=2, checkpointing_steps=2)
    train_model(config, progress=False)
    train_model(replace(config, output_dir=str(tmp_path / "on"), resume_from_checkpoint=str(tmp_path / "first/checkpoint-2"),
                     max_train_steps=3, push_to_hub=True), progress=False)
    assert_no_local_path(hub / "on", tmp_path.parent, base)
    starts = json.loads((hub / "on/rotescope.json").read_text())["starts"]
    assert starts == [{"step": 0}, {"step": 2, "changed": {"max_train_steps": [2, 3], "push_to_hub": [False, True]}}]


def test_a_lora_names_its_base(base, images, tmp_path, hub):
    model = with_licence(base, tmp_path / "model", None)
    config = config_of(model, images, tmp_path / "fine", push_to_hub=True, lora=True, max_train_steps=1)
    train_model(config, progress=False)
    assert_no_local_path(hub / "fine", tmp_path.parent, base)
    about = ModelCard.load(hub / "fine/README.md")
    assert (about.data.license, about.data.license_name) == ("other", "as-the-base-model")
    assert "A LoRA of rank 4 on the unet of `model`, on 6" in about.text
    assert "The card of `model` was not at hand or names no licence: the base model's terms apply." in about.text
    assert 'load_lora_weights("someone/fine", weight_name="pytorch_lora_weights.safetensors")' in about.text


def test_names_on_the_hub_become_links_of_the_card(base, images, tmp_path):
    out = train_model(config_of(base, images, tmp_path / "fine", max_train_steps=1), progress=False)
    config = config_of("someone/base", "someone/pictures", out)
    record = json.loads((out / "rotescope.json").read_text())
    job = replace(check_job(config_of(base, images, tmp_path / "other")), config=config)
    about = publish.card(job, "someone/fine", record, Manifest.load(out / "manifest.parquet"))
    assert (about.data.base_model, about.data.datasets) == ("someone/base", ["someone/pictures"])
    assert "`someone/base` with its whole unet trained, on 6 captioned images of `someone/pictures`" in about.text


def test_a_failed_upload_leaves_the_model(base, images, tmp_path, hub, monkeypatch):
    def unreachable(**_):
        raise OSError("no route")
    monkeypatch.setattr(publish, "upload_folder", unreachable)
    with pytest.raises(RunError, match=r"the model is in .*fine, but the upload to someone/fine failed \(no route\)"):
        train_model(config_of(base, images, tmp_path / "fine", push_to_hub=True, max_train_steps=1), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["fine"]
    assert (tmp_path / "fine/rotescope.json").exists()
