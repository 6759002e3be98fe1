"""How far generated pictures lie from held-out real ones: KID and FID through torchmetrics, on features already computed."""
import torch

SUBSETS = 20


class Given(torch.nn.Module):
    """The feature extractor for what are features already."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def fidelity(generated, heldout, seed=0):
    """Features (n, d) and (m, d) -> {kid, fid, n}, or None when either holds fewer than two.

    Features are brought to length √d, so that the kernel sees cosines. KID: unbiased MMD² with the kernel (x·y / d + 1)³,
    mean over subsets of min(n, m). FID is biased upwards at small n: compare it only between sets of one size.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, since it takes seconds to import
    from torchmetrics.image.kid import KernelInceptionDistance
    if min(len(generated), len(heldout)) < 2:
        return None
    sets = [(_scaled(heldout), True), (_scaled(generated), False)]
    extractor = Given(sets[0][0].shape[1])
    kid = KernelInceptionDistance(feature=extractor, subsets=SUBSETS, subset_size=min(len(generated), len(heldout)))
    fid = FrechetInceptionDistance(feature=extractor)
    for features, real in sets:
        kid.update(features, real=real)
        fid.update(features, real=real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"kid": kid.compute()[0].item(), "fid": fid.compute().item(), "n": len(generated)}


def _scaled(features):
    features = torch.as_tensor(features).float()
    return torch.nn.functional.normalize(features, dim=1) * features.shape[1] ** 0.5
