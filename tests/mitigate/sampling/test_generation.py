"""generate(): in memory what the command writes to a folder."""
import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import tiny_pipeline

from rotescope.common.errors import InputError
from rotescope.mitigate.methods.transition import TransitionGuidance
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.generation import GeneratedImage, generate, generate_to_folder
from rotescope.mitigate.sampling.options import GenerateConfig

TEXTS = ["a cat on a blue background", "a bus", "a bus"]
STEPS = 3


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_it_makes_what_the_command_writes(base, tmp_path, monkeypatch):
    """A folder for a model, as the command has it; the same pictures and records, image by image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    mitigations = ("none", "og-stp:transition=700")
    out = generate_to_folder(GenerateConfig("prompts.txt", "out", model=str(base), mitigation=mitigations,
                                            seeds=(0, 1), num_inference_steps=STEPS, device="cpu"))
    before = sorted(tmp_path.rglob("*"))
    rows = pq.read_table(out / "records.parquet").to_pylist()
    found = list(generate(base, TEXTS, mitigations, [0, 1], num_inference_steps=STEPS))
    assert len(found) == len(rows) == 12
    for image, row in zip(found, rows, strict=True):
        assert same(image.image, Image.open(io.BytesIO((out / row["image"]).read_bytes())))
        assert (image.mitigation, image.prompt.text, image.seed) == (row["method"], row["prompt"], row["seed"])
        for key in ("noise_seed", "denoiser_rows", "denoiser_calls", "transition_timestep", "timesteps"):
            assert getattr(image, key) == row[key]
        np.testing.assert_allclose(image.prediction_gaps, row["prediction_gaps"], rtol=1e-6)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written


def test_prompts_and_mitigations_come_in_every_form(pipe):
    settings = {"num_inference_steps": STEPS}
    (text,) = generate(pipe, TEXTS[0], "og-stp", **settings)
    (objects,) = generate(pipe, [Prompt(TEXTS[0], "control", "7")], TransitionGuidance(-2.0, 650), **settings)
    assert isinstance(text, GeneratedImage)
    assert (text.prompt, objects.prompt) == (Prompt(TEXTS[0]), Prompt(TEXTS[0], "control", "7"))
    assert same(text.image, objects.image)
    assert replace(text, image=None, prompt=None) == replace(objects, image=None, prompt=None)
    assert text.mitigation == "og-stp"


def test_a_text_that_comes_twice_gets_another_picture(pipe):
    one, two = generate(pipe, TEXTS[1:], num_inference_steps=STEPS)
    assert one.noise_seed != two.noise_seed
    assert not same(one.image, two.image)


def test_it_yields_as_it_goes_and_leaves_the_pipeline_as_it_was(pipe):
    kind = type(pipe)
    pipe.set_progress_bar_config(disable=True, desc="mine")
    images = generate(pipe, TEXTS, ["og-stp"], batch_size=1, num_inference_steps=STEPS)
    next(images)
    assert type(pipe) is kind
    images.close()
    assert pipe._progress_bar_config == {"disable": True, "desc": "mine"}


@pytest.mark.parametrize(("changed", "said"), [
    ({"mitigations": ["og-stpp"]}, "did you mean"), ({"mitigations": ["none", "none"]}, "named twice"),
    ({"seeds": []}, "a seed"), ({"guidance_scale": 1.0, "mitigations": "stp"}, "above 1"),
    ({"prompts": []}, "nothing to generate"),
    ({"mitigations": []}, "nothing to generate"),
    ({"mitigations": ["amg"]}, "holds no images"), ({"pipe": "no/such/model/anywhere"}, "no model"),
])
def test_what_is_wrong_is_told_at_the_call(pipe, changed, said):
    with pytest.raises(InputError, match=said):
        generate(**{"pipe": pipe, "prompts": TEXTS, **changed})
