"""Make the embedded base model from freshly composed scenes, in three stages, as Stable Diffusion was made.

    python -m rotescope.train.pretrain contrastive --out work/base     # text and image towers; the alignment metric
    python -m rotescope.train.pretrain judge       --out work/base     # the image tower again, on softened scenes
    python -m rotescope.train.pretrain vae         --out work/base     # AutoencoderKL, 64 px -> 16 × 8 × 8
    python -m rotescope.train.pretrain unet        --out work/base     # UNet2DConditionModel, with EMA and caption dropout
    python -m rotescope.train.pretrain pack        --out work/base     # fp16, Stable Diffusion's layout, SHA256SUMS

The first two are independent of each other; run them with OMP_NUM_THREADS=1 beside each other. Hours, seeds and results
are in train/base/README.md. Needed once: the result ships.
"""
import argparse
import copy
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from rotescope.datasets.emoji.scenes import PAIR_SHARE, all_captions, scenes
from rotescope.models import portable_text_encoder
from rotescope.runs import sha256
from rotescope.train.towers import (
    EMBED_DIM,
    VISION,
    caption_accuracy,
    contrastive_loss,
    make_tokenizer,
    make_towers,
    to_text_model,
    to_unit,
    tokenize,
)

SEEDS = {"contrastive": 1, "vae": 2, "unet": 3, "judge": 5}  # and scene streams; the splits have 101, 202
VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(16, 32, 64, 128), layers_per_block=1,
           norm_num_groups=8, mid_block_add_attention=False, sample_size=64,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
UNET = dict(sample_size=8, in_channels=16, out_channels=16, block_out_channels=(64, 128), layers_per_block=1,
            cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
KL_WEIGHT = 1e-4
PAIRS_FOR_TOWERS = 0.35  # share of scenes with two objects


def pool(n, seed, cache, pair_share=PAIR_SHARE):
    """n scenes of one stream -> uint8 images (n, 3, 64, 64) and their captions; kept beside the run."""
    images, captions = cache / f"scenes-{seed}-{n}.npy", cache / f"scenes-{seed}-{n}.json"
    if not captions.exists():
        drawn = [(np.asarray(s.image), s.caption) for s in scenes(n, seed, pair_share)]
        np.save(images, np.stack([pixels for pixels, _ in drawn]).transpose(0, 3, 1, 2))
        captions.write_text(json.dumps([text for _, text in drawn]))
    return torch.from_numpy(np.load(images)), json.loads(captions.read_text())


def optimise(model, steps, lr, loss_of, every=100, weight_decay=1e-2):
    """AdamW, one-cycle, clipped at 1; yields (step, loss) after each step."""
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=0.05)
    started = time.time()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(step)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        opt.step()
        schedule.step()
        if step % every == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - started:.0f} s", flush=True)
        yield step, loss


# ----- autoencoder

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


# ----- text and image towers

def train_contrastive(out, steps, batch=192, lr=2e-3, n=40_000, pair_share=PAIRS_FOR_TOWERS):
    """Both towers on one stream with more pairs than usual; images get a little noise."""
    images, captions = pool(n, SEEDS["contrastive"], out, pair_share)
    held, held_captions = pool(1000, SEEDS["contrastive"] + 10, out)
    tokenizer = make_tokenizer(out / "tokenizer")
    every = all_captions()
    ids, index = tokenize(tokenizer, every), {c: i for i, c in enumerate(every)}
    group = torch.tensor([index[c] for c in captions])
    torch.manual_seed(SEEDS["contrastive"])
    towers, rng = make_towers(len(tokenizer)), np.random.default_rng(SEEDS["contrastive"])

    def loss_of(_):
        b = rng.integers(0, n, batch)
        x = to_unit(images[b])
        image = towers.encode_image(x + 0.1 * torch.rand(batch, 1, 1, 1) * torch.randn_like(x), normalize=True).float()
        text = towers.encode_text(ids[group[b]], normalize=True).float()
        return contrastive_loss(image, text, towers.logit_scale.exp().clamp(max=100), group[b])

    for step, _ in optimise(towers, steps, lr, loss_of, every=50):
        if step % 200 == 199 or step == steps - 1:
            print("caption accuracy", caption_accuracy(towers, tokenizer, held, held_captions), flush=True)
            save_file(towers.state_dict(), out / "towers.safetensors")
    model = to_text_model(towers.eval(), tokenizer)
    with torch.no_grad():  # the two are one
        ours, theirs = towers.encode_text(ids[:50]), model(ids[:50])
        torch.testing.assert_close(theirs.pooler_output @ towers.text_projection, ours, atol=1e-4, rtol=1e-4)
    model.save_pretrained(out / "text_encoder")


def soften(x, rng):
    """Half of the images shrunk by up to 3 and enlarged again, with a little noise: as a young autoencoder would show them."""
    half = x[::2]
    small = F.interpolate(half, size=int(rng.integers(22, 65)), mode="bilinear", antialias=True)
    x = x.clone()
    noise = 0.15 * torch.rand(len(half), 1, 1, 1) * torch.randn_like(half)
    x[::2] = F.interpolate(small, size=x.shape[-1], mode="bicubic").clamp(-1, 1) + noise
    return x


def train_judge(out, steps, batch=96, lr=1e-3, n=40_000, pair_share=PAIRS_FOR_TOWERS):
    """The image tower alone on softened scenes, against the finished text tower, so that alignment is not a test of sharpness."""
    images, captions = pool(n, SEEDS["contrastive"], out, pair_share)
    held, held_captions = pool(1000, SEEDS["contrastive"] + 10, out)
    tokenizer, index = CLIPTokenizer.from_pretrained(out / "tokenizer"), {c: i for i, c in enumerate(all_captions())}
    towers = make_towers(len(tokenizer))
    towers.load_state_dict(load_file(out / "towers.safetensors"))
    towers.requires_grad_(False).visual.requires_grad_(True)
    with torch.no_grad():
        texts = towers.encode_text(tokenize(tokenizer, list(index)), normalize=True)
    target = torch.tensor([index[c] for c in captions])
    torch.manual_seed(SEEDS["judge"])
    rng = np.random.default_rng(SEEDS["judge"])

    def loss_of(_):
        b = rng.integers(0, n, batch)
        image = towers.encode_image(soften(to_unit(images[b]), rng), normalize=True).float()
        return F.cross_entropy(towers.logit_scale.exp() * image @ texts.T, target[b])  # against every caption

    for step, _ in optimise(towers, steps, lr, loss_of, every=50):
        if step % 250 == 249 or step == steps - 1:
            soft = ((soften(to_unit(held), rng).clamp(-1, 1) + 1) * 127.5).byte()
            print("caption accuracy", caption_accuracy(towers, tokenizer, held, held_captions),
                  "softened", caption_accuracy(towers, tokenizer, soft, held_captions), flush=True)
            save_file(towers.state_dict(), out / "judge.safetensors")


# ----- denoiser

@torch.no_grad()
def latents_of(out, vae, n, seed, pair_share=PAIR_SHARE):
    """Scaled latents of a stream of scenes (n, 16, 8, 8), sampled once, and caption ids; kept beside the run."""
    images, captions = pool(n, seed, out, pair_share)
    file, index = out / f"latents-{seed}-{n}.safetensors", {c: i for i, c in enumerate(all_captions())}
    if not file.exists():
        torch.manual_seed(seed)
        parts = [vae.encode(to_unit(x)).latent_dist.sample() * vae.config.scaling_factor for x in images.split(200)]
        save_file({"latents": torch.cat(parts)}, file)
    return load_file(file)["latents"], torch.tensor([index[c] for c in captions])


def text_table(out):
    """Hidden states of every caption and, last, of the empty one (2401, 24, 128)."""
    model, tokenizer = CLIPTextModel.from_pretrained(out / "text_encoder"), CLIPTokenizer.from_pretrained(out / "tokenizer")
    with torch.no_grad():
        return torch.cat([model.eval()(ids).last_hidden_state for ids in tokenize(tokenizer, [*all_captions(), ""]).split(200)])


def join_processes():
    """-> rank, number of processes; more than one under torchrun."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters, world):
    if world > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters]) / world
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))


def train_unet(out, steps, batch=64, lr=1.5e-3, dropout=0.1, decay=0.999, start=None):
    """Epsilon prediction; half the timesteps uniform, half from the noisier 70 %, where layout and object are decided.

    On a stream of its own and on the towers', which has more pairs: two objects at once are what it learns last.
    """
    rank, world = join_processes()
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    streams = latents_of(out, vae, 60_000, SEEDS["unet"]), latents_of(out, vae, 40_000, SEEDS["contrastive"], PAIRS_FOR_TOWERS)
    latents, captions = (torch.cat(parts) for parts in zip(*streams, strict=True))
    n = len(latents)
    table, batch = text_table(out), batch // world
    torch.manual_seed(SEEDS["unet"])
    unet, noising = UNet2DConditionModel(**UNET), DDPMScheduler(**SCHEDULE)
    if start:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(start, torch_dtype=torch.float32).state_dict())
    average, predict, parameters = copy.deepcopy(unet).requires_grad_(False), torch.compile(unet), list(unet.parameters())
    opt = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2, fused=True)
    # warm up, hold, and fall over the last third
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: min(1, (k + 1) / 300, 1.02 - max(0, 3 * k / steps - 2)))
    torch.manual_seed(SEEDS["unet"] + rank)
    started = time.time()
    for step in range(steps):
        b = torch.randint(n, (batch,))
        caption = torch.where(torch.rand(batch) < dropout, len(table) - 1, captions[b])
        t = torch.where(torch.rand(batch) < 0.5, torch.randint(300, 1000, (batch,)), torch.randint(0, 1000, (batch,)))
        noise = torch.randn_like(latents[b])
        loss = F.mse_loss(predict(noising.add_noise(latents[b], noise, t), t, table[caption]).sample, noise)
        opt.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        opt.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - min(decay, (step + 1) / (step + 10)))
        if rank == 0 and step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - started:.0f} s", flush=True)
        if rank == 0 and (step % 500 == 499 or step == steps - 1):
            average.save_pretrained(out / "unet")


# ----- the result

def pack_judge(out, folder):
    towers = {k: v.half() if v.is_floating_point() else v for k, v in load_file(out / "judge.safetensors").items()
              if k.startswith("visual.") or k in ("text_projection", "logit_scale")}
    folder.mkdir(exist_ok=True)
    save_file(towers, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"embed_dim": EMBED_DIM, "vision": VISION}, indent=2) + "\n")


def train_pack(out, _):
    """Everything in fp16, in Stable Diffusion's layout, with the image tower beside it -> train/base."""
    base = Path(__file__).parent / "base"
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, prediction_type="epsilon")
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"), text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"), unet=UNet2DConditionModel.from_pretrained(out / "unet"),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(base)
    portable_text_encoder(base / "text_encoder")
    for name in ("vocab.json", "merges.txt"):  # for readers of CLIP's older layout
        (base / "tokenizer" / name).write_bytes((out / "tokenizer" / name).read_bytes())
    if (out / "judge.safetensors").exists():  # else the one that ships stays: the denoiser alone went on
        pack_judge(out, base / "alignment")
    files = sorted(p for p in base.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".json", ".txt"))
    (base / "SHA256SUMS").write_text("".join(f"{sha256(p)}  {p.relative_to(base).as_posix()}\n" for p in files))
    print(f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB in {base}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("contrastive", "judge", "vae", "unet", "pack"))
    parser.add_argument("--out", type=Path, default=Path("work/base"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--weights", help="vae, unet: go on from those in this folder, such as train/base/unet")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    more = {"start": args.weights} if args.weights else {}
    globals()[f"train_{args.stage}"](args.out, args.steps, **more)


if __name__ == "__main__":
    main()
