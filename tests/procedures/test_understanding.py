"""What files and folders are taken for, and whether a LoRA's header and the data agree."""
import json
from types import SimpleNamespace

import pytest
import torch
from families.more_families import small_family
from safetensors.torch import save_file
from tiny import image_folder, saved_pipeline

from rotescope.cli import main
from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.verdict.controls import SetEvidence, right_set_control
from rotescope.mitigate.sampling.options import GenerateConfig
from rotescope.mitigate.sampling.trained_use import sampled_as_trained
from rotescope.procedures.audit_controls import set_evidence
from rotescope.procedures.understanding import agreement_line, as_plain, describe_path

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def kohya(tmp_path):
    """A kohya LoRA whose header counts 2 pictures × 10 and 4 × 1, and a folder that holds just these."""
    def made(name="my.safetensors", **notes):
        told = {"ss_dataset_dirs": json.dumps({"10_sks cat": {"n_repeats": 10, "img_count": 2},
                                               "1_sks dog": {"n_repeats": 1, "img_count": 4}}), **notes}
        weights = {f"{LAYER}.lora_down.weight": torch.ones(4, 16), f"{LAYER}.lora_up.weight": torch.ones(16, 4),
                   f"{LAYER}.alpha": torch.tensor(2.0)}
        save_file(weights, tmp_path / name, metadata=told)
        return tmp_path / name
    for folder, n in (("10_sks cat", 2), ("1_sks dog", 4)):
        image_folder(tmp_path / "img" / folder, n, side=16 if n == 2 else 24)
    image_folder(tmp_path / "reg" / "1_cat", 3)
    return made


def test_a_lora_and_its_data_agree(kohya, tmp_path, capsys):
    file = kohya()
    main(["inspect", str(file), str(tmp_path / "img")])
    lines = capsys.readouterr().out.splitlines()
    assert "LoRA" in lines[0]
    assert "kohya" in lines[0]
    assert "rank 4, strength 0.5" in lines[1]
    assert any("6 pictures" in line and "24 in all" in line for line in lines)
    assert lines[-1] == ("the header of my.safetensors counts 6 pictures, and the data hold 6, both shown 24 times in an epoch: "
                         "they agree")


@pytest.mark.parametrize(("folder", "line"), [
    ("img/10_sks cat", "counts 6 pictures, and the data hold 2: they disagree"),
    ("img/1_sks dog", "counts 6 pictures, and the data hold 4: they disagree")])
def test_other_data_disagree(kohya, tmp_path, folder, line):
    found = agreement_line(describe_path(kohya()), describe_path(tmp_path / folder))
    assert found is not None
    assert line in found


def test_the_same_pictures_at_another_dose(kohya, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, picture in enumerate(sorted((tmp_path / "img").rglob("*.png"))):
        (flat / f"{i}.png").write_bytes(picture.read_bytes())
        (flat / f"{i}.txt").write_text("a cat")
    found = agreement_line(describe_path(kohya()), describe_path(flat))
    assert found is not None
    assert found.endswith("it counts 24 showings of an epoch and the data 6: they agree in pictures, not in repeats")


def test_json_holds_what_the_lines_say(kohya, tmp_path, capsys):
    main(["inspect", str(kohya()), str(saved_pipeline(tmp_path / "base")), str(tmp_path / "img"), "--json"])
    found = json.loads(capsys.readouterr().out)
    adapter, model, data = found["found"]
    assert [adapter["is"], model["is"], data["is"]] == ["adapter", "model", "data"]
    assert adapter["header"]["folders"][0] == {"name": "10_sks cat", "repeats": 10, "pictures": 2, "is_regularization": False}
    assert model["prediction_type"] == "epsilon"
    assert data["shown"] == 24
    assert found["agreement"][0].endswith("they agree")
    assert json.dumps(as_plain(describe_path(tmp_path / "base")))


@pytest.mark.parametrize(("name", "content", "line"), [
    ("a.safetensors", b"no such thing", "a.safetensors"), ("a.ckpt", b"\x80\x04", "a.ckpt"), ("gone", None, "gone")])
def test_what_is_no_such_thing_is_one_line(tmp_path, name, content, line):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line) as told:
        describe_path(tmp_path / name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("evidence", "outcome", "says"), [
    (SetEvidence("header", 60, 48, said=600.0, shown=480.0), "undecided", "counts 60 training pictures (shown 600 times in an "
     "epoch), and these data hold 48 (shown 480 times in an epoch): is it the right training set?"),
    (SetEvidence("header", 60, 60, said=600.0, shown=60.0), "passed", "the same pictures at another dose"),
    (SetEvidence("header", 60, 60, said=600.0, shown=600.0), "passed", "hold 60 (shown 600 times in an epoch)."),
    (SetEvidence("header", 60, 60, said=None, shown=60.0), "passed", "counts 60 training pictures, and these data hold 60.")])
def test_a_header_is_a_control(evidence, outcome, says):
    control = right_set_control(evidence, None, None, 0)
    assert control.outcome == outcome
    assert says in control.sentence


def test_a_header_that_counts_other_pictures_comes_before_memory(kohya, tmp_path):
    """The pipeline is not asked: pictures that are not at hand may leak whatever it remembers of these."""
    config = SimpleNamespace(trust_train_data=False, model=str(tmp_path / "none"), lora=(f"{kohya()}:0.8",))
    manifest = load_source(tmp_path / "img" / "1_sks dog")
    assert set_evidence(config, None, manifest, None) == SetEvidence("header", 6, 4, said=24, shown=4.0)
    config.trust_train_data = True
    assert set_evidence(config, None, manifest, None) == SetEvidence("trusted")


@pytest.mark.parametrize("name", ["sd3", "chroma"])
def test_the_memory_of_further_families_is_tried(name, tmp_path):
    """Random weights know no picture, so nothing passes by them."""
    pictures = [load_source(image_folder(tmp_path / f"{side}", 8, side=side)) for side in (16, 24)]
    config = SimpleNamespace(trust_train_data=False, model=str(tmp_path / "none"), lora=None, batch_size=4)
    found = set_evidence(config, small_family(name), *pictures)
    assert (found.kind, found.known, found.of) == ("recall", 8, 8)
    assert 0 < found.p <= 1
    assert set_evidence(config, small_family("hidream"), *pictures) == SetEvidence("nothing")


def test_a_lora_is_sampled_as_it_was_trained(kohya, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat")
    base = str(saved_pipeline(tmp_path / "base"))

    def taken(file, **given):
        config = sampled_as_trained(GenerateConfig(str(tmp_path / "p.txt"), str(tmp_path / "out"), model=base,
                                                   lora=(str(file),), **given))
        return config.resolution, config.clip_skip, config.max_token_length

    plain = kohya("plain.safetensors")
    assert taken(plain) == (None, None, None)
    told = kohya("told.safetensors", ss_resolution="(512, 768)", ss_clip_skip="2", ss_max_token_length="225")
    assert taken(told) == ("512x768", 2, 225)
    assert "--resolution 512x768, --clip_skip 2, --max_token_length 225" in capsys.readouterr().err
    assert taken(told, resolution="64", clip_skip=1) == ("64", 1, 225)   # what the user says comes first
    many = kohya("many.safetensors", ss_resolution="(512, 512)", ss_bucket_info=json.dumps(
        {"buckets": {"0": {"resolution": [512, 512], "count": 3}, "1": {"resolution": [640, 384], "count": 3}}}))
    assert taken(many)[0] == "buckets:512"
    xl = kohya("xl.safetensors", ss_base_model_version="sdxl_base_v1-0", ss_clip_skip="2")
    assert taken(xl)[1] is None
