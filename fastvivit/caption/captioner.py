"""A frozen video encoder and a frozen language model, and the little between them that is trained."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.caption.arguments import count_clips, one_a_clip, require_tokens, strings
from fastvivit.caption.bridge import cross, make_bridge
from fastvivit.caption.files import load_layers, save_layers
from fastvivit.caption.gated import GatedCrossAttention
from fastvivit.caption.insertion import Insertion, insert, remove, seeing
from fastvivit.caption.language import Head, find_blocks, find_head, longest_text, queries_per_key, width_of
from fastvivit.caption.likelihood import log_likelihoods, token_losses
from fastvivit.caption.media import Media
from fastvivit.caption.texts import Targets, Texts
from fastvivit.caption.vision import Vision
from fastvivit.caption.writing import require_options, write
from fastvivit.losses import mean_count
from fastvivit.modules.clips import Keep
from fastvivit.modules.cross import require_counts
from fastvivit.modules.offload import HostOffload
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import ViViT

Video = Tensor | Sequence[Tensor] | Tubelets | Vision


class VideoCaptioner(nn.Module):
    """Video to text as the paper has it (section 3.2, appendix A).

    The tokens of a frozen encoder are averaged over time at each place, resampled by a Perceiver, and seen by gated
    cross-attention in front of every block of a frozen causal language model. Only the resampler and the
    cross-attention are trained. At the start the gates are shut, and the model writes what the language model writes.

    The language model is any of transformers that is a stack of blocks (Llama, Qwen, GPT-2, OPT and the like, found by
    structure). It keeps its class, weights, state dict and ``generate``; called by itself it is what it was, and
    ``remove`` takes the new layers away for good. Encoder and language model are always in eval mode.

    Under FSDP2 shard the language model's blocks, the new layers and the captioner, but not the language model as a
    whole, whose forward is not called; ``generate`` and ``score`` need torch's ``register_fsdp_forward_method``.

    Args:
        video: the encoder; frozen here.
        lm: the language model; frozen here.
        tokenizer: its tokenizer.
        resampler: True makes the paper's (3 layers, 1024 wide, 8 heads, 4096 inner, as many latents as a clip has
            places); one of your own; False leaves it out, and a linear layer leads to the language model's width.
        every: a new layer in front of each ``every``-th block.
        heads: attention heads of the new layers; None is as many of ``head_dim`` as fit the language model's width.
        head_dim: width of a head.
        kv_heads: heads of keys and values in the new layers. None shares a key among as many query heads as the
            language model's own attention does, if that divides ``heads``: a token is written by reading all keys.
        ff: inner width of a gated feed-forward layer behind each cross-attention, as a multiple of the language
            model's width. The paper names none (0); Flamingo has 4, which costs more than the attention.
        over_time: average over time first. Without it the resampler sees every token, which the paper found unstable
            past 16 to 32 frames; an encoder by tubes needs it so.

    Attributes:
        video: the encoder.
        lm: the language model.
        resampler: it, or None.
        proj: what leads to the language model's width without a resampler, or None.
        layers: the new layers, in the order of the blocks.

    Raises:
        ValueError: models of another kind, a resampler for another width, numbers out of range, tubes with
            ``over_time``.
    """

    def __init__(
        self,
        video: ViViT,
        lm: nn.Module,
        tokenizer: Any,
        resampler: bool | PerceiverResampler = True,
        every: int = 1,
        *,
        heads: int | None = None,
        head_dim: int = 64,
        kv_heads: int | None = None,
        ff: int = 0,
        over_time: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(video, ViViT):
            raise ValueError(f"video: wanted a ViViT, got {type(video).__name__}")
        if over_time and video.config.attention == "tubes":
            raise ValueError("over_time: wanted False for an encoder by tubes, which share no places, got True")
        blocks, width = find_blocks(lm), width_of(lm)
        require_counts(every=every, head_dim=head_dim)
        if every > len(blocks):
            raise ValueError(f"every: wanted at most the {len(blocks)} blocks of the language model, got {every}")
        if not isinstance(ff, int) or isinstance(ff, bool) or ff < 0:
            raise ValueError(f"ff: wanted a whole number of at least 0, got {ff!r}")
        if heads is None:
            head_dim = min(head_dim, width)
            heads = width // head_dim
        if kv_heads is None:
            kv_heads = heads // math.gcd(heads, queries_per_key(lm))
        require_counts(heads=heads, kv_heads=kv_heads)
        self.settings = {
            "every": every, "heads": heads, "head_dim": head_dim, "kv_heads": kv_heads, "ff": ff,
            "over_time": over_time,
        }  # fmt: skip
        self.tokenizer = tokenizer
        self.texts = Texts(tokenizer, longest_text(lm, tokenizer))
        rows = lm.get_input_embeddings().weight.shape[0]
        if max(self.texts.start, self.texts.pad, self.texts.end or 0) >= rows:
            raise ValueError(f"tokenizer: wanted start, end and pad tokens below the {rows} of lm, got one past them")
        self.resampler, self.proj = make_bridge(video, width, resampler)
        media_width = self.resampler.num_features if self.resampler is not None else width
        self.layers = nn.ModuleList(
            GatedCrossAttention(width, media_width, heads, head_dim=head_dim, kv_heads=kv_heads, ff=ff)
            for _ in range(len(blocks) // every)
        )
        self.insertion = Insertion(self.layers, width)
        insert(lm, every, self.insertion)
        self.video, self.lm = video.requires_grad_(False), lm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> VideoCaptioner:
        """Set the mode of the trained part; the frozen models stay in eval mode, without dropout."""
        super().train(mode)
        self.video.eval()
        self.lm.eval()
        return self

    def remove(self) -> nn.Module:
        """Take the new layers out of the language model, and return it as it was; it stays frozen.

        The captioner can't write or be trained after that, only saved.
        """
        remove(self.lm, self.insertion)
        return self.lm

    def set_grad_checkpointing(self, enable: bool = True, *, offload: bool = False) -> None:
        """Keep no activations inside blocks while training; they are computed again in the backward.

        That is the language model's blocks, each with its new layer, and the resampler's. With ``offload`` their
        inputs, which are kept, wait in host memory: see ``HostOffload``.
        """
        self.insertion.checkpointing = enable
        self.insertion.offload = HostOffload() if enable and offload else None
        if self.resampler is not None:
            self.resampler.set_grad_checkpointing(enable, offload=offload)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return set() if self.resampler is None else {f"resampler.{name}" for name in self.resampler.no_weight_decay()}

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the frozen models."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith(("video.", "lm."))}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the new layers alone, with their settings and fingerprints of the frozen models.

        The folder appears whole or not at all. ``fastvivit.save_pretrained`` writes the frozen models, too.
        """
        return save_layers(self, Path(folder))

    def load(self, folder: str | os.PathLike[str], *, check: bool = True) -> VideoCaptioner:
        """Put what ``save`` wrote in place.

        Args:
            folder: where it is.
            check: refuse where encoder or language model are not the ones it was trained with, to the bit.

        Raises:
            ValueError: no such file, other settings or shapes, other frozen models.
        """
        load_layers(self, Path(folder), check=check)
        return self

    @torch.no_grad()
    def encode_video(
        self,
        video: Tensor | Sequence[Tensor] | Tubelets,
        mask_ratio: float = 0.0,
        *,
        keep: Keep = None,
        generator: torch.Generator | None = None,
    ) -> Vision:
        """What the frozen encoder makes of clips: all that the rest of the model needs of them, worth keeping.

        Args:
            video: B clips or images, as ``ViViT`` takes them.
            mask_ratio: share of the tokens to drop; the paper drops 0.3, in training and after it (section 6.1).
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.
        """
        out = self.video(video, mask_ratio=mask_ratio, keep=keep, generator=generator)
        return Vision.of(out, over_time=self.settings["over_time"])

    def look(self, video: Video, mask_ratio: float = 0.0, *, keep: Keep = None, generator=None) -> Media:
        """What the language model's new layers see of B clips, with a graph to the resampler.

        Args:
            video: clips; or ``Tubelets`` or the ``Vision`` of clips, of which nothing more is dropped.
            mask_ratio: as in ``encode_video``.
            keep: as in ``encode_video``.
            generator: as in ``encode_video``.

        Raises:
            ValueError: as ``ViViT``; a ``Vision`` of another width, on another device, or with ``keep``.
        """
        if not isinstance(video, Vision):
            mask_ratio = 0.0 if isinstance(video, Tubelets) else mask_ratio
            video = self.encode_video(video, mask_ratio, keep=keep, generator=generator)
        elif keep is not None:
            raise ValueError("keep: wanted None beside a Vision, which has its tokens already, got ids")
        if video.tokens.shape[2] != self.video.num_features:
            raise ValueError(
                f"video: wanted tokens of width {self.video.num_features}, got shape {tuple(video.tokens.shape)}"
            )
        return cross(self.proj if self.resampler is None else self.resampler, video)

    def forward(
        self,
        video: Video,
        texts: Sequence[str],
        mask_ratio: float = 0.3,
        *,
        prompts: str | Sequence[str] = "",
        keep: Keep = None,
        generator: torch.Generator | None = None,
        gather: bool = False,
    ) -> Tensor:
        """The captioning loss, ``-log p(w_t | w_<t, video)`` averaged over the tokens of all texts (section 3.2).

        Args:
            video: B clips, or their ``Vision``.
            texts: B captions; the end token after each is learned, too.
            mask_ratio: share of the clips' tokens to drop, 0.3 as the paper; not used where ``keep``,
                ``Tubelets`` or a ``Vision`` have decided that already.
            prompts: what stands before each caption and is not learned; one for all, or B.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.
            gather: take the mean over the tokens of every rank of the default process group. Each returns its share;
                averaging gradients over ranks, as DDP does, gives those of one process.

        Returns:
            0-d float32.

        Raises:
            ValueError: another number of texts or prompts than clips, a text of no token, a captioner after
                ``remove``, and what ``look`` raises.
        """
        texts, clips = strings("texts", texts), count_clips(video)
        prompts = one_a_clip("prompts", prompts, clips)
        if len(texts) != clips:
            raise ValueError(f"texts: wanted {clips} strings, one a clip, got {len(texts)}")
        media = self.look(video, 0.0 if keep is not None else mask_ratio, keep=keep, generator=generator)
        batch = self.texts.targets(prompts, texts, media.tokens.device, ended=True)
        require_tokens("texts", texts, batch.counts)
        losses = self._losses(media, batch)
        return losses.sum() / mean_count(len(losses), losses.device, gather=True) if gather else losses.mean()

    def _losses(self, media: Media, batch: Targets) -> Tensor:
        """(M,) float32 loss of each target."""
        head = self._head
        with seeing(self.insertion, media):
            return token_losses(self.lm, head, batch)

    @cached_property
    def _head(self) -> Head | None:
        return find_head(self.lm)

    @torch.no_grad()
    def generate(
        self,
        video: Video,
        prompt: str | Sequence[str] = "",
        max_new_tokens: int = 32,
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> list[str]:
        """Describe clips. The clips are encoded once, their keys and values are computed once.

        Args:
            video: B clips, or their ``Vision``.
            prompt: what each text goes on from; one for all, or B.
            max_new_tokens: at most so many, and no more than the language model and its tokenizer take behind a prompt;
                one that leaves too little room loses its beginning.
            mask_ratio: share of the clips' tokens to drop. Nothing by default, so that the same clip gives the same
                text; the paper drops 0.3 here, too.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.
            options: of the language model's own ``generate``: ``num_beams``, ``do_sample``, ``cache_implementation``,
                ``num_return_sequences`` and so on. Greedy without any.

        Returns:
            B texts without prompt and special tokens; several in a row for a clip with ``num_return_sequences``. A
            text ends at the tokenizer's end token, which captions are learned with, or at one of the model's own.

        Raises:
            ValueError: another number of prompts than clips, ``max_new_tokens`` below 1, options set here,
                a captioner after ``remove``, and what ``look`` raises.
        """
        require_counts(max_new_tokens=max_new_tokens)
        require_options(options)
        prompts = one_a_clip("prompt", prompt, count_clips(video))
        media = self.look(video, 0.0 if keep is not None else mask_ratio, keep=keep, generator=generator)
        media.kept = True
        with seeing(self.insertion, media):
            ids = write(self.lm, self.texts, prompts, max_new_tokens, options, media.tokens.device)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def score(
        self,
        video: Video,
        prompts: str | Sequence[str],
        options: Sequence[Sequence[str]],
        normalise: str = "sum",
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-likelihood of options, each after its clip's prompt: multiple choice by the model's own preference.

        Args:
            video: B clips, or their ``Vision``; each is encoded once.
            prompts: what stands before the options; one for all, or B.
            options: for each clip one or more strings.
            normalise: "sum" over an option's tokens, or their mean with "tokens".
            mask_ratio: share of the clips' tokens to drop.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.

        Returns:
            (B, n) float32 with n the most options of a clip; -inf past the options of a clip with fewer.

        Raises:
            ValueError: an unknown ``normalise``, another number of prompts or lists than clips, an empty list, an
                option of no token, a captioner after ``remove``, and what ``look`` raises.
        """
        if normalise not in ("sum", "tokens"):
            raise ValueError(f"normalise: wanted 'sum' or 'tokens', got {normalise!r}")
        lists = [strings(f"options[{i}]", row) for i, row in enumerate(options)]
        clips = count_clips(video)
        prompts = one_a_clip("prompts", prompts, clips)
        if len(lists) != clips:
            raise ValueError(f"options: wanted {clips} lists of strings, one a clip, got {len(lists)}")
        media = self.look(video, 0.0 if keep is not None else mask_ratio, keep=keep, generator=generator)
        most = max(map(len, lists))
        # Every clip gets equally many rows; what fills them up is not looked at.
        filled = [row + row[:1] * (most - len(row)) for row in lists]
        batch = self.texts.targets(
            [prompt for prompt in prompts for _ in range(most)],
            [option for row in filled for option in row],
            media.tokens.device,
            ended=False,
        )
        require_tokens("options", [option for row in filled for option in row], batch.counts)
        losses = self._losses(media, batch)
        scores = log_likelihoods(losses, batch.counts, mean=normalise == "tokens").view(media.clips, most)
        absent = torch.tensor([[place >= len(row) for place in range(most)] for row in lists], device=scores.device)
        return scores.masked_fill(absent, float("-inf"))
