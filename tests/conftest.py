"""At most two threads, deterministic kernels, no network: for every test."""
import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg",
               "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402  (libraries read the variables above when they load)
import torch  # noqa: E402
from tiny import image_folder, saved_pipeline  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
torch.use_deterministic_algorithms(True)


def pytest_collection_modifyitems(config, items):
    """A test on demand is left out where nobody asks for it."""
    unasked = [item for item in items if any(not os.environ.get(m.args[0]) for m in item.iter_markers("on_demand"))]
    config.hook.pytest_deselected(items=unasked)
    items[:] = [item for item in items if item not in unasked]


@pytest.fixture(autouse=True)
def few_null_pictures(request, monkeypatch):
    """What chance brings is learned from six pictures, but in slow tests: they try how good it is."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("rotescope.datasets.geometry.pixel_verifier.QUERIES", 6)
        monkeypatch.setattr("rotescope.evaluate.verification.matching.NULL", 6)
        monkeypatch.setattr("rotescope.evaluate.measurement.planted.PLANTED", 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of six captioned images."""
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny Stable Diffusion."""
    return saved_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A family's name -> the folder of its tiny model, made on first use."""
    from tiny_families import tiny_family
    folders = {}

    def base(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            tiny_family(name).save_pretrained(folders[name])
        return folders[name]
    return base
