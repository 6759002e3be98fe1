"""Small pipelines of the real classes beside Stable Diffusion's: SDXL, SD3 and FLUX, 16 × 16 px, always with the same weights."""
from functools import partial

import tiny
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny import UNET, VAE, WIDTH, seeded, tiny_pipeline, tokenizer
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from rotescope.train.base_model.pretrain import SCHEDULE

clip = partial(tiny.clip, layers=2)


def t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz")]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=32)


def t5():
    return T5EncoderModel(T5Config(vocab_size=30, d_model=2 * WIDTH, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


def sdxl():
    unet = UNet2DConditionModel(**UNET | dict(
        cross_attention_dim=2 * WIDTH, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH))
    return StableDiffusionXLPipeline(
        AutoencoderKL(**VAE), clip(CLIPTextModel), clip(CLIPTextModelWithProjection), tokenizer(), tokenizer(), unet,
        EulerDiscreteScheduler(**SCHEDULE), force_zeros_for_empty_prompt=True, add_watermarker=False)


def sd3():
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, out_channels=4,
        pos_embed_max_size=8)
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0),
        AutoencoderKL(**VAE | dict(shift_factor=0.1, scaling_factor=1.5)),
        clip(CLIPTextModelWithProjection), tokenizer(), clip(CLIPTextModelWithProjection), tokenizer(), t5(), t5_tokenizer())


def flux():
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True)
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
                        AutoencoderKL(**VAE | dict(shift_factor=0.1, scaling_factor=0.4)), clip(CLIPTextModel), tokenizer(), t5(),
                        t5_tokenizer(), transformer)


FAMILIES = {"sd1": tiny_pipeline, "sd2": lambda: tiny_pipeline("v_prediction"), "sdxl": sdxl, "sd3": sd3, "flux": flux}


def tiny_family(name):
    return seeded(FAMILIES[name])
