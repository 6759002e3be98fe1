"""Small real parts for tests: pipelines of five families with random weights, and captioned images."""
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from rotescope.train.base_model.pretrain_unet import SCHEDULE
from rotescope.train.base_model.towers import make_tokenizer

WIDTH, TOKENS = 16, 24
VAE = dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
           sample_size=16, mid_block_add_attention=False, shift_factor=0.0,
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
    return seeded(lambda: StableDiffusionPipeline(
        text_encoder=clip(), vae=AutoencoderKL(**VAE), tokenizer=tokenizer(), unet=UNet2DConditionModel(**UNET),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, prediction_type=prediction_type),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def tiny_sdxl():
    """Two text encoders, pooled text and sizes beside them."""
    return seeded(lambda: StableDiffusionXLPipeline(
        AutoencoderKL(**VAE), clip(), clip(CLIPTextModelWithProjection), tokenizer(), tokenizer(),
        UNet2DConditionModel(**UNET | dict(cross_attention_dim=2 * WIDTH, addition_embed_type="text_time",
                                           addition_time_embed_dim=4, projection_class_embeddings_input_dim=WIDTH + 6 * 4)),
        DPMSolverMultistepScheduler(**SCHEDULE), add_watermarker=False))


def tiny_sd3():
    """A flow-matching transformer, without T5."""
    return seeded(lambda: StableDiffusion3Pipeline(
        SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
                              num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=2 * WIDTH,
                              pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8),
        FlowMatchEulerDiscreteScheduler(), AutoencoderKL(**VAE), clip(CLIPTextModelWithProjection), tokenizer(),
        clip(CLIPTextModelWithProjection), tokenizer(), None, None))


def tiny_pixart():
    """A transformer that predicts noise and, in as many channels again, its variance."""
    return seeded(lambda: PixArtAlphaPipeline(
        tokenizer(), _t5(), AutoencoderKL(**VAE),
        PixArtTransformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8,
                                 num_attention_heads=2, cross_attention_dim=16, caption_channels=WIDTH),
        DPMSolverMultistepScheduler(**SCHEDULE)))


def tiny_flux():
    """A flow-matching transformer on 16 packed tokens, called twice a step."""
    return seeded(lambda: FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), AutoencoderKL(**VAE), clip(), tokenizer(), _t5(), tokenizer(),
        FluxTransformer2DModel(patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
                               num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
                               axes_dims_rope=(4, 4, 8))))


TINY = {"sd": tiny_pipeline, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "pixart": tiny_pixart, "flux": tiny_flux}
SETTINGS = {  # what a tiny pipeline has to be told when it is called
    "sd": {}, "sdxl": {}, "sd3": {"max_sequence_length": TOKENS},
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "height": 16, "width": 16},
    "flux": {"negative_prompt": "", "height": 16, "width": 16, "max_sequence_length": TOKENS},
}


@lru_cache(maxsize=5)
def cached_pipeline(kind):
    """A tiny pipeline of a family in float64, made once: a test leaves it as it found it."""
    return TINY[kind]().to(torch.float64)


@lru_cache(maxsize=1)
def loud_pipeline():
    """The tiny Stable Diffusion in float64, made to listen to the text: random weights hardly do. Left as it was found."""
    pipe = tiny_pipeline().to(torch.float64)
    for module in (m for m in pipe.unet.modules() if getattr(m, "is_cross_attention", False)):
        module.to_v.weight.data *= 20
        module.to_k.weight.data *= 20
    return pipe


def seeded(make):
    """make() -> a pipeline that always has the same weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = make()
    for part in (p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
        part.eval()  # T5 drops out otherwise
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(kind=CLIPTextModel, layers=1):
    words = tokenizer()
    return kind(CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=WIDTH, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id))


def _t5():
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2))


def saved_pipeline(folder, prediction_type="epsilon"):
    tiny_pipeline(prediction_type).save_pretrained(folder)
    return folder


def saved_lora(folder, file="pytorch_lora_weights.safetensors"):
    """A LoRA of the tiny pipeline that changes its output, in diffusers' format, with rank 4 and strength 1/2."""
    from peft import LoraConfig, get_peft_model_state_dict
    pipe = tiny_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet), weight_name=file)


def image_folder(folder, n=6, side=16):
    """n images of noise, each with a caption of its own (up to 16) in a side file -> the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {NOUNS[i % 8]} on a {('red', 'blue')[i // 8]} background")
    return folder
