"""The ways of repairing a LoRA on a tiny Stable Diffusion with a LoRA of random numbers."""
import pytest
import torch
from tiny import image_folder, saved_lora, saved_pipeline

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.models.adapters.adapter_file import read_adapter
from rotescope.models.adapters.low_rank import LowRankUpdate, with_gains
from rotescope.models.pipelines import load_pipeline
from rotescope.train.repair.base_anchored import BaseAnchored, weakest_off
from rotescope.train.repair.leak_directed import LeakDirected, loss_lowered
from rotescope.train.repair.strength import Strength
from rotescope.train.repair.unlearning import Unlearning
from rotescope.train.repair.weight_repair import RepairContext

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a LoRA beside it, and six captioned pictures."""
    made = tmp_path_factory.mktemp("repair")
    saved_pipeline(made / "model")
    saved_lora(made)
    image_folder(made / "photos")
    return made


@pytest.fixture
def context(folder):
    data = load_source(folder / "photos")
    return RepairContext(load_pipeline(folder / "model"), read_adapter(folder / FILE), Manifest(data.examples[:2]),
                         Manifest(data.examples[2:]), resolution=16)


def differences(after, context):
    return {name: float((after[name].delta() - low.delta()).norm()) for name, low in context.updates.items()}


def test_doses_that_change_nothing_are_the_identity(context):
    for way, dose in ((Strength(), 1.0), (BaseAnchored(), 0.0), (LeakDirected(), 0.0)):
        after = way.update(context, dose)
        assert all(after[name] is low for name, low in context.updates.items())


def test_strength_scales_every_update(context):
    after = Strength().update(context, 0.5)
    assert all(torch.allclose(after[name].delta(), low.delta() / 2) for name, low in context.updates.items())
    halved, gained = context.attached.numbers(after), context.attached.numbers(context.updates, 0.5)
    assert all(map(torch.allclose, halved, gained))


def test_base_anchored_keeps_what_lies_in_the_bases_principal_subspace(context):
    """Of a layer with one channel inside and one orthogonal to it, quantile ½ takes the orthogonal one, stronger or not."""
    name, weight = next((n, w) for n, w in context.weights.items() if min(w.shape) >= 16)
    u, _, vt = torch.linalg.svd(weight)
    up, down = torch.stack([u[:, 0], 9 * u[:, -1]], 1), torch.stack([vt[0], vt[min(weight.shape) - 1]])
    context.updates[name] = LowRankUpdate(name, up, down)
    after = BaseAnchored(base_rank=2).update(context, 0.5)
    assert torch.allclose(after[name].delta(), torch.outer(u[:, 0], vt[0]), atol=1e-4)
    others = [len(context.channels[n].values) for n in context.weights if n != name]
    assert set(others) == {4}
    assert all(torch.linalg.matrix_rank(after[n].delta(), rtol=1e-4) == 2 for n in context.weights if n != name)


def test_weakest_off():
    assert weakest_off(torch.tensor([0.3, 0.1, 0.2, 0.9]), 0.5).tolist() == [1, 0, 0, 1]
    assert weakest_off(torch.tensor([0.3, 0.1]), 0.0).tolist() == [1, 1]


def loss_at(context, updates, which=0):
    attached = context.attached
    attached.use(attached.numbers(updates))
    with torch.no_grad():
        return float(attached.losses[which](attached.predictor, next(attached.batches(which, 4, 0))).mean())


def test_what_a_channel_serves_is_the_slope_of_the_loss(context):
    """∂L/∂gain by one backward pass, at gain 1, against central differences of the loss with one gain moved."""
    slopes = loss_lowered(context, 0, [1.0], 1)
    name = max(slopes, key=lambda n: float(slopes[n].abs().max()))
    i, low, channels = int(slopes[name].abs().argmax()), context.updates[name], context.channels[name]

    def moved(by):
        gains = torch.ones(len(channels.values))
        gains[i] += by
        return loss_at(context, context.updates | {name: with_gains(low, channels, gains)})
    step = 0.05
    assert -(moved(step) - moved(-step)) / (2 * step) == pytest.approx(float(slopes[name][i]), rel=0.03)


@pytest.mark.slow
def test_the_scores_of_a_set_sum_to_what_the_lora_gives_it(context):
    """Completeness: Σ sᵢ = L(base) − L(LoRA)."""
    found = loss_lowered(context, 0, [(n + 0.5) / 16 for n in range(16)], 1)
    off = {name: LowRankUpdate(name, 0 * low.up, low.down, low.scale) for name, low in context.updates.items()}
    wanted = loss_at(context, off) - loss_at(context, context.updates)
    assert float(sum(each.sum() for each in found.values())) == pytest.approx(wanted, rel=0.03)


def test_leak_directed_raises_the_loss_of_what_leaks_most(context):
    before = [loss_at(context, context.updates, which) for which in (0, 1)]
    way = LeakDirected(points=2, batches=2)
    scores = way.scores(context)
    after = way.update(context, 0.1)
    out = sum(int(torch.linalg.matrix_rank(after[n].delta(), rtol=1e-4) < 4) for n in scores)
    assert out > 0
    assert sum(d > 0 for d in differences(after, context).values()) == out
    rise = [loss_at(context, after, which) - start for which, start in enumerate(before)]
    assert rise[0] > rise[1]


@pytest.mark.slow
def test_unlearning_leads_leaking_captions_to_the_base(context):
    """The distance to the base's prediction falls on leaking pictures; to the LoRA's own it stays small on the others."""
    attached = context.attached
    off = {name: LowRankUpdate(name, 0 * low.up, low.down, low.scale) for name, low in context.updates.items()}

    def predicted(updates, which):
        attached.use(attached.numbers(updates))
        with torch.no_grad():
            return attached.predictor(*attached.losses[which].asked(next(attached.batches(which, 8, 5)))[0])
    before, base = predicted(context.updates, 0), predicted(off, 0)
    kept = predicted(context.updates, 1)
    after = Unlearning(learning_rate=0.02).update(context, 40)
    assert all(after[name].down is low.down for name, low in context.updates.items())
    near = float((predicted(after, 0) - base).norm() / (before - base).norm())
    away = float((predicted(after, 1) - kept).norm() / (kept - predicted(off, 1)).norm())
    assert near < 0.8
    assert near < 1 - 0.2 * away


def test_ways_with_data_need_them_and_a_known_loss(folder):
    alone = RepairContext(load_pipeline(folder / "model"), read_adapter(folder / FILE))
    with pytest.raises(InputError, match="needs the training data"):
        LeakDirected().update(alone, 0.1)
    assert BaseAnchored().update(alone, 0.5).keys() == alone.updates.keys()
