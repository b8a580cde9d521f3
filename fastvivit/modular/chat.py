"""A transformers chat model as a function of a prompt, and the choice that a reply makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf


class ChatModel:
    """A transformers causal language model asked through its tokenizer's chat template.

    Replies are greedy. The whole prompt is one message of the user; a system message is up to the template.

    Args:
        model: any causal language model that can ``generate``; it stays where it is and in eval mode.
        tokenizer: its tokenizer, with a chat template.
        max_new_tokens: the longest reply.

    Raises:
        ValueError: no chat template, max_new_tokens below 1.
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 128) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "tokenizer: wanted one with a chat template, got none; "
                "pass another model as a plain callable str -> str"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: wanted at least 1, got {max_new_tokens}")
        self.model, self.tokenizer, self.max_new_tokens = model.eval(), tokenizer, max_new_tokens

    @torch.no_grad()
    def __call__(self, prompt: str) -> str:
        """The model's reply, stripped.

        Raises:
            ValueError: a prompt that leaves no room for the reply among the model's positions.
        """
        ids = self._ids(prompt, self.max_new_tokens)
        pad = self.tokenizer.pad_token_id
        reply = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            # A chat model's folder often asks for sampling; these would then be warned about.
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )
        return self.tokenizer.decode(reply[0, ids.shape[1] :], skip_special_tokens=True).strip()

    @torch.no_grad()
    def score(self, prompt: str, options: Sequence[str], normalise: str = "sum") -> Tensor:
        """(n,) float32 log-likelihoods of ``options`` as the beginning of the reply.

        Args:
            prompt: the user's message.
            options: n replies.
            normalise: "sum" over an option's tokens, or "tokens": that divided by their number.

        Raises:
            ValueError: an unknown ``normalise``, an option without tokens, a prompt that is too long.
        """
        if normalise not in ("sum", "tokens"):
            raise ValueError(f"normalise: wanted 'sum' or 'tokens', got {normalise!r}")
        replies = [self.tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
        if not replies or not all(replies):
            raise ValueError(f"options: wanted at least one, each with tokens, got {list(options)!r}")
        prefix = self._ids(prompt, max(map(len, replies)))
        scores = []
        for reply in replies:  # one at a time: padding would change positions in models with learned ones
            target = torch.tensor(reply, device=prefix.device)
            logits = self.model(input_ids=torch.cat([prefix, target[None]], dim=1)).logits
            # The logits at a place are about the next token.
            found = nnf.log_softmax(logits[0, prefix.shape[1] - 1 : -1].float(), dim=-1)
            total = found.gather(1, target[:, None]).sum()
            scores.append(total / len(reply) if normalise == "tokens" else total)
        return torch.stack(scores).cpu()

    def _ids(self, prompt: str, room: int) -> Tensor:
        """(1, n) tokens of the conversation up to where the reply begins."""
        message = [{"role": "user", "content": prompt}]
        # Text first: what the template returns when it tokenizes differs between versions of transformers.
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and ids.shape[1] + room > most:
            raise ValueError(
                f"prompt: wanted at most {most - room} tokens, which leaves {room} of the model's {most} for "
                f"the reply, got {ids.shape[1]}; use longer segments or shorter captions"
            )
        return ids.to(self.model.device)


def read_choice(reply: str, options: Sequence[str]) -> int | None:
    """The option that a reply to a lettered list means, or None where it doesn't say.

    In this order: a reply that begins with a letter and a mark or nothing after it ("B", "(B)", "B. up");
    "answer is B", "answer: B" or "option B" anywhere; a letter in brackets anywhere; an option's own words, if
    they are those of one option only. Letters that are no option's, or two that differ, say nothing.
    """
    letters = ascii_uppercase[: len(options)]
    for pattern in (
        rf"^\W*([{letters}])(?:\s*$|\s*\n|\s*[).:,\]*])",
        rf"(?i:\boption)\W{{1,4}}([{letters}])\b",
        rf"(?i:\banswer(?:\s+is)?)\W{{1,4}}(?!A\s+[a-z])([{letters}])\b",  # "answer: A man" is no A
        rf"\(([{letters}])\)",
    ):
        found = set(re.findall(pattern, reply))
        if len(found) == 1:
            return letters.index(found.pop())
        if found:
            return None
    words = [number for number, option in enumerate(options) if option.lower() in reply.lower()]
    return words[0] if len(words) == 1 else None
