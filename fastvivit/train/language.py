"""The language model of a captioner: out of a local folder, or small and from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as nnf

from fastvivit._folders import written_whole
from fastvivit.caption.quiet import no_bars
from fastvivit.caption.texts import Texts
from fastvivit.data import EpochSampler, sample_seed
from fastvivit.train.caption_tables import LanguageConfig
from fastvivit.train.progress import progress
from fastvivit.train.words import word_tokenizer

_WARMUP = 0.1  # share of the steps from scratch


def local_language(folder: Path, name: str = "language.folder") -> tuple[nn.Module, Any]:
    """A causal language model of transformers and its tokenizer, float32; nothing is downloaded.

    Raises:
        ValueError: no such folder, or one that transformers can't load; ``name`` begins the message.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ValueError(f"{name}: wanted a folder with a language model of transformers (config.json), got {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with no_bars():
            lm = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {folder} can't be loaded by transformers: {error}") from error
    return lm.eval(), tokenizer


def save_language(lm: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write what ``local_language`` reads, whole or not at all."""
    with written_whole(folder) as scratch, no_bars():
        lm.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def scratch_language(config: LanguageConfig, captions: Sequence[str], seed: int) -> tuple[nn.Module, Any]:
    """A small Llama over the words of ``captions``; the same weights for the same seed, whatever ran before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer(
        captions, ("[PAD]", "[UNK]", "[BOS]", "[EOS]"), config.max_length, bos_token="[BOS]", eos_token="[EOS]"
    )
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        # Llama's own 0.02 suits thousands of columns; a narrow one would begin nearly linear, and learn slowly.
        initializer_range=config.width**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sample_seed(seed, 0, 0, "language"))
        return LlamaForCausalLM(llama).eval(), tokenizer


def learn_captions(
    lm: nn.Module,
    texts: Texts,
    captions: Sequence[str],
    *,
    prompt: str = "",
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    quiet: bool = False,
) -> None:
    """Teach a language model to write captions, as text alone; it is frozen afterwards.

    AdamW, linear warm-up and decay, gradients of norm 1 at most. Order is drawn from ``seed``.

    Args:
        lm: the model, without dropout.
        texts: how texts are put before it.
        captions: what it learns.
        prompt: what stands before each.
        steps: optimisation steps.
        lr: highest learning rate.
        batch_size: captions a step, at most those that there are.
        seed: of the order.
        quiet: show no bar.
    """
    device = next(lm.parameters()).device
    sampler = EpochSampler(len(captions), min(batch_size, len(captions)), seed)
    lm.requires_grad_(True)
    optimiser = torch.optim.AdamW(lm.parameters(), lr=lr)
    warmup = max(1, round(_WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    taken = 0
    with progress(steps, "language model", "step", quiet=quiet) as advance:
        while taken < steps:
            sampler.set_epoch(taken // len(sampler))
            for indices in sampler:
                if taken == steps:
                    break
                rows = [captions[i] for i in indices]
                batch = texts.targets([prompt] * len(rows), rows, device, ended=True)
                logits = lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
                loss = nnf.cross_entropy(logits.flatten(0, 1)[batch.index].float(), batch.target)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                taken += 1
                advance(1)
    optimiser.zero_grad(set_to_none=True)
    lm.requires_grad_(False)
