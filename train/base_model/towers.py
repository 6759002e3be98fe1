"""The embedded model's text and image towers: a small tokenizer of CLIP's class, open_clip's CLIP, the way to CLIPTextModel."""
import json

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rotescope.datasets.emoji.scenes import all_captions

VISION = dict(layers=(1, 1, 1, 1), width=10, head_width=64, image_size=64)  # open_clip's modified ResNet
TEXT = dict(context_length=24, width=128, heads=4, layers=2)
EMBED_DIM = 128


def to_unit(images):
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def make_tokenizer(folder):
    """A byte-pair vocabulary of CLIP's own class and order: bytes, bytes that end a word, merges, start, end."""
    fitted = json.loads(CLIPTokenizer().train_new_from_iterator(all_captions(), vocab_size=2000).backend_tokenizer.to_str())
    merges = [tuple(pair) for pair in fitted["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT["context_length"])
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return tokenizer


def tokenize(tokenizer, captions):
    """-> token ids (n, 24)."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def make_towers(vocab_size):
    return CLIP(EMBED_DIM, CLIPVisionCfg(**VISION), CLIPTextCfg(vocab_size=vocab_size, **TEXT), quick_gelu=True)


def contrastive_loss(image, text, scale, group):
    """Symmetric InfoNCE (Radford et al. 2021, fig. 3); all images of a caption are positives. image, text: (B, d)"""
    targets = (group[:, None] == group[None]).float()
    targets = targets / targets.sum(1, keepdim=True)
    logits = scale * image @ text.T  # (B, B)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def to_text_model(towers, tokenizer):
    """open_clip's text tower -> CLIPTextModel with the same hidden states."""
    model = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT["width"], intermediate_size=4 * TEXT["width"],
        num_hidden_layers=TEXT["layers"], num_attention_heads=TEXT["heads"], max_position_embeddings=TEXT["context_length"],
        hidden_act="quick_gelu", projection_dim=EMBED_DIM, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    source, target = towers.state_dict(), {}
    target["embeddings.token_embedding.weight"] = source["token_embedding.weight"]
    target["embeddings.position_embedding.weight"] = source["positional_embedding"]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}
    for i in range(TEXT["layers"]):
        ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            target |= {f"{theirs}.{new}.{kind}": source[f"{ours}.{old}.{kind}"] for old, new in names.items()}
            for part, rows in zip("qkv", source[f"{ours}.attn.in_proj_{kind}"].chunk(3), strict=True):
                target[f"{theirs}.self_attn.{part}_proj.{kind}"] = rows
    for kind in ("weight", "bias"):
        target[f"final_layer_norm.{kind}"] = source[f"ln_final.{kind}"]
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    model.load_state_dict({prefix + k: v for k, v in target.items()}, strict=False)
    return model.eval()


def caption_accuracy(towers, tokenizer, images, captions):
    """Share of images whose best caption among all 2,400 is their own."""
    every = all_captions()
    towers.eval()
    with torch.no_grad():
        text = F.normalize(towers.encode_text(tokenize(tokenizer, every)), dim=-1)
        image = torch.cat([F.normalize(towers.encode_image(x), dim=-1) for x in to_unit(images).split(100)])
    towers.train()
    return (image @ text.T).argmax(1).eq(torch.tensor([every.index(c) for c in captions])).float().mean().item()
