"""Contrastive steps on batches of any size: the loss of the whole batch, the memory of a chunk, exact gradients.

Embeddings of all clips first, without a graph; the loss once on them; then chunk by chunk again with a graph, from the
loss's gradient of each embedding (GradCache: Gao et al. 2021, section 3). Masks are inputs, and the random numbers of
dropout are replayed, so that both passes see the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvivit._chunks import PREFIXES, Chunk, Encoded, TwoPasses, random_state, set_random_state
from fastvivit._staging import Staging
from fastvivit.losses import mean_count
from fastvivit.modules.clips import Keep, Kept
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.tubelets import Tubelets


@dataclass(frozen=True, eq=False)
class ContrastivePart:
    """A batch from one source. Its captions are negatives of its own clips alone.

    Attributes:
        video: (B, C, T, H, W) clips, (B, C, H, W) images, a list of B clips (C, T_i, H_i, W_i), or ``Tubelets``; on
            the model's device or on the host, best pinned.
        texts: B captions.
        keep: the tokens to keep, as ``ViViT`` takes them; None for all, and beside ``Tubelets``.
        weight: of its loss among the parts.
        text_seeds: B whole numbers >= 0 that "mlm" masks captions by; None draws them.

    Raises:
        ValueError: captions, ids or seeds that are not one a clip; no clips; a weight that is not above 0 and finite.
    """

    video: Tensor | Sequence[Tensor] | Tubelets
    texts: Sequence[str]
    keep: Keep = None
    weight: float = 1.0
    text_seeds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        count = len(self.video)
        if not count:
            raise ValueError("video: wanted at least one clip, got none")
        if isinstance(self.texts, str) or len(self.texts) != count or not all(isinstance(t, str) for t in self.texts):
            raise ValueError(f"texts: wanted {count} strings, one a clip, got {self.texts!r}")
        ids = self.keep.ids if isinstance(self.keep, Kept) else self.keep
        if ids is not None and len(ids) != count:
            raise ValueError(f"keep: wanted ids of {count} clips like video, got of {len(ids)}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: wanted above 0, and finite, got {self.weight!r}")
        if self.text_seeds is not None and len(self.text_seeds) != count:
            raise ValueError(f"text_seeds: wanted {count} numbers, one a caption, got {len(self.text_seeds)}")


def contrastive_losses(
    model: VideoTextModel, parts: Sequence[ContrastivePart], *, loss: str | None = None, gather: bool = False
) -> dict[str, Tensor]:
    """Losses of a batch in one piece, with a graph.

    Args:
        model: the dual encoder.
        parts: the batch, a part a source.
        loss: "infonce" or "siglip"; None is the model's.
        gather: take negatives from every rank of the default process group, as ``F.nce_loss`` does.

    Returns:
        0-d tensors: ``loss``, the mean of the parts' losses by weight; ``contrastive`` and, with an auxiliary head, the
        part named "mlm" or "captioning", means by weight too; of several parts also ``loss_0``, ``loss_1``, ….

    Raises:
        ValueError: no parts, an unknown loss, "siglip" for a model without a bias, and what the encoders raise.
    """
    _require(model, parts, loss)
    staging = Staging(model.logit_scale.device)
    found = [
        model.losses(
            staging.to_device(part.video),
            part.texts,
            keep=staging.to_device(part.keep),
            gather=gather,
            text_seeds=part.text_seeds,
            loss=loss,
        )
        for part in parts
    ]
    return _together(found, _shares(parts))


@torch.enable_grad()
def chunked_backward(
    model: VideoTextModel,
    parts: Sequence[ContrastivePart],
    *,
    chunk: int | Sequence[int],
    loss: str | None = None,
    gather: bool = False,
    prefix: str = "device",
    sync: Callable[[bool], AbstractContextManager] | None = None,
) -> dict[str, Tensor]:
    """``contrastive_losses(...)["loss"].backward()`` in the memory of a chunk: the same gradients, to rounding.

    What grows with the batch are its embeddings (float32) and, of a chunk at a time, nothing else; clips may stay on
    the host. All but the last chunk are encoded twice, except by what is not trained: a frozen tower runs once, and so
    do the blocks before the first trainable one. Autocast is the caller's. Random numbers (dropout, stochastic depth)
    are drawn once a chunk, as by a loop over chunks, and the generators are left so.

    Args:
        model: the dual encoder.
        parts: the batch, a part a source.
        chunk: clips a pass; several numbers are those of each part.
        loss: "infonce" or "siglip"; None is the model's.
        gather: take negatives from every rank, as ``F.nce_loss`` does; gradients are then to be averaged over ranks.
        prefix: where the outputs of frozen blocks are kept between the passes, in autocast's dtype: "device", "host"
            (pinned), or "off": they are not, and run again. They grow with the batch.
        sync: ``sync(last)`` is a context around each call of the backward engine; ``last`` is True in the last one
            alone. For trainers that reduce gradients over ranks there: only then are those of every parameter
            complete. Every parameter that is trained may get a gradient in any of them, but the temperature and the
            bias do in the last.

    Returns:
        The values of ``contrastive_losses``, detached; gradients are added to ``.grad``.

    Raises:
        ValueError: what ``contrastive_losses`` raises, a chunk below 1 or numbers that are not one a part, an unknown
            prefix.
    """
    loss = _require(model, parts, loss)
    sizes = _sizes(chunk, parts)
    if prefix not in PREFIXES:
        raise ValueError(f"prefix: wanted one of {', '.join(map(repr, PREFIXES))}, got {prefix!r}")
    step = _Step(model, parts, TwoPasses(model, prefix), sizes, gather=gather)
    return step.run(loss, gather, sync or (lambda last: nullcontext()))


class _Step:
    """One call of ``chunked_backward``."""

    def __init__(
        self,
        model: VideoTextModel,
        parts: Sequence[ContrastivePart],
        passes: TwoPasses,
        sizes: list[int],
        *,
        gather: bool,
    ) -> None:
        self.model, self.passes, self.parts, self.shares = model, passes, parts, _shares(parts)
        self.chunks = [
            made
            for index, (part, size) in enumerate(zip(parts, sizes, strict=True))
            for made in passes.chunks(index, part.video, part.texts, part.keep, size)
        ]
        self.head = model.auxiliary
        self.seeds = [model.seeds(part.text_seeds, len(part.texts)) for part in parts]
        # Sums over the tokens of a chunk are divided by the tokens of the whole part.
        counts = [0 if self.head is None else self.head.count(model.text, part.texts) for part in parts]
        self.tokens = [mean_count(one, passes.device, gather=gather and self.head is not None) for one in counts]
        self.auxiliary: list[Tensor | None] = [None] * len(parts)

    def run(self, loss: str, gather: bool, sync: Callable[[bool], AbstractContextManager]) -> dict[str, Tensor]:
        vectors, whole = self._embed()
        contrastive, gradients, scalars = self._contrast(vectors, loss, gather)
        del vectors
        # The chunk that has its graph already goes first.
        last, others = self.chunks[-1], self.chunks[:-1]
        self._back(last, whole, gradients, scalars if not others else [], sync)
        del whole
        device = self.passes.device
        drawn = random_state(device)
        for chunk, kept in self.passes.staging.ahead(others, self.passes.kept):
            encoded = self.passes.second(chunk, kept)
            del kept  # or it would outlive the copy of the next but one
            set_random_state(device, drawn)
            self._back(chunk, encoded, gradients, scalars if chunk is others[-1] else [], sync)
            drawn = random_state(device)
            del encoded
        return self._values(contrastive)

    def _embed(self) -> tuple[list[tuple[Tensor, Tensor]], Encoded]:
        """The first pass: embeddings of each part, and the last chunk with its graph."""
        found: list[list[Encoded]] = [[] for _ in self.parts]
        for chunk, clips in self.passes.staging.ahead(self.chunks, self.passes.clips):
            graph, encoded = chunk is self.chunks[-1], None  # else tokens of two chunks are alive at once
            if graph:
                # PyTorch 2.10 keeps casts of weights that were made without a graph, and would use them here.
                torch.clear_autocast_cache()
            encoded = self.passes.first(chunk, clips, graph=graph)
            del clips
            found[chunk.part].append(Encoded(_wide(encoded.video), _wide(encoded.text), None))
        vectors = [
            (torch.cat([one.video for one in chunks]), torch.cat([one.text for one in chunks])) for chunks in found
        ]
        return vectors, encoded

    def _contrast(
        self, vectors: list[tuple[Tensor, Tensor]], loss: str, gather: bool
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """The loss: of each part, its gradients for the embeddings, and those of the temperature and bias with them."""
        model = self.model
        scalars = [model.scale] if loss == "infonce" else [model.scale, model.logit_bias]
        leaves = [one.detach().requires_grad_() for one in scalars]
        rows = [tuple(one.requires_grad_() for one in pair) for pair in vectors]
        options = dict(zip(("scale", "bias"), leaves, strict=False), loss=loss, gather=gather)
        losses = [model.contrast(*pair, **options) for pair in rows]
        total = sum(share * one for share, one in zip(self.shares, losses, strict=True))
        with self._as_written:
            flat = torch.autograd.grad(total, [*leaves, *(one for pair in rows for one in pair)])
        given, rest = flat[: len(leaves)], flat[len(leaves) :]
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return [one.detach() for one in losses], pairs, list(zip(scalars, given, strict=True))

    def _back(
        self,
        chunk: Chunk,
        encoded: Encoded,
        gradients: list[tuple[Tensor, Tensor]],
        scalars: list[tuple[Tensor, Tensor]],
        sync: Callable[[bool], AbstractContextManager],
    ) -> None:
        """Backward of a chunk; ``scalars`` are there in the last one alone."""
        by_video, by_text = gradients[chunk.part]
        roots = [(encoded.video, by_video[chunk.rows]), (encoded.text, by_text[chunk.rows]), *scalars]
        if self.head is not None:
            roots.append((self._auxiliary_loss(chunk, encoded), None))
        roots = [(t, g if g is None else g.to(t.dtype)) for t, g in roots if t.requires_grad]
        with sync(bool(scalars)), self._as_written:
            if roots:
                torch.autograd.backward(*map(list, zip(*roots, strict=True)))

    @property
    def _as_written(self) -> torch.autocast:
        # A backward is to run outside of autocast, or products that the forward took in float32 lose their digits.
        return torch.autocast(self.passes.device.type, enabled=False)

    def _auxiliary_loss(self, chunk: Chunk, encoded: Encoded) -> Tensor:
        part, seeds = chunk.part, self.seeds[chunk.part]
        seeds = None if seeds is None else seeds[chunk.rows]
        found = self.model.auxiliary_loss(encoded.out, chunk.texts, seeds, count=self.tokens[part])
        before = self.auxiliary[part]
        self.auxiliary[part] = found.detach() if before is None else before + found.detach()
        return self.shares[part] * self.head.config.weight * found

    def _values(self, contrastive: list[Tensor]) -> dict[str, Tensor]:
        found = [{"loss": one, "contrastive": one} for one in contrastive]
        if self.head is not None:
            config = self.head.config
            for values, extra in zip(found, self.auxiliary, strict=True):
                values |= {"loss": values["loss"] + config.weight * extra, config.kind: extra}
        return _together(found, self.shares)


def _wide(vectors: Tensor) -> Tensor:
    return vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))


def _shares(parts: Sequence[ContrastivePart]) -> list[float]:
    total = sum(part.weight for part in parts)
    return [part.weight / total for part in parts]


def _together(found: list[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    """Means of the parts' losses by their shares; of several parts also the loss of each."""
    means = {
        name: sum(share * one[name] for share, one in zip(shares, found, strict=True)) for name in found[0]
    }  # fmt: skip
    return means | ({f"loss_{i}": one["loss"] for i, one in enumerate(found)} if len(found) > 1 else {})


def _require(model: Any, parts: Any, loss: str | None) -> str:
    if not isinstance(model, VideoTextModel):
        raise ValueError(f"model: wanted a VideoTextModel, got {type(model).__name__}")
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(one, ContrastivePart) for one in parts):
        raise ValueError(f"parts: wanted a list of ContrastivePart, at least one, got {parts!r}")
    return model.require_loss(loss)


def _sizes(chunk: Any, parts: Sequence[ContrastivePart]) -> list[int]:
    sizes = [chunk] * len(parts) if isinstance(chunk, int) else list(chunk)
    if len(sizes) != len(parts) or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes):
        raise ValueError(
            f"chunk: wanted a whole number of at least 1, or one for each of {len(parts)} parts, got {chunk!r}"
        )
    return sizes
