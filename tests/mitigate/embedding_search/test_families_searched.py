"""Embeddings searched for on small pipelines of the real classes: the losses of diffusers' example scripts, the search, and what
a stock pipeline makes of what was found."""
import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from families.example_scripts import SCRIPTS
from families.more_families import SIDES, more_family, small_family
from instruments import noise
from tiny import cached_pipeline, image_folder

from rotescope.common.errors import InputError
from rotescope.datasets.images.to_pixels import to_pixels
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.contract.families import FAMILIES, SAMPLE_NAMES, TIME_NAMES, denoiser_of, family, guidance_arguments
from rotescope.mitigate.contract.text_inputs import EMBEDDING, TEXT_INPUTS
from rotescope.mitigate.denoiser.branch_loss import BranchLoss, own_side, why_no_loss
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.embedding_search.search import Budget, check_searchable, find_embeddings
from rotescope.mitigate.embedding_search.targets import choose_targets
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt, Prompt, caption_prompts
from rotescope.mitigate.sampling.embedded_prompts import embedded_inputs, positive_inputs, rows_repeated, text_inputs
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.mitigate.sampling.sampler import sample
from rotescope.models.prediction import TARGETS, prediction_kind, rates_at

QUICK = ("sdxl", "flux", "z-image")                 # pooled text, two calls, a list of texts
TEXT, BUDGET = "a cat on a red background", Budget(12, 0.1, 4)
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*TEXT_INPUTS, "pixart-sigma")]
DRAWS = 48


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return choose_targets(load_source(image_folder(tmp_path_factory.mktemp("sought") / "images")), limit=1)


def picture(pipe, prompt, method="none"):
    made = next(sample(pipe, [prompt], get_mitigation(method), [0], num_inference_steps=2, guidance_scale=4.0))
    return np.asarray(made.image).astype(int)


def loss_of(pipe, found, pictures):
    """On draws of its own, under the embedding that a search started from and under the one that it found."""
    arguments, call = text_inputs(pipe, [found.words], EncodedTexts())
    side = own_side(pipe, call)
    latents = image_latents(pipe, pictures, side).repeat(DRAWS, 1, 1, 1)
    texts = {name: rows_repeated(value, DRAWS) for name, value in positive_inputs(arguments).items()}
    draws, loss = torch.Generator().manual_seed(7), BranchLoss(pipe, texts, side)
    more = torch.randn(latents.shape, generator=draws), torch.randint(1, 1000, (DRAWS,), generator=draws)
    with torch.no_grad():
        return [loss(latents, *more, text[None].repeat_interleave(DRAWS, 0)).mean().item()
                for text in (arguments[EMBEDDING][0], found.embedding)]


@pytest.mark.parametrize("name", EVERY)
def test_a_found_embedding_lowers_the_loss_and_serves_the_stock_pipeline(name, targets):
    """From both starts at once, whose texts have several lengths where a family does not fill them up."""
    pipe = small_family(name)
    arguments, _ = text_inputs(pipe, [TEXT], EncodedTexts())
    own = EmbeddedPrompt(TEXT, embedding=arguments[EMBEDDING][0], words=TEXT)
    assert np.abs(picture(pipe, own) - picture(pipe, Prompt(TEXT))).max() <= 1         # the words' own embedding
    found = find_embeddings(pipe, targets, Budget(20, 0.02, 16) if name == "aura-flow" else BUDGET)   # its weights are loud
    assert [f.start for f in found] == ["caption", "empty"]
    for one in found:
        before, after = loss_of(pipe, one, [targets[0].example.open()])
        assert after < before
        assert not torch.equal(one.embedding, text_inputs(pipe, [one.words], EncodedTexts())[0][EMBEDDING][0])
    plain = {k: v for k, v in guidance_arguments(pipe, 1, 4.0).items() if k != "negative_prompt"}
    stock = pipe(**embedded_inputs(pipe, found[1:], EncodedTexts()), **plain, num_inference_steps=2, output_type="np",
                 generator=[torch.Generator().manual_seed(noise_seed(found[1].text, 0))]).images[0]
    assert np.abs((stock * 255).round() - picture(pipe, found[1])).max() <= 1
    assert sorted(found[0].tensors("00000")) == sorted(
        ["00000", *(f"00000.{key}" for key in positive_inputs(arguments) if key != EMBEDDING)])
    assert picture(pipe, found[0], "og-stp").shape == stock.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "qwen-image", "z-image", "krea2"])
def test_an_image_finds_the_same_whatever_is_searched_beside_it(name, targets):
    pipe = small_family(name)
    together = find_embeddings(pipe, targets, Budget(3, 0.1, 2), seeds=(0, 1))
    alone = find_embeddings(pipe, targets, Budget(3, 0.1, 2), starts=("empty",), seeds=(1,))
    torch.testing.assert_close(alone[0].embedding, together[-1].embedding, atol=1e-3, rtol=0)


# ----- the loss

def knows(pipe, latents):
    """From now on the denoiser knows the only picture there is: whatever it sees, it says what noise that leaves."""
    row, kind, denoiser = FAMILIES[family(pipe)], prediction_kind(pipe.scheduler), denoiser_of(pipe)

    def say(module, args, kwargs, output):
        given = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        x, told = (next(given[n] for n in names if n in given) for names in (SAMPLE_NAMES, TIME_NAMES))
        x, listed = (torch.stack(x), True) if isinstance(x, list) else (x, False)
        timesteps = row.timestep(torch.as_tensor(told).double().flatten().expand(len(x)), 1000)
        rates = zip(*(rates_at(pipe.scheduler, t) for t in timesteps.tolist()), strict=True)
        alpha, sigma = (torch.tensor(r, dtype=x.dtype).view(-1, *[1] * (x.dim() - 1)) for r in rates)
        x0 = latents
        if x.dim() == 3:
            x0 = FluxPipeline._pack_latents(x0, *x0.shape) if x.shape[2] > x0.shape[1] else x0.flatten(2).mT
        x0 = (x0.unsqueeze(2) if x.dim() == 5 else x0).expand_as(x)
        said = row.sign * TARGETS[kind](x0, (x - alpha * x0) / sigma, alpha, sigma)
        if not listed and output[0].shape[1] == 2 * said.shape[1]:
            said = torch.cat([said, torch.zeros_like(said)], 1)          # a variance
        return (list(said) if listed else said,)
    denoiser.register_forward_hook(say, with_kwargs=True)


def through_the_vae(vae, pixels):
    """What is left of pixels (1, 3, H, W) -> (H, W, 3) in [0, 1]."""
    found = vae.encode(pixels.unsqueeze(2) if "Qwen" in type(vae).__name__ else pixels)
    decoded = vae.decode(found.latent if hasattr(found, "latent") else found.latent_dist.mode()).sample
    return (decoded.reshape(pixels.shape)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_a_denoiser_that_knows_the_picture_draws_it_and_has_no_loss(name):
    """So its latents, how they are laid out, what the denoiser is told of time, and the sign of its answer are the pipeline's."""
    pipe = small_family(name)
    arguments, call = text_inputs(pipe, [TEXT], EncodedTexts())
    side = own_side(pipe, call)
    latents, texts = image_latents(pipe, [noise(0, side=side)], side), positive_inputs(arguments)
    timesteps, more = torch.tensor([650]), torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    assert BranchLoss(pipe, texts, side)(latents, more, timesteps).item() > 0.1
    knows(pipe, latents)
    assert BranchLoss(pipe, texts, side)(latents, more, timesteps).item() < 1e-5
    drawn = pipe(prompt=TEXT, **guidance_arguments(pipe, 1, 4.0), num_inference_steps=3, output_type="np").images[0]
    np.testing.assert_allclose(drawn, through_the_vae(pipe.vae, to_pixels(noise(0, side=side), side)[None]), atol=2e-3)


def by_script(pipe, name, latents, more, timesteps, texts):
    """The loss of diffusers' example script."""
    sigma = (timesteps / 1000).view(-1, 1, 1, 1)
    output = SCRIPTS[name][1](pipe, (1 - sigma) * latents + sigma * more, timesteps, texts)
    return (output - (more - latents)).square().flatten(1).mean(1)


@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "sana" else ()) for n in SCRIPTS])
def test_the_loss_is_that_of_the_example_script(name):
    pipe, side = more_family(name), SIDES.get(name, 16)
    pictures, texts = [noise(0, i, side=side) for i in range(2)], [TEXT, "a bus on a blue one"]
    arguments, call = text_inputs(pipe, texts, EncodedTexts(), side=side)
    assert own_side(pipe, call) == side
    latents, pixels = image_latents(pipe, pictures, side), torch.stack([to_pixels(p, side) for p in pictures])
    expected = SCRIPTS[name][0](pipe, pixels, torch.zeros_like(latents))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    more, timesteps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([300.0, 800.0])
    found = BranchLoss(pipe, positive_inputs(arguments), side)(latents, more, timesteps)
    torch.testing.assert_close(found, by_script(pipe, name, latents, more, timesteps, texts), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_loss_of_flux_by_hand():
    """With the number that FLUX.1-dev is told for guidance as the pipeline tells it."""
    pipe = cached_pipeline("flux")
    text, pooled, text_ids = pipe.encode_prompt([TEXT], max_sequence_length=24)
    latents, more = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s), dtype=text.dtype) for s in (0, 1))
    found = BranchLoss(pipe, {EMBEDDING: text, "pooled_prompt_embeds": pooled}, 16)(latents, more, torch.tensor([600.0]))
    packed = FluxPipeline._pack_latents(0.4 * latents + 0.6 * more, 1, 4, 8, 8)
    output = pipe.transformer(packed, text, pooled, torch.tensor([0.6], dtype=text.dtype),
                              FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", text.dtype), text_ids).sample
    expected = (FluxPipeline._unpack_latents(output, 16, 16, 2) - (more - latents)).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["z-image", "qwen-image", "chroma", "flux2-klein"])
def test_recall_is_the_ratio_of_two_losses_of_the_example_script(name, targets):
    pipe, example = more_family(name), targets[0].example
    pipe = small_family(name)
    prompt = Prompt(example.captions[0], image_id=example.image_id)
    found = recall_scores(pipe, [prompt], {example.image_id: example}, Recall(n=1, timestep=600), seed=5)
    latents = image_latents(pipe, [example.open()], 16)
    more = torch.randn(latents.shape, generator=torch.Generator().manual_seed(noise_seed(prompt.text, 5)))
    length = {"max_sequence_length": 24} if name == "chroma" else {"max_sequence_length": 96} if name == "flux2-klein" else {}
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: encode(*args, **kwargs | length)
    under, without = (by_script(pipe, name, latents, more, torch.tensor([600.0]), [t]).item() for t in (prompt.text, ""))
    assert found == [pytest.approx(math.log(without / under), rel=1e-3, abs=1e-6)]


# ----- what is refused

def test_families_whose_loss_is_not_known_are_refused_by_name():
    assert set(FAMILIES) - set(TEXT_INPUTS) == {"hidream", "kolors", "longcat-image", "cogview4"}
    pipe = more_family("hidream")
    assert family(pipe) == "hidream"
    with pytest.raises(InputError, match="HiDreamImagePipeline is of none of the families whose loss is known: sd, "):
        check_searchable(pipe)
    with pytest.raises(InputError, match="recall asks for the loss of a denoiser: HiDreamImagePipeline"):
        recall_scores(pipe, caption_prompts([]), {}, Recall())
    assert not why_no_loss(cached_pipeline("sd3"))
