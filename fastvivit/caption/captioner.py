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
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.caption.files import load_layers, save_layers
from fastvivit.caption.gated import GatedCrossAttention
from fastvivit.caption.insertion import Insertion, insert, remove, seeing
from fastvivit.caption.language import (
    Head,
    find_blocks,
    find_head,
    last_states,
    longest_text,
    queries_per_key,
    width_of,
)
from fastvivit.caption.media import Media
from fastvivit.caption.texts import Ids, Targets, Texts
from fastvivit.caption.vision import Vision
from fastvivit.modules.clips import Keep
from fastvivit.modules.cross import require_counts
from fastvivit.modules.linear import Linear
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.vivit import ViViT

Video = Tensor | Sequence[Tensor] | Vision
_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
# What ``generate`` gives the language model itself.
_OURS = {"input_ids", "inputs", "inputs_embeds", "attention_mask", "generation_config", "max_length"}


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
        self.resampler, self.proj = self._bridge(video, width, resampler)
        media_width = self.resampler.num_features if self.resampler is not None else width
        self.layers = nn.ModuleList(
            GatedCrossAttention(width, media_width, heads, head_dim=head_dim, kv_heads=kv_heads, ff=ff)
            for _ in range(len(blocks) // every)
        )
        self.insertion = Insertion(self.layers, width)
        insert(lm, every, self.insertion)
        self.video, self.lm = video.requires_grad_(False), lm.requires_grad_(False)
        self.train(self.training)

    @staticmethod
    def _bridge(
        video: ViViT, width: int, resampler: bool | PerceiverResampler
    ) -> tuple[PerceiverResampler | None, Linear | None]:
        """What leads from the encoder to the new layers: a resampler or a linear layer."""
        if isinstance(resampler, PerceiverResampler):
            if resampler.in_dim != video.num_features:
                raise ValueError(
                    f"resampler: wanted in_dim = {video.num_features}, the encoder's width, got {resampler.in_dim}"
                )
            return resampler, None
        if not isinstance(resampler, bool):
            raise ValueError(f"resampler: wanted True, False or a PerceiverResampler, got {type(resampler).__name__}")
        if not resampler:
            return None, Linear(video.num_features, width)
        # As many latents as places, the paper's choice; tubes share no places.
        places = 256 if video.config.attention == "tubes" else video.config.grid[1] * video.config.grid[2]
        return PerceiverResampler(in_dim=video.num_features, latents=places, out_dim=width), None

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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside blocks while training; they are computed again in the backward."""
        self.insertion.checkpointing = enable
        if self.resampler is not None:
            self.resampler.set_grad_checkpointing(enable)

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
        video: Tensor | Sequence[Tensor],
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
            video: clips, or the ``Vision`` of clips, of which nothing more is dropped.
            mask_ratio: as in ``encode_video``.
            keep: as in ``encode_video``.
            generator: as in ``encode_video``.

        Raises:
            ValueError: as ``ViViT``; a ``Vision`` of another width, on another device, or with ``keep``.
        """
        if not isinstance(video, Vision):
            video = self.encode_video(video, mask_ratio, keep=keep, generator=generator)
        elif keep is not None:
            raise ValueError("keep: wanted None beside a Vision, which has its tokens already, got ids")
        tokens, mask = video.tokens, video.mask
        if tokens.shape[2] != self.video.num_features:
            raise ValueError(
                f"video: wanted tokens of width {self.video.num_features}, got shape {tuple(tokens.shape)}"
            )
        bridge = self.proj if self.resampler is None else self.resampler
        weight = next(bridge.parameters())
        if tokens.device != weight.device:
            raise ValueError(f"video: wanted a Vision on {weight.device}, as the captioner, got {tokens.device}")
        tokens = tokens.to(weight.dtype)
        clips, places = mask.shape
        ends = torch.arange(clips + 1, dtype=torch.int32, device=mask.device)
        if self.resampler is not None:
            latents = self.resampler(tokens, mask)
            return Media(tokens=latents.flatten(0, 1), cu_seqlens=ends * latents.shape[1], max_seqlen=latents.shape[1])
        # Real tokens first, clip by clip; masked ones behind all of them, where no clip ends. Attention ignores those,
        # but the gradient of a weight would not ignore their NaN.
        tokens = tokens.masked_fill(~mask.unsqueeze(2), 0)
        clip = torch.where(mask, ends[:-1].unsqueeze(1), clips).flatten()
        rows = F.gather_tokens(tokens.flatten(0, 1), clip.argsort(stable=True), distinct=True)
        return Media(tokens=self.proj(rows), cu_seqlens=nnf.pad(mask.sum(1).cumsum(0), (1, 0)).int(), max_seqlen=places)

    def forward(
        self,
        video: Video,
        texts: Sequence[str],
        mask_ratio: float = 0.3,
        *,
        prompts: str | Sequence[str] = "",
        keep: Keep = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The captioning loss, ``-log p(w_t | w_<t, video)`` averaged over the tokens of all texts (section 3.2).

        Args:
            video: B clips, or their ``Vision``.
            texts: B captions; the end token after each is learned, too.
            mask_ratio: share of the clips' tokens to drop, 0.3 as the paper; not used where ``keep`` or a ``Vision``
                has decided that already.
            prompts: what stands before each caption and is not learned; one for all, or B.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.

        Returns:
            0-d float32.

        Raises:
            ValueError: another number of texts or prompts than clips, a text of no token, a captioner after
                ``remove``, and what ``look`` raises.
        """
        texts, clips = _strings("texts", texts), _count(video)
        prompts = _prompts("prompts", prompts, clips)
        if len(texts) != clips:
            raise ValueError(f"texts: wanted {clips} strings, one a clip, got {len(texts)}")
        media = self.look(video, 0.0 if keep is not None else mask_ratio, keep=keep, generator=generator)
        batch = self.texts.targets(prompts, texts, media.tokens.device, ended=True)
        _require_tokens("texts", texts, batch.counts)
        return self._losses(media, batch).mean()

    def _losses(self, media: Media, batch: Targets) -> Tensor:
        """(M,) float32 loss of each target."""
        head = self._head
        with seeing(self.insertion, media):
            if head is None:
                logits = self.lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
                return nnf.cross_entropy(logits.flatten(0, 1)[batch.index].float(), batch.target, reduction="none")
            states = last_states(self.lm, batch.input_ids, batch.attention_mask)
        linear = self.lm.get_output_embeddings()
        return F.linear_cross_entropy(
            states.flatten(0, 1)[batch.index], linear.weight, batch.target, linear.bias,
            scale=head.scale, softcap=head.softcap, reduction="none",
        )  # fmt: skip

    @cached_property
    def _head(self) -> Head | None:
        return find_head(self.lm)

    @property
    def _ends(self) -> list[int] | None:
        """Tokens that end a text: the language model's own, and the one that captions are learned with."""
        own = getattr(self.lm.generation_config, "eos_token_id", None)
        own = own if isinstance(own, list) else [own]
        return sorted({token for token in (*own, self.texts.end) if token is not None}) or None

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
            max_new_tokens: at most so many, fewer than the language model and its tokenizer take in all.
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
            ValueError: another number of prompts than clips, ``max_new_tokens`` out of range, options set here,
                a captioner after ``remove``, and what ``look`` raises.
        """
        require_counts(max_new_tokens=max_new_tokens)
        if max_new_tokens >= self.texts.max_length:
            raise ValueError(
                f"max_new_tokens: wanted fewer than the {self.texts.max_length} tokens that the language model and its "
                f"tokenizer take, got {max_new_tokens}"
            )
        if taken := sorted(_OURS & options.keys()):
            raise ValueError(f"options: wanted those of the language model's generate but {sorted(_OURS)}, got {taken}")
        prompts = _prompts("prompt", prompt, _count(video))
        media = self.look(video, 0.0 if keep is not None else mask_ratio, keep=keep, generator=generator)
        media.kept = True
        start: Ids = self.texts.prompts(prompts, max_new_tokens, media.tokens.device)
        if not options.get("do_sample"):
            options = _GREEDY | options
        # Compiled for a static cache, every clip's keys would be new constants.
        options = {"pad_token_id": self.texts.pad, "eos_token_id": self._ends, "disable_compile": True} | options
        with seeing(self.insertion, media):
            ids = self.lm.generate(
                input_ids=start.input_ids,
                attention_mask=start.attention_mask,
                max_new_tokens=max_new_tokens,
                max_length=None,  # a model's own would be warned of at every call
                **options,
            )
        ids = getattr(ids, "sequences", ids)[:, start.input_ids.shape[1] :]
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
        lists = [_strings(f"options[{i}]", row) for i, row in enumerate(options)]
        clips = _count(video)
        prompts = _prompts("prompts", prompts, clips)
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
        _require_tokens("options", [option for row in filled for option in row], batch.counts)
        losses = self._losses(media, batch)
        counts = torch.tensor(batch.counts, device=losses.device)
        owner = torch.repeat_interleave(counts, output_size=len(losses))
        # The same to the bit every time: index_add_ is not, on a GPU.
        means = -F.segment_mean(losses.float().unsqueeze(1), owner, len(counts))[0].squeeze(1)
        scores = (means if normalise == "tokens" else means * counts).view(media.clips, most)
        absent = torch.tensor([[place >= len(row) for place in range(most)] for row in lists], device=scores.device)
        return scores.masked_fill(absent, float("-inf"))


def _strings(name: str, value: Sequence[str]) -> list[str]:
    if isinstance(value, str) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: wanted a list of strings, at least one, got {value!r}")
    return list(value)


def _count(video: Video) -> int:
    """Clips of a batch, before anything is computed of them."""
    if not isinstance(video, Tensor | Vision | list | tuple) or (isinstance(video, Tensor) and video.dim() == 0):
        raise ValueError(f"video: wanted clips as ViViT takes them, or a Vision, got {type(video).__name__}")
    return len(video)


def _require_tokens(name: str, texts: Sequence[str], counts: Sequence[int]) -> None:
    for text, count in zip(texts, counts, strict=True):
        if not count:
            raise ValueError(f"{name}: wanted strings of at least one token, got {text!r}")


def _prompts(name: str, value: str | Sequence[str], clips: int) -> list[str]:
    """One prompt a clip."""
    if isinstance(value, str):
        return [value] * clips
    found = _strings(name, value)
    if len(found) != clips:
        raise ValueError(f"{name}: wanted a string, or {clips} of them, one a clip, got {len(found)}")
    return found
