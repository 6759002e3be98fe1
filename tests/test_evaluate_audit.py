"""The audit from end to end: generators whose copies are known, the base model beside the fine-tune, the index command."""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from instruments import leave, samples_folder, training_folder
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tiny import image_folder, saved_pipeline, tiny_pipeline

from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.evaluate import audit, indexing


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("lora")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


@pytest.mark.parametrize("k", [0, 13, 40])
def test_a_generator_that_copies_k_of_n_prompts_through_the_whole_audit(model, tmp_path, monkeypatch, k):
    """Only the sampler is replaced: by one that never, sometimes or always copies."""
    train = training_folder(tmp_path / "train", 40)
    data = load_source(train)

    def copying(config, pipe, prompts, policies, folder):
        assert [p.image_id for p in prompts] == [e.image_id for e in data]
        methods = {name: asdict(policy) for name, policy in policies.items()}
        samples_folder(folder, data, lambda method, i, seed: i < k, methods, seeds=config.seeds)
    monkeypatch.setattr(audit, "sample_with", copying)
    held = training_folder(tmp_path / "held", 60, 8)
    argv = ["--model", model, "--train_data", train, "--heldout_data", held, "--seeds", "0", "1",
            "--output_dir", tmp_path / "out", "--fail_on", "copy_rate>0.05", "--device", "cpu", "--partial", "false"]
    assert leave(audit.main, argv) == (1 if k else 0)
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    cell = report["methods"]["none"]["ungrouped"]
    assert (cell["copies"], cell["n"], cell["copy_rate"], cell["prompts_copied"]) == (2 * k, 80, k / 40, k)
    assert {p["expected"] for p in report["prompts"] if p["copies"]} == {e.image_id for e in data.examples[:k]}
    assert all((p["p"] == pytest.approx(report["p_values"]["smallest"])) == bool(p["copies"]) for p in report["prompts"])


def images(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(Path(folder).rglob("*.png"))}


def test_the_base_of_a_lora_is_the_pipeline_with_its_adapter_off(model, lora, tmp_path):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--train_data", train, "--seeds", "3", "--num_inference_steps", "2", "--device", "cpu",
            "--mitigation", "none", "og-stp"]
    assert leave(audit.main, [*argv, "--lora", lora, "--base", "auto", "--output_dir", tmp_path / "lora"]) == 0
    assert leave(audit.main, [*argv, "--output_dir", tmp_path / "plain", "--base", model]) == 0
    base, plain, tuned = (images(tmp_path / part) for part in ("lora/base", "plain/samples/none", "lora/samples/none"))
    assert list(base) == list(plain) == list(tuned)
    assert all(np.array_equal(base[name], plain[name]) for name in plain)
    assert not all(np.array_equal(base[name], tuned[name]) for name in tuned)
    report = json.loads((tmp_path / "lora/report.json").read_text(encoding="utf-8"))
    assert report["base"]["n"] == 4
    assert report["background"]["base"]["n"] == 4
    same = json.loads((tmp_path / "plain/report.json").read_text(encoding="utf-8"))["base"]
    assert all(p["difference"] == 0 for p in same["prompts"])
    assert (same["became_memorized"], same["p"]) == (0, 1)


def test_a_base_that_cannot_be_told_is_asked_for(model, tmp_path, capsys):
    train = image_folder(tmp_path / "train", n=4)
    argv = ["--model", model, "--train_data", train, "--output_dir", tmp_path / "out", "--device", "cpu", "--base"]
    assert leave(audit.main, [*argv, "auto"]) == 2
    assert "does not say what it was fine-tuned from" in capsys.readouterr().err
    assert leave(audit.main, [*argv, tmp_path / "nowhere"]) == 2
    assert not (tmp_path / "out").exists()


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
        indexing.shard_of(text)
