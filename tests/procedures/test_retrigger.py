"""Re-triggering: the search against a denoiser whose answer is known, by hand and by invariance; the judging; the command."""
import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from instruments import leave, noise, samples_folder, training_set
from PIL import Image
from safetensors.torch import load_file
from tiny import TOKENS, WIDTH, tiny_pipeline, tiny_sdxl
from training import with_broken_picture

from rotescope.commands import retrigger as retrigger_command
from rotescope.common.errors import InputError, RunError
from rotescope.datasets.plans.duplication import DuplicationPlan, apply_plan
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.calibration import calibrated, nulls_of
from rotescope.evaluate.statistics import retrigger_tally as judged
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.embedding_search.search import Budget, check_searchable, find_embeddings, search
from rotescope.mitigate.embedding_search.targets import choose_targets
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt, Prompt
from rotescope.mitigate.sampling.sampler import sample

N = 4 * 8 * 8  # elements of the tiny latents


class PointMass(torch.nn.Module):
    """The ideal denoiser where the embedding's first N elements m are the latents of the only picture: ε̂ = (x − α m)/σ, and
    v̂ = α ε̂ − σ m.

    Its loss is (α/σ)² ‖m − x₀‖²/N, so that the answer of every search is e = x₀ there, and the start's own elsewhere.
    """
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, pipe, kind):
        super().__init__()
        self.alpha_bar, self.kind, self.config = pipe.scheduler.alphas_cumprod.double(), kind, pipe.unet.config

    def forward(self, sample, timestep, encoder_hidden_states, **_):
        alpha, sigma = (share.sqrt().view(-1, 1, 1, 1) for share in (self.alpha_bar[timestep], 1 - self.alpha_bar[timestep]))
        m = encoder_hidden_states.flatten(1)[:, :N].view_as(sample)
        eps = (sample - alpha * m) / sigma
        return (eps if self.kind == "epsilon" else alpha * eps - sigma * m,)


def point_mass(kind):
    pipe = tiny_pipeline(kind).to(torch.float64)
    pipe.unet = PointMass(pipe, kind)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return listening(tiny_pipeline())


def listening(pipe):
    pipe = pipe.to(torch.float64)
    for module in pipe.unet.modules():  # random weights hardly listen to the text
        if hasattr(module, "to_v") and module.is_cross_attention:
            module.to_v.weight.data *= 20
            module.to_k.weight.data *= 20
    return pipe


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LATENTS, START = drawn(3, 4, 8, 8), drawn(3, TOKENS, WIDTH, seed=1)


# ----- the search

@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_first_step_by_hand(kind):
    """Adam's first step is the learning rate times the sign of the gradient, here that of m − x₀."""
    end, losses = search(point_mass(kind), LATENTS, START, [0, 1, 2], Budget(1, 0.1, 2))
    start, x0 = START.flatten(1), LATENTS.flatten(1)
    expected = torch.cat([start[:, :N] - 0.1 * (start[:, :N] - x0).sign(), start[:, N:]], 1)
    torch.testing.assert_close(end.flatten(1), expected, atol=1e-4, rtol=0)
    ratio = losses[0] / (start[:, :N] - x0).square().mean(1)  # the mean of (α/σ)² over an image's own two timesteps
    alpha_bar = tiny_pipeline().scheduler.alphas_cumprod.double()
    for image, found in enumerate(ratio):
        t = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(image))
        assert found == pytest.approx((alpha_bar[t] / (1 - alpha_bar[t])).mean().item())


def test_the_search_ends_at_the_picture():
    end, losses = search(point_mass("epsilon"), LATENTS, START, [0, 1, 2], Budget(150, 0.1, 4))
    far, near = ((e.flatten(1)[:, :N] - LATENTS.flatten(1)).abs().mean() for e in (START, end))
    assert near < 0.02 < 1 < far
    assert losses.shape == (150, 3)
    assert losses[-30:].mean() < 0.01 * losses[:30].mean()


def test_epsilon_and_v_are_the_same_search():
    """The same model told in two ways: the loss is counted in ε in both."""
    ends = [search(point_mass(kind), LATENTS, START, [0, 1, 2], Budget(5, 0.1, 2)) for kind in ("epsilon", "v_prediction")]
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_of_a_real_unet_by_hand(kind):
    """‖ε_θ(x_t, t, e) − ε‖², ε_θ = α v + σ x for a model of v, with nothing of ours but the order of the draws."""
    pipe = listening(tiny_pipeline(kind))
    _, losses = search(pipe, LATENTS, START, [5, 6, 7], Budget(1, 0.1, 2))
    alpha_bar = pipe.scheduler.alphas_cumprod.double()
    for image, seed in enumerate((5, 6, 7)):
        generator = torch.Generator().manual_seed(seed)
        t = torch.randint(1000, (2,), generator=generator)
        eps = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
        alpha, sigma = alpha_bar[t].sqrt().view(2, 1, 1, 1), (1 - alpha_bar[t]).sqrt().view(2, 1, 1, 1)
        x = alpha * LATENTS[image] + sigma * eps
        with torch.no_grad():
            out = pipe.unet(x, t, START[[image, image]]).sample
        predicted = out if kind == "epsilon" else alpha * out + sigma * x
        assert losses[0, image].item() == pytest.approx((predicted - eps).square().mean().item(), rel=1e-5)


def test_an_image_finds_the_same_alone_and_beside_others(pipe):
    budget = Budget(3, 0.1, 2)
    together, losses = search(pipe, LATENTS, START, [3, 4, 5], budget)
    again, _ = search(pipe, LATENTS, START, [3, 4, 5], budget)
    assert torch.equal(together, again)
    for i in (2, 0):
        with torch.inference_mode():
            alone, loss = search(pipe, LATENTS[[i]], START[[i]], [3 + i], budget)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(loss[:, 0], losses[:, i])
    other, _ = search(pipe, LATENTS[:1], START[:1], [9], budget)
    assert not torch.equal(other[0], together[0])
    assert (together - START).abs().flatten(1).amax(1).min() > 0.1  # it went somewhere
    assert not together.requires_grad
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(InputError, match="predicts sample, not ε, v or a flow"):
        check_searchable(tiny_pipeline("sample"))
    with pytest.raises(InputError, match="of none of the families whose loss is known: sd, "):
        check_searchable(SimpleNamespace())
    with pytest.raises(InputError, match="Img2ImgPipeline is given a picture beside the prompt"):
        check_searchable(AutoPipelineForImage2Image.from_pipe(tiny_sdxl()))
    for wrong in ({"steps": 0}, {"draws": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}):
        with pytest.raises(InputError, match="a search needs"):
            Budget(**wrong)
    with pytest.raises(RunError, match="lower learning rate"):
        search(point_mass("epsilon"), LATENTS, START, [0, 1, 2], Budget(3, 1e300, 1))


# ----- sampling with what was found

def test_the_captions_own_embedding_draws_the_captions_own_picture(pipe):
    text = "a cat on a blue background"
    embedded = EmbeddedPrompt(text, embedding=pipe.encode_prompt([text], "cpu", 1, False)[0][0])
    for name in ("none", "og-stp", "prompt-optimisation:iterations=1"):
        pictures = [np.asarray(next(sample(pipe, [prompt], get_mitigation(name), [0], num_inference_steps=3)).image)
                    for prompt in (Prompt(text), embedded)]
        assert np.array_equal(*pictures)
    with pytest.raises(InputError, match="reads the prompts"):
        next(sample(pipe, [embedded], get_mitigation("pad-mask"), [0], num_inference_steps=3))


def test_latents_are_what_the_vae_makes_of_the_picture(pipe):
    picture = noise(3, side=16)
    x = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None].double() / 127.5 - 1
    expected = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(image_latents(pipe, [picture]), expected, atol=1e-6, rtol=0)


def test_every_target_is_searched_for_from_every_start(pipe, images):
    targets, ticks = choose_targets(load_source(images), limit=2), []
    found = find_embeddings(pipe, targets, Budget(2, 0.1, 2), seeds=(0, 1), batch_size=6, on_found=lambda: ticks.append(1))
    assert [(f.image_id, f.start, f.seed) for f in found] == [
        (t.example.image_id, start, seed) for t in targets for start in ("caption", "empty") for seed in (0, 1)]
    assert len(ticks) == len(found) == 8
    assert all(f.embedding.shape == (TOKENS, WIDTH) and f.text for f in found)
    alone = find_embeddings(pipe, targets[1:], Budget(2, 0.1, 2), starts=("empty",), seeds=(1,))
    torch.testing.assert_close(alone[0].embedding, found[-1].embedding, atol=1e-6, rtol=0)


# ----- which images

def test_held_out_pictures_share_nothing_with_the_targets(tmp_path):
    data = training_set(tmp_path / "train")
    planned = apply_plan(data, DuplicationPlan(duplicated=3, copies=5, controls=2))
    others = training_set(tmp_path / "others", 60, 11)
    mixed = [*data.examples[:5], *others]
    targets = choose_targets(planned, mixed, limit=2)
    assert Counter(t.group for t in targets) == {"duplicated": 2, "control": 2, "heldout": 2}
    assert [t.group for t in targets[4:]] == ["heldout"] * 2  # last
    captions = {c for e in planned for c in e.captions if e.group == "duplicated"} | {t.prompt.text for t in targets[:4]}
    ids = {e.image_id for e in data}
    assert all(t.prompt.text not in captions and t.example.image_id not in ids for t in targets[4:])
    named = choose_targets(data, image_ids=[data[7].image_id])
    assert [(t.example, t.group) for t in named] == [(data[7], "training")]
    with pytest.raises(InputError, match="no training image is called 'x'"):
        choose_targets(data, image_ids=["x"])
    with pytest.raises(InputError, match="name others"):
        choose_targets(data, data.examples[:3])


# ----- judging

@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Found embeddings that always copy four images, and never copy four others, which the training set lacks."""
    folder = tmp_path_factory.mktemp("judged")
    data, others = training_set(folder / "train"), training_set(folder / "others", 4, 11)
    index = build_index(data, pixels())
    layers = {"descriptor": calibrated(index, nulls_of(index))}
    found = []
    for route, examples, group, k in (
            ("caption", data.examples[:4], "duplicated", 0), ("embedding", data.examples[:4], "duplicated", 4),
            ("caption", others.examples, "heldout", 0), ("embedding", others.examples, "heldout", 0)):
        made = samples_folder(folder / f"{route}-{group}", examples, lambda method, i, seed, k=k: i < k and seed, groups=(group,))
        found += judged.shots_of(route, read_samples(made), layers, {e.image_id: e for e in examples})
    return found


def test_always_and_never_copying_give_one_and_zero(shots):
    found = judged.tally(shots)["none"]
    embedding = found["duplicated"]["embedding"]
    assert (embedding["brought_back"], embedding["images"], embedding["rate"]) == (4, 4, 1)
    assert (embedding["copies"], embedding["samples"], embedding["sample_rate"]) == (4, 8, 0.5)  # one of two seeds
    assert embedding["p"] == pytest.approx(1 / 70)  # one of the 70 ways to pick four of eight
    assert embedding["interval"] == pytest.approx([0.025 ** (1 / 4), 1])
    assert {found["heldout"][route]["brought_back"] for route in ("caption", "embedding")} == {0}
    assert found["heldout"]["embedding"]["p"] is None
    assert found["duplicated"]["caption"]["p"] == 1
    assert embedding["p_adjusted"] == pytest.approx(2 / 70)  # the smaller of two
    assert (found["heldout"]["embedding"]["p_adjusted"], found["duplicated"]["caption"]["p_adjusted"]) == (None, 1)


def test_the_best_sample_of_an_image_is_its_copy(shots):
    image = shots[-1].record.image_id
    own = judged.image_figures([s for s in shots if s.record.image_id == shots[0].record.image_id])["none"]
    assert own["embedding"]["copies"] == 1
    assert own["embedding"]["similarity"] == pytest.approx(1)
    assert own["embedding"]["image"] == "embedding-none/none/images/P00000-S1.png"
    assert own["caption"]["similarity"] < 0.9
    assert judged.image_figures([s for s in shots if s.record.image_id == image])["none"]["embedding"]["copies"] == 0


def figures(k, n, p=None):
    return {"brought_back": k, "images": n, "p": p, "p_adjusted": p}


@pytest.mark.parametrize(("method", "cells", "heldout", "ends"), [
    ("og-stp", {"caption": figures(0, 4), "embedding": figures(4, 4, 0.014)}, figures(0, 4), "suppressed, not erased."),
    ("og-stp", {"caption": figures(4, 4), "embedding": figures(4, 4, 0.014)}, figures(0, 4), "not even suppressed."),
    ("none", {"caption": figures(4, 4), "embedding": figures(4, 4, 0.014)}, figures(0, 4), "memorized."),
    ("og-stp", {"caption": figures(0, 4), "embedding": figures(4, 4, 1)}, figures(4, 4), "so this proves nothing."),
    ("og-stp", {"caption": figures(0, 4), "embedding": figures(4, 4)}, None, "without them this proves nothing."),
    ("og-stp", {"caption": figures(0, 4), "embedding": figures(0, 4, 1)}, figures(0, 4), "does not prove that nothing is left."),
    ("pad-mask", {"caption": figures(0, 4)}, figures(0, 4), "no embedding can be tried on it."),
])
def test_conclusions_say_no_more_than_the_figures(method, cells, heldout, ends):
    said = judged.conclusion(method, "duplicated", cells, heldout and {"embedding": heldout})
    assert said.endswith(ends)
    assert f"by own captions {cells['caption']['brought_back']} of 4" in said


def test_pictures_that_come_back_as_easily_as_others_are_rarely_called_memorized():
    rng = np.random.default_rng(0)
    p = [judged.more_often(rng.binomial(8, 0.4), 8, rng.binomial(8, 0.4), 8) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05


# ----- the command

def heldout_folder(folder):
    folder.mkdir()
    for i, ground in enumerate(("green", "pink")):
        noise(100, i, side=16).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a turtle on a {ground} background")
    return folder


def test_the_command_from_end_to_end(base, images, tmp_path, capsys):
    """Among pictures that are broken, and held-out ones without a caption."""
    held, train = heldout_folder(tmp_path / "held"), with_broken_picture(images, tmp_path / "train")
    noise(9, side=16).save(held / "mute.png")
    argv = ["--model", base, "--train_data", train, "--heldout_data", held, "--mitigation", "og-stp", "pad-mask",
            "--max_images", "2", "--max_texts", "1", "--search_steps", "2", "--search_draws", "2", "--seeds", "0",
            "--num_inference_steps", "2", "--device", "cpu", "--output_dir", tmp_path / "out"]
    assert leave(retrigger_command.main, argv) == 0
    shown = capsys.readouterr()
    found = json.loads((tmp_path / "out/retrigger.json").read_text(encoding="utf-8"))
    assert json.loads(shown.out) == {"retrigger": str(tmp_path / "out/retrigger.json")}
    assert found["conclusions"][0] in " ".join(shown.err.split())
    assert "images brought back" in shown.err
    assert "all listed in retrigger.json" in shown.err
    assert [(item["of"], item["name"]) for item in found["left_out"]] == [("training", str(train / "broken.png"))]
    assert list(found["results"]) == ["none", "og-stp", "pad-mask"]
    assert list(found["refused"]) == ["pad-mask"]
    assert set(found["results"]["pad-mask"]["training"]) == {"caption", "paraphrase"}
    assert found["results"]["og-stp"]["training"]["embedding"]["samples"] == 2 * 2  # two images from two starts
    assert [i["group"] for i in found["images"]] == ["training"] * 2 + ["heldout"] * 2
    assert found["images"][0]["denoiser_rows"]["search"] == 2 * 2 * 2
    assert found["budget"] == {"steps": 2, "learning_rate": 0.1, "draws": 2, "denoiser_rows": 4}
    assert len(load_file(tmp_path / "out/embeddings.safetensors")) == 8
    for method in found["results"]:
        assert Image.open(tmp_path / f"out/retrigger-{method}.png").width > 300
    for route in found["images"][0]["routes"]["og-stp"].values():
        assert (tmp_path / "out/samples" / route["image"]).is_file()


def test_a_held_out_picture_that_was_trained_on_in_other_bytes_is_no_control(base, images, tmp_path):
    held = heldout_folder(tmp_path / "held")
    Image.open(images / "0.png").save(held / "2.png", compress_level=0)
    (held / "2.txt").write_text("a turtle on a grey background")
    argv = ["--model", base, "--train_data", images, "--heldout_data", held, "--max_images", "3", "--max_texts", "1",
            "--search_steps", "1", "--search_draws", "1", "--search_starts", "empty", "--seeds", "0",
            "--num_inference_steps", "1", "--device", "cpu", "--output_dir", tmp_path / "out"]
    assert leave(retrigger_command.main, argv) == 0
    found = json.loads((tmp_path / "out/retrigger.json").read_text(encoding="utf-8"))
    assert [i["text"] for i in found["images"] if i["group"] == "heldout"] == [
        "a turtle on a green background", "a turtle on a pink background"]
    assert found["results"]["none"]["heldout"]["embedding"]["images"] == 2
    assert found["notes"][0] == f"{held / '2.png'} is the training image {images / '0.png'} in other bytes"


@pytest.mark.parametrize(("wrong", "says"), [
    (["--search_steps", "0"], "a search needs"), (["--search_starts", "noise"], "caption or empty"),
    (["--search_seeds", "1", "1"], "each once"),
    (["--mitigation", "og-sto"], "did you mean 'og-stp'"), (["--max_images", "0"], "max_images"),
    (["--image_ids", "x"], "no training image is called 'x'"),
    (["--image_ids", "1234567890123456"], "no training image is called '1234567890123456'"),
    (["--guidance_scale", "1"], "above 1"),
])
def test_wrong_input_is_one_line_before_anything_runs(base, images, tmp_path, capsys, wrong, says):
    argv = ["--model", base, "--train_data", images, "--device", "cpu", "--output_dir", tmp_path / "out", *wrong]
    assert leave(retrigger_command.main, argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
