"""The embedded model's text tower, which conditions the denoiser, and the image tower that measures alignment."""
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from rotescope.datasets.emoji.scenes import all_captions
from rotescope.train.base_model.streams import PAIRS_FOR_TOWERS, SEEDS, optimise, pool
from rotescope.train.base_model.towers import (
    caption_accuracy,
    contrastive_loss,
    make_tokenizer,
    make_towers,
    to_text_model,
    to_unit,
    tokenize,
)


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
