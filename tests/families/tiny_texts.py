"""Small text encoders of the real classes, with tokenizers that know single bytes or letters: no file is read."""
from functools import lru_cache

from tiny import WIDTH
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3Model,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaConfig, T5GemmaEncoder, T5GemmaModuleConfig

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SMALL = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_attention_heads=2, num_key_value_heads=1, vocab_size=264,
             max_position_embeddings=4096)
ENDS = dict(pad_token_id=256, eos_token_id=256, bos_token_id=None)
TURNS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}  # a head has 8 channels
EYES = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=WIDTH, patch_size=2, spatial_merge_size=1)
SIGNS = dict(image_token_id=259, video_token_id=260, vision_start_token_id=261, vision_end_token_id=262)


@lru_cache(maxsize=1)
def alphabet():
    """Each byte as byte-level tokenizers write it -> its number."""
    return {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def qwen_tokenizer():
    """A token a byte, with a chat template that takes Qwen's options."""
    words = Qwen2Tokenizer(vocab=alphabet() | {mark: 256 + i for i, mark in enumerate(MARKS)}, merges=[],
                           additional_special_tokens=list(MARKS[1:]), model_max_length=1024)
    words.chat_template = CHAT
    return words


def qwen2_5_processor():
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), qwen_tokenizer(), Qwen2VLVideoProcessor(), chat_template=CHAT)


def qwen3_processor():
    return Qwen3VLProcessor(Qwen2VLImageProcessor(), qwen_tokenizer(), Qwen3VLVideoProcessor(), chat_template=CHAT)


def qwen3(kind=Qwen3ForCausalLM, layers=2):
    return kind(Qwen3Config(**SMALL, **ENDS, num_hidden_layers=layers, head_dim=8))


def qwen2_5_vl(layers=1):
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        **SIGNS, vision_config=EYES | dict(window_size=4, fullatt_block_indexes=[0]),
        text_config=dict(SMALL, **ENDS, num_hidden_layers=layers, rope_parameters=TURNS)))


def qwen3_vl(kind=Qwen3VLModel, layers=2):
    return kind(Qwen3VLConfig(
        **SIGNS, vision_config=EYES | dict(num_position_embeddings=16, deepstack_visual_indexes=[0]),
        text_config=dict(SMALL, **ENDS, num_hidden_layers=layers, head_dim=8, rope_parameters=TURNS)))


def gemma_tokenizer():
    """A token a letter after the one that begins every text, so that an empty one is not empty."""
    marks = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁")
    letters = (*marks, *(chr(c) for c in range(33, 127)))
    words = GemmaTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], model_max_length=256)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return words


GEMMA = SMALL | dict(vocab_size=128, num_hidden_layers=2, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
                     query_pre_attn_scalar=8, sliding_window=64)


def gemma2():
    return Gemma2Model(Gemma2Config(**GEMMA))


def t5_gemma():
    """Its settings are an encoder's and, in the file that is read back, those of the whole that the encoder is a part of."""
    part = T5GemmaModuleConfig(**GEMMA, dropout_rate=0.0).to_dict()
    alone = {k: v for k, v in part.items() if k not in ("model_type", "transformers_version", "architectures")}
    return T5GemmaEncoder(T5GemmaConfig(encoder=part, decoder=part, **alone | {"is_encoder_decoder": False}))


def glm_tokenizer():
    """A token a byte after two that begin every text, so that an empty one is not empty."""
    words = Tokenizer(models.BPE(alphabet() | {"[gMASK]": 256, "<sop>": 257}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing("[gMASK] <sop> $A", special_tokens=[("[gMASK]", 256), ("<sop>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[gMASK]", padding_side="left", model_max_length=1024)


def glm():
    return GlmModel(GlmConfig(**SMALL, **ENDS, num_hidden_layers=2, head_dim=8))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, **ENDS, num_hidden_layers=2, head_dim=8))


def umt5():
    return UMT5EncoderModel(UMT5Config(vocab_size=30, d_model=2 * WIDTH, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


def byt5():
    return T5EncoderModel(T5Config(vocab_size=384, d_model=2 * WIDTH, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


def bert_tokenizer():
    """A token a letter, and one for each letter inside a word."""
    letters = [chr(c) for c in range(97, 123)]
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters))
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77)


def bert():
    return BertModel(BertConfig(vocab_size=64, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
                                intermediate_size=WIDTH, max_position_embeddings=80))


def pixtral_processor():
    return PixtralProcessor(PixtralImageProcessor(), qwen_tokenizer(), patch_size=4, image_token="<|image_pad|>",
                            image_break_token="<|vision_start|>", image_end_token="<|vision_end|>", chat_template=CHAT)


def mistral3(kind=Mistral3Model, layers=2):
    text = dict(SMALL, model_type="mistral", num_hidden_layers=layers, head_dim=8, pad_token_id=256, eos_token_id=256)
    eyes = dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                head_dim=8, image_size=16, patch_size=4)
    return kind(Mistral3Config(text_config=text, vision_config=eyes, image_token_index=259))
