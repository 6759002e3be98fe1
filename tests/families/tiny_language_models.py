"""More small pipelines: those whose text encoders or autoencoders need other sizes than the first ones'."""
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from families.tiny_texts import (
    bert,
    bert_tokenizer,
    gemma2,
    gemma_tokenizer,
    glm,
    glm_tokenizer,
    llama,
    mistral3,
    qwen3_vl,
    qwen_tokenizer,
    umt5,
)
from families.tiny_transformers import BLOCKS, FLUX2_VAE, QWEN_VAE, ROPE, SHIFTED, STREAMS, flow
from tiny import VAE, WIDTH, tokenizer
from tiny_families import clip, t5, t5_tokenizer
from transformers import CLIPTextModelWithProjection

DEEP_VAE = VAE | dict(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                      up_block_types=("UpDecoderBlock2D",) * 4)  # eight times smaller, where a pipeline counts on it


def drawn(network):
    """The network, with the weights that begin at zero drawn at random: it would predict zeros otherwise."""
    for weight in (p for p in network.parameters() if not p.any()):
        torch.nn.init.normal_(weight.data, std=0.1)
    return network


def lumina2():
    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=32, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 8), axes_lens=(300, 64, 64), cap_feat_dim=WIDTH)
    return Lumina2Pipeline(transformer, flow(use_dynamic_shifting=True), AutoencoderKL(**DEEP_VAE | SHIFTED), gemma2(),
                           gemma_tokenizer())


def aura_flow():
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=32, pos_embed_max_size=64)
    for weight in transformer.joint_transformer_blocks.parameters():
        weight.data *= 4  # it hardly listens to the text otherwise
    return AuraFlowPipeline(t5_tokenizer(), umt5(), AutoencoderKL(**VAE), transformer, flow(shift=1.73))


def cogview4():
    transformer = CogView4Transformer2DModel(
        **BLOCKS, patch_size=2, in_channels=4, out_channels=4,
        text_embed_dim=WIDTH, time_embed_dim=16, condition_dim=8, sample_size=8)
    return CogView4Pipeline(glm_tokenizer(), glm(), AutoencoderKL(**VAE), transformer,
                            flow(use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75))


def hidream():
    transformer = HiDreamImageTransformer2DModel(
        **STREAMS, **ROPE, patch_size=2, in_channels=4, out_channels=4, caption_channels=[2 * WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH, num_routed_experts=2, num_activated_experts=1, max_resolution=(8, 8), llama_layers=[0, 1])
    projected = [clip(CLIPTextModelWithProjection), tokenizer()]
    return HiDreamImagePipeline(flow(shift=3.0), AutoencoderKL(**VAE | SHIFTED), *projected, *projected, t5(), t5_tokenizer(),
                                llama(), qwen_tokenizer(), transformer)


def hunyuan_dit():
    """Four layers: the last takes the first one's output beside its own."""
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=4, hidden_size=16, num_layers=4,
        mlp_ratio=1.0, cross_attention_dim=WIDTH, cross_attention_dim_t5=2 * WIDTH, pooled_projection_dim=8)
    return HunyuanDiTPipeline(AutoencoderKL(**DEEP_VAE), bert(), bert_tokenizer(), transformer, DDPMScheduler(), None, None,
                              requires_safety_checker=False, text_encoder_2=t5(), tokenizer_2=t5_tokenizer())


def krea2():
    transformer = Krea2Transformer2DModel(
        **BLOCKS, **ROPE, in_channels=16, num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16,
        text_hidden_dim=WIDTH, num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2,
        text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1)
    return Krea2Pipeline(flow(use_dynamic_shifting=True), AutoencoderKLQwenImage(**QWEN_VAE), qwen3_vl(), qwen_tokenizer(),
                         transformer, text_encoder_select_layers=(1, 2))


def ideogram4():
    """Two networks: the second knows no text. As many layers of text as the pipeline takes its thirteen from."""
    def network():
        return drawn(Ideogram4Transformer2DModel(
            **BLOCKS, in_channels=16, intermediate_size=32, adaln_dim=16,
            llm_features_dim=13 * WIDTH, mrope_section=(2, 2, 2)))
    return Ideogram4Pipeline(flow(), AutoencoderKLFlux2(**FLUX2_VAE), qwen3_vl(layers=36), qwen_tokenizer(), network(), network())


def ernie_image():
    transformer = drawn(ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=WIDTH, rope_axes_dim=(4, 4, 8)))
    return ErnieImagePipeline(transformer, AutoencoderKLFlux2(**FLUX2_VAE), mistral3(), qwen_tokenizer(), flow(shift=4.0))
