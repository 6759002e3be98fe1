"""Textual inversions do what stock diffusers does with them; names on the hub are told from paths."""
import os
from copy import deepcopy

import pytest
import torch
from adapter_files import numbers
from safetensors.torch import load_file, save_file
from tiny import WIDTH
from tiny_families import tiny_family

from rotescope.common.errors import InputError
from rotescope.models.adapters.embeddings import add_embedding
from rotescope.models.model_files import hub_name
from rotescope.models.model_options import ModelOptions
from rotescope.models.pipelines import load_pipeline, open_model

ONE, TWO = numbers(1, WIDTH, seed=1) * 5, numbers(3, WIDTH, seed=2) * 5
FILES = [  # tensors, the file's name, --embedding's word, the word that calls it
    ({"emb_params": TWO}, "Sks-Cat", None, "Sks-Cat"), ({"<cat-toy>": ONE}, "a", None, "<cat-toy>"),
    ({"string_to_param.*": TWO}, "zwx", None, "zwx"), ({"emb_params": ONE[0]}, "a", "qzx", "qzx"),
    ({"emb_params": TWO.half()}, "zwx", None, "zwx")]


def fresh(name):
    """A tiny pipeline with tokenizers of its own, for those are shared and would keep the words."""
    pipe = tiny_family(name)
    for part in [part for part in pipe.components if part.startswith("tokenizer")]:
        setattr(pipe, part, deepcopy(getattr(pipe, part)))
    return pipe


def image_of(pipe, prompt):
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, num_inference_steps=1, height=16, width=16, output_type="latent",
                generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(("tensors", "stem", "asked", "word"), FILES, ids=[case[3] + str(n) for n, case in enumerate(FILES)])
def test_it_is_what_stock_diffusers_makes_of_the_same_vectors(tensors, stem, asked, word, tmp_path, capsys):
    save_file(tensors, tmp_path / f"{stem}.safetensors")
    ours, stock = fresh("sd1"), fresh("sd1")
    assert add_embedding(ours, asked, tmp_path / f"{stem}.safetensors") == word
    stock.load_textual_inversion({word: next(iter(tensors.values())).float().reshape(-1, WIDTH)}, token=word)
    prompt = f"a photo of {word} on a red background"
    assert torch.allclose(image_of(ours, prompt), image_of(stock, prompt), atol=1e-5)
    assert not torch.allclose(image_of(ours, prompt), image_of(fresh("sd1"), prompt), atol=1e-3)
    assert torch.equal(image_of(ours, "a cat"), image_of(fresh("sd1"), "a cat"))
    n = next(iter(tensors.values())).reshape(-1, WIDTH).shape[0]
    assert f"the word {word} in a prompt calls it ({n} vector{'s' * (n > 1)})" in capsys.readouterr().err


def test_sdxl_has_vectors_for_both_encoders(bases, tmp_path):
    save_file({"clip_l": TWO, "clip_g": -TWO}, tmp_path / "zwx.safetensors")
    pipe = open_model(ModelOptions(model=str(bases("sdxl")), embedding=(str(tmp_path / "zwx.safetensors"),), device="cpu"))
    for name, sign in (("", 1), ("_2", -1)):
        tokenizer, table = getattr(pipe, f"tokenizer{name}"), getattr(pipe, f"text_encoder{name}").get_input_embeddings().weight
        ids = tokenizer.convert_tokens_to_ids(["zwx", "zwx_1", "zwx_2"])
        assert torch.allclose(table[ids], sign * TWO)
    prompt = pipe.maybe_convert_prompt("a zwx", pipe.tokenizer)
    assert prompt == "a zwx zwx_1 zwx_2"
    assert not torch.allclose(image_of(pipe, "a zwx"), image_of(load_pipeline(bases("sdxl")), "a zwx"), atol=1e-3)


def test_those_that_go_with_a_lora_come_with_it(bases, tmp_path):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    save_file({f"{layer}.lora_down.weight": numbers(2, 16, seed=3), f"{layer}.lora_up.weight": numbers(16, 2, seed=4),
               "bundle_emb.zwx.string_to_param.*": TWO}, tmp_path / "a.safetensors")
    pipe = load_pipeline(bases("sd1"), tmp_path / "a.safetensors")
    ids = pipe.tokenizer.convert_tokens_to_ids(["zwx", "zwx_1", "zwx_2"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], TWO)


REFUSED = [
    ({"emb_params": torch.zeros(2, 9)}, "x", None, "of another model: its vectors have 9 numbers, and the text encoders here t"),
    ({"clip_l": ONE, "clip_g": TWO}, "x", None, "is no textual inversion|of another model"),
    ({"a": torch.zeros(2, 2, 2)}, "x", None, "is no textual inversion: it holds a"),
    ({"lora_unet_x.lora_down.weight": ONE}, "x", None, "is an adapter, no textual inversion: name it with --lora"),
    ({"emb_params": ONE}, "a", None, "has a token a of its own; name another with --embedding TOKEN="),
    ({"emb_params": ONE}, "x", "<|endoftext|>", "of its own"),
]


@pytest.mark.parametrize(("tensors", "stem", "asked", "said"), REFUSED, ids=lambda v: str(v)[:20])
def test_what_is_none_is_one_line(tensors, stem, asked, said, bases, tmp_path):
    save_file(tensors, tmp_path / f"{stem}.safetensors")
    named = f"{asked}={tmp_path}/{stem}.safetensors" if asked else f"{tmp_path}/{stem}.safetensors"
    with pytest.raises(InputError, match=said) as refused:
        load_pipeline(bases("sd1"), embeddings=(named,))
    assert "\n" not in str(refused.value)


def test_an_embedding_that_is_not_there_is_named_by_the_options(tmp_path):
    with pytest.raises(InputError, match="none.safetensors cannot be read"):
        ModelOptions(embedding=(f"{tmp_path}/none.safetensors",)).check()
    save_file({"emb_params": ONE}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="the token 'two words' is no word"):
        ModelOptions(embedding=(f"two words={tmp_path}/a.safetensors",)).check()


@pytest.mark.parametrize(("name", "found"), [
    ("runwayml/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"), ("hub:owner/name", "owner/name"),
    ("owner/sdxl-base-1.0", "owner/sdxl-base-1.0"), ("here/modle", None), ("owner/model.safetensors", None),
    ("owner/model.ckpt", None),
    ("a/b/c", None), ("./a", None), ("~/a", None), ("/a/b", None), ("name", None), ("owner/", None), ("/name", None), ("", None),
    ("here/there", None), ("..\\a/b", None)])
def test_a_path_is_never_taken_for_a_name_on_the_hub(name, found, tmp_path, monkeypatch):
    (tmp_path / "here/there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name(name) == found
    if found is None and name:
        monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *a, **k: pytest.fail("a download"))
        with pytest.raises(InputError):
            load_pipeline(name)


def test_weights_are_kept_as_they_were_written(tmp_path):
    """The file itself is never touched."""
    save_file({"emb_params": TWO}, tmp_path / "a.safetensors")
    before = os.stat(tmp_path / "a.safetensors").st_mtime_ns
    add_embedding(fresh("sd1"), "zwx", tmp_path / "a.safetensors")
    assert os.stat(tmp_path / "a.safetensors").st_mtime_ns == before
    assert torch.equal(load_file(tmp_path / "a.safetensors")["emb_params"], TWO)
