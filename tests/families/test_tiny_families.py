"""The small pipelines make pictures, listen to guidance, and come back from a folder as they were."""
import numpy as np
import pytest
from diffusers import DiffusionPipeline
from families.more_families import MORE_FAMILIES, images, more_family


@pytest.mark.slow   # what is made of them is tried beside the adapters
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_a_small_pipeline_works_as_a_large_one(name, tmp_path):
    pipe = more_family(name)
    guided = images(pipe, name)
    assert guided.shape[0] == 2
    assert guided.shape[1:3] in ((16, 16), (32, 32))
    assert guided.shape[3] == (4 if name == "qwen-image-21" else 3)
    assert np.isfinite(guided).all()
    assert guided.std() > 0.01
    assert not np.array_equal(guided[0], guided[1])
    assert not np.array_equal(images(pipe, name, guided=False), guided)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is type(pipe)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(images(again, name), guided)
