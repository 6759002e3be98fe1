"""Small pipelines of transformers that came after FLUX: 16 × 16 px (Sana 32 × 32), random weights, built from settings alone."""
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from families.tiny_texts import gemma2, gemma_tokenizer, qwen2_5_vl, qwen3, qwen_tokenizer
from tiny import VAE, WIDTH
from tiny_families import t5, t5_tokenizer
from transformers import Qwen3Model

from rotescope.train.base_model.pretrain_unet import SCHEDULE

SHIFTED = dict(shift_factor=0.1, scaling_factor=0.4)
FLUX2_VAE = {k: v for k, v in VAE.items() if k != "shift_factor"}
QWEN_VAE = dict(base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
                latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.0, 1.5, 2.0, 0.5])

BLOCKS = dict(num_layers=1, attention_head_dim=16, num_attention_heads=2)
STREAMS = BLOCKS | dict(num_single_layers=1)
ROPE = dict(axes_dims_rope=(4, 4, 8))


def flow(**options):
    return FlowMatchEulerDiscreteScheduler(**options)


def z_image():
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64])
    return ZImagePipeline(flow(shift=3.0), AutoencoderKL(**VAE | SHIFTED), qwen3(Qwen3Model), qwen_tokenizer(), transformer)


def flux2_klein():
    """As many layers of text as the pipeline takes its three from."""
    transformer = Flux2Transformer2DModel(
        **STREAMS, in_channels=16, joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False)
    return Flux2KleinPipeline(flow(use_dynamic_shifting=True), AutoencoderKLFlux2(**FLUX2_VAE), qwen3(layers=27),
                              qwen_tokenizer(), transformer)


def qwen_image():
    transformer = QwenImageTransformer2DModel(
        **BLOCKS, **ROPE, in_channels=16, out_channels=4, joint_attention_dim=WIDTH)
    return QwenImagePipeline(flow(use_dynamic_shifting=True), AutoencoderKLQwenImage(**QWEN_VAE), qwen2_5_vl(), qwen_tokenizer(),
                             transformer)


def chroma():
    transformer = ChromaTransformer2DModel(
        **STREAMS, **ROPE, in_channels=16, joint_attention_dim=2 * WIDTH,
        approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1)
    return ChromaPipeline(flow(use_dynamic_shifting=True), AutoencoderKL(**VAE | SHIFTED), t5(), t5_tokenizer(), transformer)


def sana():
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH, sample_size=8)
    width = dict(block_out_channels=(8, 8, 8), layers_per_block=(1, 1, 1), qkv_multiscales=((), (), ()))
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4,
                        **{f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in width.items()})
    return SanaPipeline(gemma_tokenizer(), gemma2(), vae, transformer, flow(shift=3.0))


def pixart_sigma():
    """It predicts noise and, in as many channels again, its variance."""
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        cross_attention_dim=16, caption_channels=2 * WIDTH, use_additional_conditions=False)
    return PixArtSigmaPipeline(t5_tokenizer(), t5(), AutoencoderKL(**VAE), transformer, DPMSolverMultistepScheduler(**SCHEDULE))
