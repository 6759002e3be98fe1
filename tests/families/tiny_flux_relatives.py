"""More small pipelines: FLUX's relatives, those that bring a processor along, and those with guiders and experts."""
import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    BriaPipeline,
    BriaTransformer2DModel,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from families.tiny_language_models import drawn
from families.tiny_texts import (
    byt5,
    gemma_tokenizer,
    mistral3,
    pixtral_processor,
    qwen2_5_processor,
    qwen2_5_vl,
    qwen3,
    qwen3_processor,
    qwen3_vl,
    qwen_tokenizer,
    t5_gemma,
)
from families.tiny_transformers import BLOCKS, FLUX2_VAE, QWEN_VAE, ROPE, SHIFTED, STREAMS, flow
from tiny import VAE, WIDTH
from tiny_families import t5, t5_tokenizer
from transformers import ByT5Tokenizer, Mistral3ForConditionalGeneration, Qwen3Model, Qwen3VLForConditionalGeneration


def prx():
    transformer = drawn(PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=WIDTH, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8]))
    return PRXPipeline(transformer, flow(shift=3.0), t5_gemma(), gemma_tokenizer(), AutoencoderKL(**VAE | SHIFTED))


def ovis_image():
    transformer = OvisImageTransformer2DModel(**STREAMS, **ROPE, in_channels=16, out_channels=16, joint_attention_dim=WIDTH)
    return OvisImagePipeline(flow(use_dynamic_shifting=True), AutoencoderKL(**VAE | SHIFTED), qwen3(Qwen3Model), qwen_tokenizer(),
                             transformer)


def longcat_image():
    """Its latents always have 16 channels."""
    transformer = LongCatImageTransformer2DModel(**STREAMS, **ROPE, in_channels=64, joint_attention_dim=WIDTH,
                                                 pooled_projection_dim=WIDTH)
    return LongCatImagePipeline(flow(use_dynamic_shifting=True), AutoencoderKL(**VAE | SHIFTED | dict(latent_channels=16)),
                                qwen2_5_vl(), qwen_tokenizer(), qwen2_5_processor(), transformer)


def bria():
    transformer = BriaTransformer2DModel(**STREAMS, **ROPE, in_channels=16, joint_attention_dim=2 * WIDTH)
    return BriaPipeline(transformer, flow(use_dynamic_shifting=True), AutoencoderKL(**VAE | SHIFTED), t5(), t5_tokenizer())


def hunyuan_image():
    """Guided by a part of its own, not by an argument."""
    transformer = HunyuanImageTransformer2DModel(
        **STREAMS, in_channels=4, out_channels=4, num_refiner_layers=1, mlp_ratio=1.0, text_embed_dim=WIDTH,
        text_embed_2_dim=2 * WIDTH, rope_axes_dim=(8, 8))
    vae = AutoencoderKLHunyuanImage(3, 3, 4, (32, 32), 1, spatial_compression_ratio=2, sample_size=16, scaling_factor=0.5)
    return HunyuanImagePipeline(flow(shift=5.0), vae, qwen2_5_vl(layers=2), qwen_tokenizer(), byt5(), ByT5Tokenizer(),
                                transformer, AdaptiveProjectedMixGuidance(), AdaptiveProjectedMixGuidance())


def flux2():
    """Guidance is a number that its transformer is told. As many layers of text as the pipeline takes its three from."""
    transformer = Flux2Transformer2DModel(
        **STREAMS, in_channels=16, joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4))
    return Flux2Pipeline(flow(use_dynamic_shifting=True), AutoencoderKLFlux2(**FLUX2_VAE),
                         mistral3(Mistral3ForConditionalGeneration, 30), pixtral_processor(), transformer)


def qwen_image_21():
    """Sixteen pixels are one of latents."""
    transformer = QwenImage21Transformer2DModel(**BLOCKS, **ROPE, in_channels=4, out_channels=4, context_in_dim=WIDTH,
                                                mlp_ratio=1)
    vae = AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2, 2], num_res_blocks=1,
                                   latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    return QwenImage21Pipeline(flow(use_dynamic_shifting=True), vae, qwen3_vl(Qwen3VLForConditionalGeneration), qwen3_processor(),
                               transformer)


def nucleus_moe():
    """As many layers of text as the pipeline counts back. The class leaves its experts' weights as they lie in memory."""
    transformer = NucleusMoEImageTransformer2DModel(
        **BLOCKS | dict(num_layers=2), **ROPE, patch_size=2, in_channels=16, out_channels=4, num_key_value_heads=1,
        joint_attention_dim=WIDTH, mlp_ratio=6.0, dense_moe_strategy="leave_first_block_dense", num_experts=2,
        moe_intermediate_dim=16, capacity_factors=1.0)
    for weight in transformer.transformer_blocks[1].img_mlp.experts.parameters():
        torch.nn.init.normal_(weight.data, std=0.1)
    return NucleusMoEImagePipeline(transformer, flow(use_dynamic_shifting=True), AutoencoderKLQwenImage(**QWEN_VAE),
                                   qwen3_vl(Qwen3VLForConditionalGeneration, 8), qwen3_processor())
