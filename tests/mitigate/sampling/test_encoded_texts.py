"""Texts encoded once: what the pipelines make of them, counted at the encoders, and the same images as without."""
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from families.more_families import small_family
from tiny import loud_pipeline

from rotescope import generate, mitigated
from rotescope.mitigate.contract.families import FAMILIES, guidance_arguments
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt, Prompt
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts, side_by_side
from rotescope.mitigate.sampling.jobs import batches, calls_of
from rotescope.mitigate.sampling.sampler import sample, sample_to_folder

PROMPTS = [Prompt("a cat on a red background"), Prompt("a bus")]
QUICK = ("sdxl", "z-image", "qwen-image")    # both texts in one call; a list of them; one text a call, padded to the longest
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES if name != "kolors"]


def drawn(pipe, *mitigation, prompts=PROMPTS, seeds=(0,)):
    """Pictures (n, h, w, 3) in [0, 1], in the calls that the sampler would make."""
    pictures = []
    for jobs in calls_of(pipe, batches(prompts, seeds, 64)[0]):
        with mitigated(pipe, *mitigation or ("none",)):
            pictures.append(pipe(prompt=[prompts[i].text for i, _, _ in jobs], num_inference_steps=2, output_type="np",
                                 generator=[torch.Generator().manual_seed(s) for _, _, s in jobs],
                                 **guidance_arguments(pipe, len(jobs), 4.0)).images)
    return np.concatenate(pictures)


@contextmanager
def encoder_calls(pipe):
    """-> {encoder: its calls}, counted at the encoders themselves."""
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None}
    counted = dict.fromkeys(encoders, 0.0)

    def watch(name):
        def count(module, args, output):
            counted[name] += 1 / sum(part is module for part in encoders.values())   # the small HiDream has one under two names
        return count
    handles = [part.register_forward_hook(watch(name)) for name, part in encoders.items()]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_each_text_is_encoded_once_and_the_images_are_the_same(name):
    pipe, kept = small_family(name), EncodedTexts()
    stock = drawn(pipe)
    with encoder_calls(pipe) as counted, kept.serving(pipe):
        np.testing.assert_allclose(drawn(pipe), stock, atol=2e-5)         # a text is encoded alone, not in a batch
        once = dict(counted)
        drawn(pipe, "og-stp:transition=600", seeds=(2,))
    assert counted == once
    assert all(0 < calls <= len(PROMPTS) + 1 for calls in once.values())  # the negative text is one for all; Bria's is none
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("mitigation", ["random-token", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("caption-noise", "pad-mask"))])
def test_mitigations_that_change_texts_and_embeddings_work_as_without(mitigation):
    pipe = loud_pipeline()
    stock = drawn(pipe, mitigation)
    with EncodedTexts().serving(pipe):
        np.testing.assert_allclose(drawn(pipe, mitigation), stock, atol=1e-9)
    assert np.abs(stock - drawn(pipe)).max() > 1e-3


def test_a_whole_run_encodes_each_prompt_once(tmp_path):
    pipe, policies = loud_pipeline(), {name: get_mitigation(name) for name in ("none", "og-stp", "stp")}
    with encoder_calls(pipe) as counted:
        sample_to_folder(pipe, PROMPTS, policies, (0, 1, 2), tmp_path, num_inference_steps=2, batch_size=2)
    assert counted == {"text_encoder": len(PROMPTS) + 1}
    with encoder_calls(pipe) as counted:
        assert len(list(generate(pipe, PROMPTS, ["none", "stp"], [0, 1], num_inference_steps=2, max_token_length=44))) == 8
    assert counted == {"text_encoder": len(PROMPTS) + 1}
    embedded = [EmbeddedPrompt(p.text, embedding=torch.zeros(24, 16, dtype=torch.float64)) for p in PROMPTS]
    with encoder_calls(pipe) as counted:
        list(sample(pipe, embedded, get_mitigation("none"), (0, 1), num_inference_steps=2, batch_size=1))
    assert counted == {"text_encoder": 1}


def test_what_memory_does_not_hold_is_encoded_again():
    kept, made = EncodedTexts(limit=8), []

    def row(key):
        return kept.row(key, lambda: (made.append(key), torch.zeros(1, 1))[1])     # 4 bytes
    for key in "abacab":
        row(key)
    assert made == ["a", "b", "c", "b"]                                   # b was used longest ago as c came
    assert kept.size == 8


def test_rows_lie_side_by_side_by_hand():
    one, two = torch.ones(1, 1, 4), 2 * torch.ones(1, 3, 4)
    both, mask = side_by_side([(one, None), (two, None)])
    assert both[:, :, 0].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert side_by_side([(one, one), (two, two)]) is None                 # no mask would tell what is text
    layers, places = torch.zeros(5, 1, 3, 4), torch.zeros(7, 3)
    assert [x.shape for x in side_by_side([(layers, places)] * 2)] == [(5, 2, 3, 4), (7, 3)]
    assert side_by_side([(one, None)] * 2)[1] is None
    assert side_by_side([([one[0]], []), ([two[0]], [])])[1] == []
