"""A tokenizer of whole words, for text models from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def word_tokenizer(
    captions: Iterable[str], special: Sequence[str], max_length: int, **roles: str
) -> PreTrainedTokenizerFast:
    """A tokenizer with the words of ``captions`` in lower case, punctuation apart; others are "[UNK]".

    Args:
        captions: what to take the words from.
        special: its first tokens, "[PAD]" and "[UNK]" among them.
        max_length: most tokens of a text.
        roles: of further special tokens, as transformers names them: ``eos_token="[EOS]"``.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    split, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    words = {word for caption in captions for word, _ in split.pre_tokenize_str(lower.normalize_str(caption))}
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    tokenizer.decoder = decoders.WordPiece()  # for its spaces, of which there are none before a comma
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=max_length, **roles
    )
