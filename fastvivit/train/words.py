"""Tokenizers of whole words, for text models from scratch; and what a text tower makes of captions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastvivit.modules.text import TextTower

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_LOOKED_AT = 1000  # captions, of which there may be millions


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

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(special)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()  # for its spaces, of which there are none before a comma
    _add_words(tokenizer, captions)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=max_length, **roles
    )


def learn_words(text: TextTower, captions: Iterable[str]) -> list[str]:
    """Give a tower from scratch embeddings for words that it has not met; other tokenizers spell them from pieces.

    Args:
        text: changed in place; new rows are drawn as its model draws its embeddings, by PyTorch's default generator.
        captions: what it will read.

    Returns:
        The new words, sorted.
    """
    from tokenizers.models import WordLevel

    tokenizer = getattr(text.tokenizer, "backend_tokenizer", None)
    if tokenizer is None or not isinstance(tokenizer.model, WordLevel):
        return []
    words = _add_words(tokenizer, captions)
    if words:
        text.model.resize_token_embeddings(len(text.tokenizer), mean_resizing=False)
    return words


def unread(text: TextTower, captions: Sequence[str]) -> list[str]:
    """What of the captions a text tower does not see, in words for a person; nothing where it sees all of them."""
    some = random.Random(0).sample(captions, min(len(captions), _LOOKED_AT))
    rows = text.tokenizer(some, verbose=False)["input_ids"]
    remarks = []
    cut = sum(len(row) > text.max_length for row in rows)
    if cut:
        remarks.append(
            f"text: {100 * cut / len(rows):.0f}% of the captions have more than {text.max_length} tokens, and are cut "
            "(text.max_length)"
        )
    unknown = sum(row.count(text.tokenizer.unk_token_id) for row in rows)
    if unknown:
        remarks.append(f"text: {100 * unknown / sum(map(len, rows)):.2g}% of the words are unknown to the text tower")
    return remarks


def _add_words(tokenizer: Tokenizer, captions: Iterable[str]) -> list[str]:
    """Words of the captions that a ``WordLevel`` tokenizer lacks get the next ids, in sorted order."""
    from tokenizers.models import WordLevel

    known, lower, split = tokenizer.get_vocab(), tokenizer.normalizer, tokenizer.pre_tokenizer
    met = {word for caption in captions for word, _ in split.pre_tokenize_str(lower.normalize_str(caption))}
    words = sorted(met - known.keys())
    vocabulary = known | {word: i for i, word in enumerate(words, len(known))}
    tokenizer.model = WordLevel(vocabulary, unk_token="[UNK]")
    return words
