"""A captioner, a dual encoder and a chat model of a few thousand random weights."""

from __future__ import annotations

import pytest
import torch

import fastvivit as fv

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<assistant> "
WORDS = "the a digit one two moves up down left right first then question answer is which way short video"


def make_tokenizer(chat_template=TEMPLATE):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[UNK]", "[END]", "<", ">", ":", "?", "user", "assistant"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS.split()])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_lm(tokenizer, positions=128):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def make_captioner(frames=8, size=32):
    """With gates wide open, so that what it sees changes what it says."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    encoder = fv.ViViT(fv.ViViTConfig(frames=frames, size=size, width=32, depth=1, heads=2, ff=64))
    cap = fv.VideoCaptioner(encoder, make_lm(tokenizer), tokenizer, resampler=False)
    with torch.no_grad():
        for name, parameter in cap.layers.named_parameters():
            if parameter.dim() == 0 or "gate" in name:
                parameter.fill_(3.0)
            elif parameter.dim() > 1:
                parameter.mul_(4.0)
    return cap.eval()


def make_dual(images=False, size=32, frames=4):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    text = fv.TextTower(BertModel(config, add_pooling_layer=False).eval(), tokenizer)
    cfg = fv.ViViTConfig(frames=frames, size=size, width=32, depth=1, heads=2, ff=64, images=images)
    return fv.VideoTextModel(fv.ViViT(cfg), text, dim=16).eval()
