"""Images as the model is used: any shape, skipped layers, negative prompts, long captions, another scheduler."""
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, clip, image_folder, seeded, tiny_flux, tiny_pipeline, tiny_sd3, tiny_sdxl, tokenizer

from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt, Prompt, caption_prompts
from rotescope.mitigate.sampling.conditioning import Conditioning, prompt_lines
from rotescope.mitigate.sampling.jobs import batches, noise_seed
from rotescope.mitigate.sampling.picture_size import bucket, parse_resolution, prompts_in_buckets
from rotescope.mitigate.sampling.sampler import sample
from rotescope.models.schedulers import SCHEDULERS, check_scheduler_name, set_scheduler

LONG = "a cat and a bus and a frog and a pig and a crown and a gift and a rocket and a crab on a blue background with a panda"


def deep(make):
    """A tiny pipeline whose text encoders have three layers, so that one can be skipped."""
    pipe = make()
    pipe.text_encoder = seeded(lambda: Holder(clip(layers=3))).part
    if getattr(pipe, "text_encoder_2", None) is not None:
        pipe.text_encoder_2 = seeded(lambda: Holder(clip(type(pipe.text_encoder_2), layers=3))).part
    return pipe


class Holder:
    """Lets `seeded` make a single part."""
    def __init__(self, part):
        self.part, self.components = part, {"part": part}

    def set_progress_bar_config(self, **_):
        pass


def drawn(pipe, texts, method="none", **settings):
    settings = {"num_inference_steps": 3, **settings}
    prompts = [t if isinstance(t, Prompt) else Prompt(t) for t in texts]
    return [np.asarray(s.image) for s in sample(pipe, prompts, get_mitigation(method), (0,), **settings)]


def stock(pipe, text, **arguments):
    """What diffusers' own call gives."""
    found = pipe(text, guidance_scale=7.5, num_inference_steps=3,
                 generator=torch.Generator().manual_seed(noise_seed(text or LONG, 0)), **arguments)
    return np.asarray(found.images[0])


@pytest.mark.parametrize("kind", TINY)
def test_any_shape_in_every_family(kind):
    picture, = drawn(TINY[kind](), ["a cat"], "og-stp", resolution="32x16", num_inference_steps=2, guidance_scale=3.5,
                     negative_prompt="a red bus" if kind == "flux" else "")
    assert picture.shape == (16, 32, 3)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "pixart"])
def test_the_negative_prompt_is_the_pipelines(kind):
    pipe = TINY[kind]()
    given = {"pixart": {"use_resolution_binning": False}}.get(kind, {})
    ours = drawn(pipe, ["a cat"], negative_prompt="a red bus")[0]
    assert (ours == stock(pipe, "a cat", negative_prompt="a red bus", **given)).all()
    assert (ours != drawn(pipe, ["a cat"])[0]).any()


def test_layers_are_skipped_as_trainers_count():
    """SDXL takes the last but one by itself, and trainers leave it so."""
    pipe = deep(tiny_sdxl)
    for ours, skip in {1: None, 2: None, 3: 1}.items():
        assert (drawn(pipe, ["a cat"], clip_skip=ours)[0] == stock(pipe, "a cat", clip_skip=skip)).all()
    assert (drawn(pipe, ["a cat"], clip_skip=3)[0] != drawn(pipe, ["a cat"])[0]).any()
    with pytest.raises(InputError, match="take 1 .the last layer. to 3"):
        drawn(pipe, ["a cat"], clip_skip=9)


@pytest.mark.parametrize("skip", [None, 2, 3])
def test_a_long_caption_is_read_in_chunks(skip):
    """By hand: pieces of 22 tokens, each between its own start and end, the hidden states side by side."""
    pipe, words = deep(tiny_pipeline), tokenizer()

    def by_hand(text):
        ids, states = words(text, add_special_tokens=False).input_ids, []
        for piece in (ids[:22], ids[22:44]):
            row = [words.bos_token_id, *piece, words.eos_token_id]
            out = pipe.text_encoder(torch.tensor([row + [words.pad_token_id] * (24 - len(row))]), output_hidden_states=True)
            norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
            states.append(out.last_hidden_state if skip is None else norm(out.hidden_states[-skip]))
        return torch.cat([states[0][:, :23], states[1][:, 1:]], 1)

    with torch.no_grad():
        cond, uncond = by_hand(LONG), by_hand("")
    assert cond.shape == (1, 46, 16)
    expected = stock(pipe, None, prompt_embeds=cond, negative_prompt_embeds=uncond)
    assert (drawn(pipe, [LONG], max_token_length=44, clip_skip=skip)[0] == expected).all()
    assert (drawn(pipe, [LONG], max_token_length=22)[0] == drawn(pipe, [LONG])[0]).all()   # one chunk is the pipeline's own
    embedded = EmbeddedPrompt("a cat", embedding=pipe.encode_prompt("a cat", "cpu", 1, False)[0][0])
    assert (drawn(pipe, ["a cat"], "og-stp")[0] == drawn(pipe, [embedded], "og-stp")[0]).all()


def test_sdxl_joins_chunks_of_both_encoders():
    pipe = deep(tiny_sdxl)
    long, short = (drawn(pipe, [LONG], max_token_length=n)[0] for n in (44, 22))
    assert (long != short).any()
    alone, beside = drawn(pipe, [LONG], max_token_length=44, negative_prompt="a bus"), \
        drawn(pipe, [LONG, "a cat"], max_token_length=44, negative_prompt="a bus")
    assert np.abs(alone[0].astype(int) - beside[0]).max() <= 1


def test_what_is_cut_and_what_became_the_same_is_said():
    pipe = tiny_pipeline()
    prompts = [Prompt(LONG), Prompt(LONG + " and a tulip"), Prompt("a (cat:1.3) or {red|blue}"), Prompt("a cat")]
    cut, marked = prompt_lines(pipe, prompts, Conditioning())
    assert cut.startswith("2 of 4 prompts are longer than 22 tokens, and what follows is cut (--max_token_length 44 reads more")
    assert "2 prompts became the same as another by it" in cut
    assert "read as text" in marked
    assert "(cat:1.3)" in marked
    assert prompt_lines(pipe, prompts[:2], Conditioning(max_token_length=66)) == []


@pytest.mark.parametrize(("make", "settings", "line"), [
    (tiny_sd3, {"clip_skip": 2}, "--clip_skip is for Stable Diffusion 1, 2 and XL"),
    (tiny_flux, {"max_token_length": 44}, "--max_token_length is for Stable Diffusion"),
    (tiny_pipeline, {"max_token_length": 30}, "take 22, 44 or 66"),
    (tiny_pipeline, {"resolution": "20x16"}, "resolution=20x16: take multiples of 8"),
    (tiny_pipeline, {"resolution": "wide"}, "take a side .512., a width and a height"),
])
def test_what_a_pipeline_cannot_do_is_one_line(make, settings, line):
    with pytest.raises(InputError, match=line):
        drawn(make(), ["a cat"], **settings)


@pytest.mark.parametrize(("text", "parsed"), [
    (None, None), (512, (512, 512)), ("512", (512, 512)), ("832x1216", (832, 1216)), ((64, 32), (64, 32)),
    ("buckets", ("buckets", None)), ("buckets:1024", ("buckets", 1024))])
def test_sizes_are_read(text, parsed):
    assert parse_resolution(text) == parsed


@pytest.mark.parametrize(("picture", "side", "expected"), [  # kohya's table for 1024² and for 512² in steps of 64
    ((1000, 1000), 1024, (1024, 1024)), ((2000, 3000), 1024, (832, 1216)), ((1920, 1080), 1024, (1344, 768)),
    ((3000, 2000), 512, (640, 384)), ((100, 1000), 512, (256, 1024)), ((640, 480), 512, (576, 448))])
def test_buckets_are_the_trainers(picture, side, expected):
    assert bucket(*picture, side) == expected


def test_each_prompt_is_drawn_in_its_pictures_bucket(tmp_path):
    folder = image_folder(tmp_path / "photos", 3)
    Image.new("RGB", (48, 16), (200, 30, 30)).save(folder / "1.png")
    Image.new("RGB", (16, 48), (30, 30, 200)).save(folder / "2.png")
    manifest = load_source(folder)
    config = type("Config", (), {"resolution": "buckets:16", "model": str(tmp_path)})
    prompts = prompts_in_buckets(config, caption_prompts(manifest), manifest)
    sizes = [p.size for p in prompts]
    assert sizes == [(16, 16), (24, 8), (8, 24)]
    assert [len(b) for b in batches(prompts, (0, 1), 8)] == [2, 2, 2]    # never two shapes in a batch
    found = {s.prompt_index: s.image.size for s in sample(tiny_pipeline(), prompts, get_mitigation("none"), (0,),
                                                          num_inference_steps=2, resolution="buckets:16")}
    assert found == dict(enumerate(sizes))
    with pytest.raises(InputError, match="these belong to none"):
        prompts_in_buckets(config, [Prompt("a cat")], manifest)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_named_scheduler_draws(name):
    pipe = tiny_pipeline()
    set_scheduler(pipe, name)
    one, two = drawn(pipe, ["a cat", "a bus"])
    assert np.abs(one.astype(int) - drawn(pipe, ["a cat"])[0]).max() <= 1   # alone as beside another


def test_a_scheduler_keeps_the_models_noise_and_must_fit():
    pipe = tiny_pipeline("v_prediction")
    set_scheduler(pipe, "EulerDiscreteScheduler")
    assert isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(InputError, match="does not fit FluxPipeline"):
        set_scheduler(tiny_flux(), "ddim")
    with pytest.raises(InputError, match="did you mean 'euler'"):
        check_scheduler_name("eular")
