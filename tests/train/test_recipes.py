"""The paper's four scenarios from end to end, scaled down: the embedded model, 40 scenes, a few steps, one seed."""
import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from instruments import training_folder
from places import ROOT

from rotescope.common.settings import parse
from rotescope.datasets.prepare import main as prepare
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.sampling.options import named_policies
from rotescope.models.model_options import BASE
from rotescope.options.audit import AuditConfig
from rotescope.procedures.audit import run_audit
from rotescope.train.engine.training import train_model
from rotescope.train.options.finetune_options import FinetuneConfig

CLASSES = ROOT / "train/recipes/imagenette_classes.csv"
S4 = ROOT / "rotescope/recipes/s4-webster-500.yaml"
MITIGATIONS = {  # what the paper runs on each
    "s1-laion-10k": ("none", "stp", "og-stp"), "s2-imagenette": ("none", "stp:transition=600", "stp:transition=700"),
    "s3-duplicated-200": ("none", "dtp", "og-dtp")}


def prepared(images, folder):
    """By the recipe's own line, from 40 scenes in Imagenette's layout -> the manifest of its first step."""
    (line,) = [w for w in (ROOT / "train/recipes/s2-imagenette.yaml").read_text().splitlines() if "rotescope prepare" in w]
    words = line.removeprefix("# rotescope prepare ").split()
    assert ROOT / words[-1] == CLASSES
    names = [row.split(",")[0] for row in CLASSES.read_text().splitlines()[1:]]
    for i, image in enumerate(sorted(images.glob("*.png"))):
        (folder / "train" / names[i % len(names)]).mkdir(parents=True, exist_ok=True)
        image.rename(folder / "train" / names[i % len(names)] / image.name)
    given = {"IMAGENETTE/train": folder / "train", words[-1]: CLASSES, "imagenette.parquet": folder / "imagenette.parquet"}
    prepare([str(given.get(w, w)) for w in words])
    return folder / "imagenette.parquet"


def test_imagenette_is_captioned_by_its_own_folders(tmp_path):
    manifest = load_source(prepared(training_folder(tmp_path / "images", 20), tmp_path / "imagenette"))
    assert Counter(c for e in manifest for c in e.captions) == dict.fromkeys(
        (f"An image of {row.split(',')[1]}" for row in CLASSES.read_text().splitlines()[1:]), 2)
    assert "An image of French horn" in manifest.captions()


def twin(name, images, folder):
    """Train by a recipe but for what size demands -> the checkpoint."""
    config = parse(FinetuneConfig, ["--config", str(ROOT / f"train/recipes/{name}.yaml")], prog="finetune", description="")
    dose = {"duplicated": 2, "copies": 20, "controls": 2} if config.duplicated else {}
    return train_model(replace(config, pretrained_model_name_or_path=str(BASE), train_data=str(images), resolution=64,
                            output_dir=str(folder), train_batch_size=4, max_train_steps=20, checkpointing_steps=10,
                            lr_warmup_steps=5, partial_plan=True, **dose), progress=False)


def audited(model, data, folder, mitigation, **changes):
    return run_audit(AuditConfig(model=str(model), train_data=str(data), output_dir=str(folder), mitigation=mitigation,
                                 seeds=(0,), max_prompts=2, num_inference_steps=4, device="cpu", verify=False, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_scaled_down_twin_trains_samples_and_reports(name, tmp_path):
    images = training_folder(tmp_path / "images", 40)
    images = prepared(images, tmp_path / "imagenette") if name.startswith("s2") else images
    checkpoint = twin(name, images, tmp_path / "checkpoint")
    assert (checkpoint / "checkpoint-20").is_dir()
    report = audited(checkpoint, checkpoint / "manifest.parquet", tmp_path / "audit", MITIGATIONS[name])
    groups = {"duplicated", "control"} if name.startswith("s3") else {"ungrouped"}
    assert len(report.methods) == 3
    assert all(set(found.groups) == groups for found in report.methods.values())
    assert json.loads((tmp_path / "audit/report.json").read_text())["hashes"] == report.hashes


@pytest.mark.slow
def test_the_twin_of_the_pretrained_model_samples_and_reports(tmp_path):
    recipe = parse(AuditConfig, ["--config", str(S4), "--train_data", "x", "--output_dir", "x"], prog="audit", description="")
    report = audited(BASE, training_folder(tmp_path / "images", 40), tmp_path / "audit", recipe.mitigation,
                     guidance_scale=recipe.guidance_scale, copy_threshold=recipe.copy_threshold, batch_size=recipe.batch_size)
    assert set(report.methods) == {"none", "dtp", "og-dtp"}
    assert report.copy_threshold == 0.75


def test_the_recipe_without_training_opens_with_its_command_and_holds_what_it_says():
    words = S4.read_text().splitlines()[0].removeprefix("# rotescope audit ").split()
    assert ROOT / words[1] == S4
    config = parse(AuditConfig, ["--config", str(S4), *words[2:]], prog="rotescope audit", description="")
    said = yaml.safe_load(S4.read_text())
    assert {key: list(v) if isinstance(v := getattr(config, key), tuple) else v for key in said} == said
    assert list(named_policies(config.mitigation)) == said["mitigation"]
