"""Small real parts for tests: a Stable Diffusion pipeline with random weights, and captioned images."""
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from rotescope.train.pretrain_unet import SCHEDULE
from rotescope.train.towers import make_tokenizer

WIDTH, TOKENS = 16, 24
VAE = dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
           sample_size=16, mid_block_add_attention=False,
           down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
UNET = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
NOUNS = ("cat", "bus", "frog", "pig", "crown", "gift", "rocket", "crab")


@lru_cache(maxsize=1)
def tokenizer():
    """The embedded model's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        return make_tokenizer(Path(folder))


def tiny_pipeline(prediction_type="epsilon"):
    """-> StableDiffusionPipeline, 16 × 16 px, latents 4 × 8 × 8, always with the same random weights."""
    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id))
        pipe = StableDiffusionPipeline(
            AutoencoderKL(**VAE), text, words, UNet2DConditionModel(**UNET),
            DPMSolverMultistepScheduler(**SCHEDULE, prediction_type=prediction_type),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_folder(folder, n=6, side=16):
    """n images of noise, each with a caption of its own (up to 16) in a side file -> the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {NOUNS[i % 8]} on a {('red', 'blue')[i // 8]} background")
    return folder
