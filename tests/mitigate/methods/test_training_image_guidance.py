"""Search in the training set (AMG) and value neurons (NeMo): against hand arithmetic and by invariance."""
import copy
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from places import ROOT
from test_rivals import PROMPTS, STEPS, pipe, sample  # noqa: F401  (pipe is a fixture)
from tiny import image_folder, tiny_pipeline

from rotescope import mitigated
from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.contract.pipeline_call import PipelineCall
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.methods.training_image_guidance import (
    AntiMemorizationGuidance,
    clean_estimator,
    describe_colours,
    load_descriptors,
    similarity,
    similarity_gradient,
)
from rotescope.mitigate.methods.transition import TransitionGuidance
from rotescope.mitigate.methods.value_neurons import (
    NeuronSearch,
    ValueNeurons,
    activations,
    closest_pairs,
    likeness,
    refine,
    top,
    value_layers,
)
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.sampler import sample_to_folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amg")
    load_source(image_folder(folder / "images")).save(folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


# ----- AMG

def test_the_descriptor_by_hand():
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = x.numpy().reshape(2, 3, 32, 2, 32, 2).mean((3, 5))
    flat = (small - small.mean((2, 3), keepdims=True)).reshape(2, -1)
    np.testing.assert_allclose(describe_colours(x), flat / np.linalg.norm(flat, axis=1, keepdims=True), atol=1e-6)
    torch.testing.assert_close(describe_colours(x * 2 - 1), describe_colours(x))
    assert not describe_colours(torch.ones(1, 3, 8, 8)).any()


def test_a_training_image_is_found_as_itself(manifest):
    known = load_descriptors(manifest)
    assert known.shape == (6, 3072)
    torch.testing.assert_close((known @ known.T).diagonal(), torch.ones(6))
    with pytest.raises(InputError, match="or their manifest"):
        load_descriptors("")
    with pytest.raises(InputError, match="manifest"):
        load_descriptors("nowhere.parquet")


def test_the_gradient_is_the_slope_of_the_similarity(pipe, manifest):  # noqa: F811
    known, clean = load_descriptors(manifest).double(), clean_estimator(pipe.scheduler, 400)
    x, output, direction = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        slope = similarity_gradient(pipe.vae, known, clean, x, output)
        ahead, behind = (similarity(pipe.vae, known, clean(x + h * direction, output)) for h in (1e-4, -1e-4))
    torch.testing.assert_close((slope * direction).sum(), ((ahead - behind) / 2e-4)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_clean_estimate_undoes_the_noise(pipe, kind):  # noqa: F811
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    clean, eps = torch.randn(2, 5)
    alpha, sigma = scheduler.alphas_cumprod[300].sqrt(), (1 - scheduler.alphas_cumprod[300]).sqrt()
    output = eps if kind == "epsilon" else alpha * eps - sigma * clean
    torch.testing.assert_close(clean_estimator(scheduler, 300)(alpha * clean + sigma * eps, output), clean, atol=1e-4, rtol=1e-4)


def test_far_from_the_training_set_nothing_happens(pipe, manifest):  # noqa: F811
    found, run = sample(pipe, AntiMemorizationGuidance(manifest, threshold=1e3))
    torch.testing.assert_close(found, sample(pipe)[0], atol=1e-9, rtol=0)
    assert run.denoiser_rows == [2 * STEPS] * 3


def test_despecification_stops_at_a_scale_of_one(pipe, manifest):  # noqa: F811
    strong = AntiMemorizationGuidance(manifest, despecification=1e6, dissimilarity=0.0, threshold=-1e3)
    expected, _ = sample(pipe, TransitionGuidance(transition=1000, after=1.0))
    torch.testing.assert_close(sample(pipe, strong)[0], expected, atol=1e-6, rtol=0)


def test_dissimilarity_makes_the_clean_estimate_less_like_its_neighbour(pipe, manifest):  # noqa: F811
    sample, cond, uncond = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = SimpleNamespace(timestep=400, sample=sample, cond=cond, uncond=uncond, gap=torch.ones(5),
                           call=SimpleNamespace(pipe=pipe))
    clean, known = clean_estimator(pipe.scheduler, 400), load_descriptors(manifest).double()

    def closeness(dissimilarity, threshold=-1e3):
        settings = AntiMemorizationGuidance(manifest, 0.0, dissimilarity, threshold)
        return similarity(pipe.vae, known, clean(sample, settings.begin(5, 7.5, "cpu").guide(step)))
    with torch.no_grad():
        assert (closeness(1.0) < closeness(0.0)).all()
        assert torch.equal(closeness(1.0, threshold=1e3), closeness(0.0))


def test_amg_without_training_images_is_refused(pipe):  # noqa: F811
    with pytest.raises(InputError, match="training"), mitigated(pipe, "amg"):
        pipe(PROMPTS)


# ----- NeMo

def test_likeness_is_one_for_the_same_and_lower_for_others():
    for side in (8, 64):
        x, y = torch.rand(2, 3, 4, side, side, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(likeness(x, x), torch.ones(3))
        assert (likeness(x, y) < 0.5).all()
    pairs = closest_pairs(torch.stack([x[0], y[0], x[0]]))
    torch.testing.assert_close(pairs[[0, 2]], torch.ones(2))
    assert pairs[1] < 0.5


def test_refinement_leaves_the_neurons_that_matter():
    matters = {(0, 2), (1, 3)}

    def like_itself(off):
        return 1.0 if any(not off[layer][neuron] for layer, neuron in matters) else 0.2
    off = refine([torch.ones(4, dtype=torch.bool), torch.ones(5, dtype=torch.bool), torch.ones(6, dtype=torch.bool)],
                 like_itself, 0.428)
    assert {(layer, n) for layer, mask in enumerate(off) for n in mask.nonzero()[:, 0].tolist()} == matters


def test_the_strongest_by_hand(pipe):  # noqa: F811
    assert top(torch.tensor([3.0, 9.0, 5.0]), 2).tolist() == [False, True, True]
    texts = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(0)).double()
    layer = value_layers(pipe.unet)[0]
    by_hand = np.abs(texts.numpy() @ layer.weight.detach().numpy().T).mean(1)
    np.testing.assert_allclose(activations([layer], texts)[0].detach(), by_hand)


def test_neurons_off_are_rows_of_the_value_weights_at_zero(pipe):  # noqa: F811
    settings, layers, found = ValueNeurons("none", threshold=-0.5, seeds=3), value_layers(pipe.unet), {}

    class Spy(ValueNeurons):
        def prepare(self, call):
            super().prepare(call)
            found["off"] = call.memory[self]
    mitigated_image, _ = sample(pipe, Spy(settings.ordinary, settings.threshold, settings.seeds), [0])
    assert sum(mask.sum() for mask in found["off"]) > 0
    kept = [layer.weight.data.clone() for layer in layers]
    for layer, mask in zip(layers, found["off"], strict=True):
        layer.weight.data[mask[0]] = 0
    expected, _ = sample(pipe, None, [0])
    for layer, weight in zip(layers, kept, strict=True):
        layer.weight.data = weight
    torch.testing.assert_close(mitigated_image, expected, atol=1e-9, rtol=0)


def test_a_prompt_that_is_not_memorized_is_left_alone(pipe):  # noqa: F811
    found, run = sample(pipe, ValueNeurons(threshold=1.1, seeds=4))
    torch.testing.assert_close(found, sample(pipe)[0], atol=1e-9, rtol=0)
    assert run.denoiser_rows == [2 * STEPS + 4] * 3


def test_ordinary_prompts_tell_what_is_unusual(pipe, tmp_path):  # noqa: F811
    """|z| > θ of the |activation| averaged over the tokens; z by a file, else by the captions of the embedded held-out data."""
    def strengths(prompts):
        texts = [pipe.encode_prompt(text, "cpu", 1, False)[0][0].detach().numpy() for text in prompts]
        return np.stack([np.abs(text @ layer.weight.detach().numpy().T).mean(0) for text in texts])
    layer, few = value_layers(pipe.unet)[0], ["a cat", "a bus on a red background", "a pig", "a frog"]
    (tmp_path / "few.txt").write_text("\n".join(few))
    heldout = pq.read_table(ROOT / "datasets/emoji/heldout.parquet", columns=["caption"])["caption"]
    for file, prompts in ((str(tmp_path / "few.txt"), few), ("", dict.fromkeys(heldout.to_pylist()))):
        ordinary, (mine,) = strengths(prompts), strengths(PROMPTS[2:])
        z = np.abs(mine - ordinary.mean(0)) / ordinary.std(0, ddof=1)
        theta = float(np.sort(z)[-3:-1].mean())  # two neurons lie above it
        call = PipelineCall(pipe, {"prompt": PROMPTS[2:], "num_inference_steps": STEPS})
        unusual = NeuronSearch(call, ValueNeurons(file, seeds=2))._unusual(torch.from_numpy(mine), 0, theta)
        assert sum(unusual) == 2
        assert unusual.tolist() == (z > theta).tolist()
    with pytest.raises(InputError, match="gone.txt"), mitigated(pipe, ValueNeurons("gone.txt")):
        pipe(PROMPTS)


def test_a_model_that_no_ordinary_prompts_ship_for_is_refused_before_anything_is_made(tmp_path):
    other, policies = tiny_pipeline(), {name: get_mitigation(name) for name in ("none", "nemo")}
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.tokenizer.add_tokens(["unheard-of"])
    with pytest.raises(InputError, match="nemo:ordinary=prompts.txt"), mitigated(other, "nemo"):
        pass
    with pytest.raises(InputError, match="nemo:ordinary=prompts.txt"):
        sample_to_folder(other, [Prompt("a cat")], policies, (0,), tmp_path, num_inference_steps=2)
    assert not list(tmp_path.iterdir())
    with mitigated(other, "nemo:ordinary=none"):
        pass
