"""How far generated pictures lie from held-out real ones, on features already computed: KID and FID through
torchmetrics, precision and recall through torch-fidelity."""

import torch

from rotescope.evaluate.quality.fidelity_figures import Fidelity

SUBSETS = 20
NEIGHBOURS = 3  # of Kynkäänniemi et al.


class Given(torch.nn.Module):
    """The feature extractor for what are features already."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def fidelity(generated, heldout, seed=0):
    """Features (n, d) and (m, d) -> Fidelity, or None when either holds fewer than two.

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
        return Fidelity(kid.compute()[0].item(), fid.compute().item(), len(generated),
                        *precision_recall(*(features for features, _ in reversed(sets))))


def precision_recall(generated, real):
    """Features (n, d), (m, d) -> precision, recall, Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1.

    Precision: the share of generated pictures within the distance of some real one to its k-th nearest other, k = 3; recall: the
    share of real ones within that of some generated one. None where a set has no k others. n and m should be alike: with few
    generated pictures recall is low whatever they are.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric
    if min(len(generated), len(real)) <= NEIGHBOURS:
        return None, None
    found = prc_features_to_metric(generated, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=10_000,
                                   verbose=False)
    return found["precision"], found["recall"]


def _scaled(features):
    features = torch.as_tensor(features).float()
    return torch.nn.functional.normalize(features, dim=1) * features.shape[1] ** 0.5
