"""What the header of an adapter's file says of its training, and what it says wrong."""
import json

import pytest
import torch
from safetensors.torch import save_file

from rotescope.models.adapters.header import read_header


def written(folder, noted):
    save_file({"x": torch.zeros(1)}, folder / "a.safetensors", metadata=noted)
    return folder / "a.safetensors"


GOOD = {"ss_dataset_dirs": json.dumps({"10_sks cat": {"n_repeats": 10, "img_count": 60},
                                       "1_dog": {"n_repeats": 1, "img_count": 4}}),
        "ss_reg_dataset_dirs": json.dumps({"1_cat": {"n_repeats": 1, "img_count": 200}}), "ss_clip_skip": "2",
        "ss_resolution": "(512, 768)", "ss_tag_frequency": json.dumps({"10_sks cat": {"sks cat": 60, "red": 3}}),
        "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [512, 768], "count": 640}}}), "ss_v2": "False",
        "ss_sd_model_name": "anything.safetensors", "ss_network_module": "networks.lora", "ss_network_dim": "16",
        "ss_network_alpha": "8.0", "ss_network_args": json.dumps({"conv_dim": "4"}), "ss_base_model_version": "sdxl_base_v1-0"}
WRONG = [  # what is noted, what is called unreadable
    ({"ss_dataset_dirs": "{not json"}, ("ss_dataset_dirs",)), ({"ss_dataset_dirs": "[1, 2]"}, ("ss_dataset_dirs",)),
    ({"ss_dataset_dirs": json.dumps({"a": {"img_count": "many"}})}, ("ss_dataset_dirs",)),
    ({"ss_dataset_dirs": json.dumps({"a": {"img_count": -3, "n_repeats": 1}})}, ("ss_dataset_dirs",)),
    ({"ss_dataset_dirs": "[" * 100_000}, ("ss_dataset_dirs",)), ({"ss_clip_skip": "two"}, ("ss_clip_skip",)),
    ({"ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": "?", "count": 1}}})}, ("ss_bucket_info",)),
    ({"ss_network_alpha": "nan"}, ("ss_network_alpha",)), ({"ss_network_dim": "inf"}, ("ss_network_dim",)),
    ({"ss_tag_frequency": json.dumps({"a": {"b": "c"}, "d": 4})}, ()), ({"ss_resolution": "big"}, ("ss_resolution",)),
    ({"ss_clip_skip": "None"}, ()), ({}, ()),
]


def test_a_header_is_read(tmp_path):
    header = read_header(written(tmp_path, GOOD))
    assert [(f.name, f.repeats, f.pictures) for f in header.trained] == [("10_sks cat", 10, 60), ("1_dog", 1, 4)]
    assert (header.pictures, len(header.folders), header.resolution, header.clip_skip) == (64, 3, (512, 768), 2)
    assert (header.buckets, header.tags["10_sks cat"]["red"], header.triggers) == ({(512, 768): 640}, 3, ("sks cat", "dog"))
    assert (header.base_model, header.is_v2, header.is_sdxl, header.network_dim) == ("anything.safetensors", False, True, 16)
    assert (header.network_alpha, header.network_args, header.unreadable) == (8.0, {"conv_dim": "4"}, ())
    assert header.lines()[0] == "its header says: trained on 60 pictures × 10 (10_sks cat), 4 pictures × 1 (1_dog)"


@pytest.mark.parametrize(("noted", "unreadable"), WRONG, ids=lambda v: str(v)[:40])
def test_what_a_header_says_wrong_is_named_and_never_stops(noted, unreadable, tmp_path):
    header = read_header(written(tmp_path, noted))
    assert (header.unreadable, header.pictures, header.folders) == (unreadable, None, ())
    assert all(name in " ".join(header.lines()) for name in unreadable)


def test_newer_trainers_note_their_sets_another_way(tmp_path):
    sets = [{"subsets": [{"image_dir": "10_cat", "num_repeats": 10, "img_count": 6, "is_reg": False},
                         {"image_dir": "reg", "num_repeats": 1, "img_count": 50, "is_reg": True}]}]
    header = read_header(written(tmp_path, {"ss_datasets": json.dumps(sets), "modelspec.trigger_phrase": "sks",
                                            "modelspec.resolution": "1024x768", "modelspec.prediction_type": "v",
                                            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}))
    assert ([(f.name, f.repeats) for f in header.trained], header.pictures) == ([("10_cat", 10)], 6)
    assert (header.triggers, header.resolution, header.prediction_type) == (("sks",), (1024, 768), "v_prediction")
    assert (header.is_sdxl, header.unreadable) == (True, ())
