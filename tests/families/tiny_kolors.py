"""A small Kolors: its tokenizer is a sentencepiece model of single letters, its text encoder a ChatGLM of two layers."""
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from tiny import UNET, VAE, WIDTH

from rotescope.train.base_model.pretrain import SCHEDULE


def glm_letters():
    """A tokenizer trained on the spot: a piece a letter."""
    import sentencepiece
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "letters.txt")
        text.write_text("\n".join(["the quick brown fox jumps over the lazy dog"] * 4))
        sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(Path(folder, "tokenizer")), model_type="char",
                                                 vocab_size=40, hard_vocab_limit=False, minloglevel=2)
        return ChatGLMTokenizer(str(Path(folder, "tokenizer.model")))


def chat_glm():
    """Its class leaves weights as they lie in memory: they are drawn here."""
    model = ChatGLMModel(ChatGLMConfig(
        num_layers=2, padded_vocab_size=64, hidden_size=WIDTH, ffn_hidden_size=2 * WIDTH, kv_channels=8, num_attention_heads=2,
        seq_length=256, multi_query_attention=True, multi_query_group_num=1, add_qkv_bias=True, original_rope=True))
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, mean=float(weight.dim() == 1), std=0.3)
    return model


def kolors():
    unet = UNet2DConditionModel(**UNET | dict(
        cross_attention_dim=16, encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj", addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH))
    return KolorsPipeline(AutoencoderKL(**VAE), chat_glm(), glm_letters(), unet, EulerDiscreteScheduler(**SCHEDULE))
