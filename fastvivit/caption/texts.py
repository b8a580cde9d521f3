"""Prompts and texts as token ids, and which of them a language model is asked to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Ids:
    """R texts on a device.

    Attributes:
        input_ids: (R, n) int64, padded.
        attention_mask: (R, n) int64, 1 where a token is real.
    """

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets(Ids):
    """Texts with what is to be predicted in them. Padding is on the right, so positions need no care.

    Attributes:
        index: (M,) int64 rows of the flattened (R·n) hidden states from which a target is predicted.
        target: (M,) int64 the token that follows each.
        counts: targets of each text.
    """

    index: Tensor
    target: Tensor
    counts: list[int]


class Texts:
    """A tokenizer, and how this library puts texts before a causal language model.

    A text is tokenised together with its prompt, and is what comes after the tokens that the prompt has by itself;
    between them stands a space, unless the prompt is empty or ends with white space. Spaces at a prompt's end go to
    the text, as most tokenizers have them: ``"cup: "`` before ``"red"`` predicts ``" red"`` from ``"cup:"``. The
    tokenizer's own start tokens come first. Where there is nothing in front of a text, its first token is predicted
    from a start token: the tokenizer's, else the end token.

    Args:
        tokenizer: of transformers.
        max_length: tokens that a prompt and its text are cut to, prompts from the left, behind the tokenizer's own
            start tokens.

    Raises:
        ValueError: a tokenizer that has neither a start nor an end token.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
            raise ValueError("tokenizer: wanted one with an end or a start token, got one with neither")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.end = tokenizer.eos_token_id
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        own = (tokenizer.pad_token_id, self.end, self.start)
        self.pad = next(token for token in own if token is not None)

    @cached_property
    def _prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a text."""
        bare, full = self._ids("a"), self.tokenizer("a")["input_ids"]
        for place in range(len(full) - len(bare) + 1):
            if full[place : place + len(bare)] == bare:
                return full[:place]
        return []

    def _ids(self, text: str) -> list[int]:
        # Not verbose: it would warn of texts that are cut afterwards.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _prompt(self, prompt: str) -> list[int]:
        prompt = prompt.rstrip(" ")
        return self._prefix + (self._ids(prompt) if prompt else []) or [self.start]

    def _end_of(self, prompt: list[int], room: int) -> list[int]:
        """The last tokens of a prompt behind its start tokens, without which a language model can be lost."""
        start = len(self._prefix) if room > len(self._prefix) else 0
        return prompt if len(prompt) <= room else prompt[:start] + prompt[len(prompt) - room + start :]

    def prompts(self, prompts: Sequence[str], room: int, device: torch.device) -> Ids:
        """Prompts to go on from, padded on the left.

        Args:
            prompts: R strings, which may be empty.
            room: tokens to leave for what follows; longer prompts lose their beginning, but not all.
            device: where they are wanted.
        """
        rows = [self._end_of(self._prompt(prompt), max(1, self.max_length - room)) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return Ids(input_ids=ids.to(device), attention_mask=mask.to(device))

    def targets(self, prompts: Sequence[str], texts: Sequence[str], device: torch.device, *, ended: bool) -> Targets:
        """Prompts with the texts that follow them.

        Args:
            prompts: R strings, which may be empty.
            texts: R strings.
            device: where they are wanted.
            ended: whether the end token is a target after each text.
        """
        rows, counts = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            head = self._prompt(prompt)
            gap = " " if prompt and not prompt[-1].isspace() and not text[:1].isspace() else ""
            # Tokenised as one, or a tokenizer that marks the beginnings of words would mark one in the middle.
            whole = self._prefix + self._ids(prompt + gap + text) if prompt.strip(" ") else head + self._ids(text)
            # What grew together with the text belongs to it.
            shared = next((i for i, pair in enumerate(zip(head, whole, strict=False)) if len(set(pair)) > 1), None)
            shared = min(len(head), len(whole)) if shared is None else shared
            head, tail = whole[:shared] or [self.start], whole[shared:]
            tail += [self.end] if ended and self.end is not None else []
            tail = tail[: self.max_length - 1]
            head = self._end_of(head, self.max_length - len(tail))
            rows.append(head + tail)
            counts.append(len(tail))
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        index = [
            number * longest + place
            for number, (row, count) in enumerate(zip(rows, counts, strict=True))
            for place in range(len(row) - count - 1, len(row) - 1)
        ]
        target = [token for row, count in zip(rows, counts, strict=True) for token in row[len(row) - count :]]
        return Targets(
            input_ids=ids.to(device, non_blocking=True),
            attention_mask=mask.to(device, non_blocking=True),
            index=torch.tensor(index, dtype=torch.int64).to(device, non_blocking=True),
            target=torch.tensor(target, dtype=torch.int64).to(device, non_blocking=True),
            counts=counts,
        )
