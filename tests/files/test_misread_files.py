"""Files that were once misread in silence: half of a layer left out, an embedding that no prompt
calls, a good file called a pickle."""
import json

import pytest
import torch
from adapter_files import PARTS
from places import ROOT
from safetensors.torch import save_file
from test_data_layouts import P, make

from rotescope.cli import main
from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import read_source
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.conditioning import check_embedding_words
from rotescope.models.adapters.description import describe_adapter
from rotescope.models.adapters.header import header_of
from rotescope.models.pipelines import load_pipeline
from rotescope.models.tensor_files import check_tensor_file
from rotescope.procedures.understanding import describe_path

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
BASE = str(ROOT / "train/base")


def of(form, seed=0):
    return {f"{LAYER}.{end}": w.contiguous() for end, w in PARTS[form]((16, 16), seed)[0].items()}


@pytest.mark.parametrize("other", ["LoHa", "LoKr", "full"])
def test_two_kinds_for_one_layer_are_refused(other, bases, tmp_path):
    """Only the first would count, and the file would be said to be used whole."""
    save_file(of("alpha") | {k: w for k, w in of(other, 9).items() if not k.endswith("alpha")}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"LoRA and {other} for one layer|{other} and LoRA for one layer"):
        load_pipeline(bases("sd1"), tmp_path / "a.safetensors")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_the_files_fault(number, bases, tmp_path):
    found = of("alpha")
    found[f"{LAYER}.lora_up.weight"][0, 0] = number
    save_file(found, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"a.safetensors holds numbers that are none .* in {LAYER}.lora_up.weight"):
        load_pipeline(bases("sd1"), tmp_path / "a.safetensors")


def test_a_header_as_long_as_a_pickles_mark_is_no_pickle(tmp_path):
    """Of 0x580 bytes: the file begins as a pickle of protocol 5 does."""
    file = tmp_path / "a.safetensors"
    for length in range(2000):
        save_file({"x": torch.zeros(2)}, file, {"note": "x" * length})
        if file.read_bytes()[:2] == b"\x80\x05":
            break
    assert file.read_bytes()[:2] == b"\x80\x05"
    assert check_tensor_file(file) == file


def test_a_suffix_in_capitals_is_one(bases, tmp_path):
    save_file(of("alpha"), tmp_path / "MINE.SAFETENSORS")
    load_pipeline(bases("sd1"), tmp_path / "MINE.SAFETENSORS")


def test_an_embedding_that_no_prompt_calls_is_refused(tmp_path):
    save_file({"emb_params": torch.ones(1, 128)}, tmp_path / "myword.safetensors")
    names = [str(tmp_path / "myword.safetensors"), f"sks={tmp_path / 'myword.safetensors'}"]
    check_embedding_words(names, [Prompt("a myword on a sks")])
    with pytest.raises(InputError, match="no prompt holds its word myword"):
        check_embedding_words(names, [Prompt("a sks")])
    (tmp_path / "p.txt").write_text("a cat")
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", BASE, "--prompts", str(tmp_path / "p.txt"), "--embedding", names[0], "--seeds", "0",
              "--num_inference_steps", "1", "--output_dir", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert not list(tmp_path.glob("*out*"))


def test_a_header_cannot_forge_a_line(tmp_path):
    save_file(of("alpha"), tmp_path / "a.safetensors", {"ss_sd_model_name": "x\n✓ the right set: passed\x1b[2K",
                                                        "ss_tag_frequency": json.dumps({"1_a": {"b\ny": 1}})})
    for line in describe_adapter(tmp_path / "a.safetensors").lines():
        assert line.isprintable()


@pytest.mark.parametrize(("said", "size"), [("(100000, 100000)", (100_000, 100_000)), ("(0, -5)", None), ("9" * 5000, None),
                                            ("(832, 1216)", (832, 1216))])
def test_a_size_is_read_whole_or_not(said, size):
    assert header_of({"ss_resolution": said}).resolution == size


def test_inspect_says_that_it_understood_nothing(tmp_path):
    """And never asks a hub."""
    save_file(of("alpha"), tmp_path / "epoch-1.safetensors")
    save_file({"x.y": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    for path, line in ((tmp_path, r"holds no picture, but weights \(epoch-1.safetensors, other.safetensors\)"),
                       (tmp_path / "other.safetensors", "weights of a kind that is not known here"),
                       (tmp_path / "empty", "no (image|picture)"), ("owner/name", "nothing lies at owner/name")):
        with pytest.raises(InputError, match=line):
            describe_path(path)


def test_kohyas_doubled_folder_counts_once_and_its_second_separator_is_replaced(tmp_path):
    first = '[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 4\nsecondary_separator = ";;;"\n'
    again = '[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 3\n'
    make(tmp_path, {"set.toml": f"[[datasets]]\n{first}{again}", "a/a.png": P, "a/a.caption": "x, y;;;z"})
    found = read_source(tmp_path / "set.toml")
    assert [(e.copies, e.captions) for e in found.manifest] == [(4, ("x, y,z",))]
    assert any("names a again: the first counts" in line for line in found.unused)


def test_a_linked_folder_of_kohyas_is_followed_and_said(tmp_path):
    make(tmp_path, {"elsewhere/a.png": P, "img/1_cat/b.png": P})
    (tmp_path / "img" / "10_dog").symlink_to(tmp_path / "elsewhere")
    found = read_source(tmp_path / "img")
    assert {(e.copies, e.captions) for e in found.manifest} == {(10, ("dog",)), (1, ("cat",))}
    assert any("10_dog is a link, which is followed to" in line for line in found.unused)
