"""The embedded model's denoiser: UNet2DConditionModel on latents computed once; one process, or several under torchrun."""
import copy
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from rotescope.datasets.emoji.scenes import PAIR_SHARE, all_captions
from rotescope.train.base_model.streams import PAIRS_FOR_TOWERS, SEEDS, pool
from rotescope.train.base_model.towers import to_unit, tokenize

UNET = dict(sample_size=8, in_channels=16, out_channels=16, block_out_channels=(64, 128), layers_per_block=1,
            cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


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
    """Epsilon prediction; half the timesteps uniform, half where layout and object are decided: 250 to 850.

    On streams of its own and on the towers', which has more pairs: two objects at once are what it learns last.
    """
    rank, world = join_processes()
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    streams = (latents_of(out, vae, 60_000, SEEDS["unet"]), latents_of(out, vae, 60_000, SEEDS["unet again"]),
               latents_of(out, vae, 40_000, SEEDS["contrastive"], PAIRS_FOR_TOWERS))
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
        t = torch.where(torch.rand(batch) < 0.5, torch.randint(250, 850, (batch,)), torch.randint(0, 1000, (batch,)))
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
