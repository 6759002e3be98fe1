"""Streams of freshly composed scenes, and the optimisation that the stages of pretraining share."""
import json
import time

import numpy as np
import torch

from rotescope.datasets.emoji.scenes import PAIR_SHARE, scenes

SEEDS = {"contrastive": 1, "vae": 2, "unet": 3, "unet again": 4, "judge": 5}  # and scene streams; the splits have 101, 202
PAIRS_FOR_TOWERS = 0.35  # share of scenes with two objects in the towers' stream


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
