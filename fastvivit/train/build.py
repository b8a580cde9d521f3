"""Parts of a dual encoder, their weights drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from fastvivit.models import ViViTConfig
from fastvivit.modules.text import TextTower
from fastvivit.modules.vivit import ViViT
from fastvivit.train.config import TrainConfig
from fastvivit.train.tables import InitConfig, TextConfig
from fastvivit.train.words import word_tokenizer


def build_text(config: TrainConfig, captions: Iterable[str]) -> TextTower:
    """The text tower: of a local folder, or a small one over the words of ``captions``.

    Raises:
        ValueError: a folder without a model or tokenizer.
        ImportError: transformers is not installed.
    """
    if config.text.folder is not None:
        return local_tower(config.text)
    return scratch_tower(config.text, captions, mask_token=config.auxiliary.kind == "mlm")


@torch.no_grad()
def build_encoder(config: ViViTConfig, init: InitConfig, *, images: bool = False) -> ViViT:
    """The video encoder; its path for images is left out where no images come, since it would get no gradient."""
    encoder = ViViT(config.replace(images=images))
    if init.time_std:
        encoder.embed.offset_times_(init.time_std)
    return encoder


def scratch_tower(config: TextConfig, captions: Iterable[str], *, mask_token: bool = False) -> TextTower:
    """A small BERT with random weights over the words of ``captions``, in lower case; others are unknown."""
    from transformers import BertConfig, BertModel

    masked = {"mask_token": "[MASK]"} if mask_token else {}
    fast = word_tokenizer(captions, ("[PAD]", "[UNK]", *masked.values()), config.max_length, **masked)
    bert = BertConfig(
        vocab_size=len(fast),
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_length,
        # BERT's own 0.02 suits 768 columns; a narrow one would begin nearly linear, and learn word order late.
        initializer_range=config.width**-0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertModel(bert)
    # Nothing reads the pooler; a model that is loaded again has one, so this one keeps it, too.
    model.pooler.requires_grad_(False)
    return TextTower(model, fast, max_length=config.max_length)


def local_tower(config: TextConfig) -> TextTower:
    """A transformers encoder and its tokenizer out of a local folder; nothing is downloaded."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(config.folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"text.folder: wanted a folder with a transformers model (config.json), got {str(folder)!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"text.folder: {folder} can't be loaded by transformers: {error}") from error
    return TextTower(model, tokenizer, max_length=config.max_length)
