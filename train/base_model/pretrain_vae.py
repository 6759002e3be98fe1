"""The embedded model's autoencoder: AutoencoderKL, 64 px -> 16 × 8 × 8."""
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from rotescope.train.base_model.streams import SEEDS, optimise, pool
from rotescope.train.base_model.towers import to_unit

VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(16, 32, 64, 128), layers_per_block=1,
           norm_num_groups=8, mid_block_add_attention=False, sample_size=64,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
KL_WEIGHT = 1e-4


def _patches(batch, side, rng):
    """Windows of `side` at random places, one an image; sprites are small, so most of a scene is ground."""
    y, x = rng.integers(0, 65 - side, (2, len(batch)))
    return torch.stack([image[:, a:a + side, b:b + side] for image, a, b in zip(batch, y, x, strict=True)])


def _edges(x):
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(1), (x[..., 1:] - x[..., :-1]).flatten(1)], 1)


def make_vae():
    """Every residual branch starts at zero, so that colour gets through the narrow stack from the first step."""
    vae = AutoencoderKL(**VAE)
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return vae


def reconstruction_loss(y, x, late):
    """Squared error finds the sprites fast; absolute error, later, makes their edges sharp. x, y: (B, 3, H, W) in [-1, 1]."""
    if late:
        return F.l1_loss(y, x) + F.l1_loss(_edges(y), _edges(x)) + 2 * F.mse_loss(y, x)
    return 4 * F.mse_loss(y, x) + 0.2 * F.l1_loss(y, x) + 2 * F.mse_loss(_edges(y), _edges(x))


def train_vae(out, steps, batch=32, lr=1.5e-3, n=20_000, noise=0.15, start=None):
    """Both halves, five sixths of the steps on 32 px windows, the rest on whole scenes; light KL.

    Noise on the latents, up to `noise` of their spread, makes the decoder forgive what a denoiser leaves over.
    """
    images, _ = pool(n, SEEDS["vae"], out)
    torch.manual_seed(SEEDS["vae"])
    rng, vae = np.random.default_rng(SEEDS["vae"]), make_vae()
    if start:
        warm_start(vae, AutoencoderKL.from_pretrained(start))

    def loss_of(step):
        x = to_unit(images[rng.integers(0, n, batch)])
        x = _patches(x, 32, rng) if step < steps * 5 // 6 else x
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()
        z = z + noise * z.detach().std() * torch.rand(batch, 1, 1, 1) * torch.randn_like(z)
        y = vae.decode(z).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.logvar.float().exp() - 1 - posterior.logvar.float())
        return reconstruction_loss(y, x, late=start or step > steps // 2) + KL_WEIGHT * kl.mean()

    for step, _ in optimise(vae, steps, lr, loss_of):
        if step % 500 == 499:
            vae.save_pretrained(out / "vae")
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_unit(images[i:i + 100])).latent_dist.mean for i in range(0, 2000, 100)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(out / "vae")


def warm_start(vae, other):
    """Copy every weight of another autoencoder that fits; of those with more channels, the part that fits."""
    target = vae.state_dict()
    for name, weight in other.state_dict().items():
        part = tuple(slice(0, min(a, b)) for a, b in zip(weight.shape, target[name].shape, strict=True))
        target[name][part] = weight[part]
