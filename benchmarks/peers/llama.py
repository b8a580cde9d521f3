"""A language model of transformers with random weights, of the shape of SmolLM2-135M, and a tokenizer for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
TINY = SMOLLM2 | {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
START, END = 0, 1


def language_model(sizes: dict[str, Any], device: str, dtype: torch.dtype) -> nn.Module:
    """A Llama, the same at every call. It never ends a text, so that as many tokens are written as are timed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**sizes, bos_token_id=START, eos_token_id=None, attn_implementation="sdpa")
    return LlamaForCausalLM(config).eval().to(device, dtype)


def tokenizer(vocabulary: int) -> Any:
    """A word for each id: "w0", "w1" and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token=f"w{END}"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=f"w{START}", eos_token=f"w{END}")


@torch.no_grad()
def generate(model: nn.Module, tokens: int, *, do_sample: bool = False) -> Tensor:
    """Ids (1, ``tokens``) that the model's own ``generate`` writes after its start token."""
    start = torch.full((1, 1), START, device=model.device)
    options = {"max_new_tokens": tokens, "do_sample": do_sample, "pad_token_id": END}
    return model.generate(input_ids=start, attention_mask=torch.ones_like(start), **options)[:, 1:]
