"""ViViT on packed tokens: only kept tubelets are ever read, embedded or attended to."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.models import ViViTConfig
from fastvivit.modules.block import Block
from fastvivit.modules.clips import Clips, Keep, Kept, in_grid_order
from fastvivit.modules.cross import AttentionPool
from fastvivit.modules.embed import PatchEmbed, TubesEmbed
from fastvivit.modules.offload import HostOffload
from fastvivit.modules.passes import Begun, EncoderOutput
from fastvivit.modules.pooling import mean_of_clips
from fastvivit.modules.recompute import checkpointed, require_policy
from fastvivit.modules.tubelets import Tubelets, embed_tubelets
from fastvivit.tokens import Tokens

# The sequences that a block's attention runs in, by ``ViViTConfig.attention``.
GROUPS = {"joint": "clip", "frame": "frame", "factorised": "frame", "tubes": "view"}


class ViViT(nn.Module):
    """Video Vision Transformer (Arnab et al. 2021), in every form that the paper compares (sections 3.1 and 4).

    One block and one attention serve them all: what differs is how the packed tokens are grouped.

    Args:
        config: see ``ViViTConfig``.

    Attributes:
        imported: the ``ImportReport`` of an encoder made from another library's weights, else None. It is not
            saved.
        tuning: how ``fastvivit.tune`` has set it up, as plain JSON values; None where it has not.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        if config.attention == "tubes":
            self.embed = TubesEmbed(config)
        else:
            time = None if config.attention == "frame" else config.positions
            self.embed = PatchEmbed(config, config.tubelet, config.grid, time=time)
        self.image = None
        if config.images:
            _, h, w = config.tubelet
            self.image = PatchEmbed(config, (h, w), (1, config.size[0] // h, config.size[1] // w), time=None)
        self.cls = self.cls_pos = None
        if config.class_token:
            self.cls = nn.Parameter(torch.zeros(1, config.width))
            self.cls_pos = nn.Parameter(torch.empty(1, config.width))
            nn.init.trunc_normal_(self.cls_pos, std=config.pos_std)
        self.pre_norm = nn.LayerNorm(config.width, config.eps) if config.pre_norm else nn.Identity()
        extra = config.attention == "factorised" or config.cross_view
        self.blocks = nn.ModuleList(Block(config, rate, extra=extra) for rate in config.drop_rates)
        self.norm = nn.LayerNorm(config.width, config.eps) if config.final_norm else nn.Identity()
        self.pool = AttentionPool(config.width, config.pool_heads) if config.pool == "attention" else None
        self.checkpointing: str | None = None
        self.offload: HostOffload | None = None
        self.tuning: dict[str, Any] | None = None
        self.imported = None

    @property
    def num_features(self) -> int:
        """Width of the tokens and of ``pooled``, D."""
        return self.config.width

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        ends = (".pos", ".pos_time", "cls", "cls_pos", "pool.query")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def set_grad_checkpointing(self, enable: bool = True, policy: str = "full", *, offload: bool = False) -> None:
        """Keep less of what blocks compute while training; the backward computes it again. No number changes.

        Kept of a block, in numbers of its dtype a token, D wide and F in the feed-forward layer:

        | | numbers | at F = 4 D | computed again |
        | --- | --- | --- | --- |
        | off | 8 D + 2 F | 16 D | nothing |
        | "selective" | 6 D + F | 10 D | LayerNorms, the activation, moves of rows |
        | "full" | D | D | the block |

        The 6 D are the block's input, queries, keys and values, what attention gives, and the sum of that and the
        input. Off and "selective" keep 4 bytes a head more, and 16 of the norms. Autocast on a GPU norms in float32:
        off, the two sums then take twice their bytes. A second attention (factorised encoder) keeps 7 D beside all
        this, "selective" 6 D. The activation "quick_gelu" keeps F more.

        Args:
            enable: or keep everything.
            policy: "full" or "selective".
            offload: what "full" keeps waits in host memory: see ``HostOffload``.

        Raises:
            ValueError: an unknown policy; ``offload`` with another than "full".
        """
        require_policy(policy, offload)
        self.checkpointing = policy if enable else None
        self.offload = HostOffload() if enable and offload else None

    @torch.no_grad()
    def extend_frames(self, frames: int, how: str = "interpolate") -> None:
        """Make room for clips of ``frames`` frames: positions are resized in time (paper, short to long).

        Call it before the optimiser is made: the position table is a new parameter.

        Args:
            frames: a multiple of the tubelet's frames.
            how: "interpolate", "repeat" or "tile", as in ``F.resize_positions``.

        Raises:
            ValueError: frames that the tubelet does not divide, an unknown ``how``.
        """
        config = self.config.replace(frames=frames)
        if config.attention == "tubes":
            for tube, grid in zip(self.embed.tubes, config.views, strict=True):
                tube.extend(grid, how)
        else:
            self.embed.extend(config.grid, how)
        self.config = config

    def to_hf_state_dict(self, layout: str = "memory") -> dict[str, Tensor]:
        """The video path as a state dict of transformers' ViViT: ``fastvivit.convert.to_hf_state_dict``."""
        # Loaded when used: the converters stand on this class.
        return import_module("fastvivit.convert").to_hf_state_dict(self, layout)

    def forward(
        self,
        video: Tensor | Sequence[Tensor] | Tubelets,
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        strategy: str = "random",
        layers: Sequence[int] = (),
    ) -> EncoderOutput:
        """Encode clips, or images.

        Args:
            video: (B, C, T, H, W) clips, (B, C, H, W) images, a list of B clips (C, T_i, H_i, W_i), or the kept
                ``Tubelets`` of clips, of which nothing more is dropped. uint8 is normalised with the configured
                mean and std; floating pixels are taken as they are. With fewer frames than positions the first
                ones are used; other heights and widths interpolate them.
            mask_ratio: share of each clip's tokens to drop, in eval too; drawn by ``F.random_keep``.
            keep: the tokens to keep instead: (B, K) int64 ids, or a list of B tensors of them. Distinct in a
                clip. Which tube an id belongs to is read from the ids (on a GPU that waits for them).
            generator: source of randomness for ``mask_ratio``.
            strategy: "random", "tube" or "frame": what ``mask_ratio`` drops; of tubes "random" only, each tube at
                the ratio.
            layers: blocks (from 0) whose output is wanted too, in this order, in ``EncoderOutput.layers``.

        Returns:
            ``EncoderOutput``.

        Raises:
            ValueError: a wrong shape or number, more frames than positions, both ``keep`` and ``mask_ratio``,
                ids out of range or repeated.
        """
        layers = tuple(layers)
        self._require_layers(layers, 0)
        begun = self.begin(video, mask_ratio=mask_ratio, keep=keep, generator=generator, strategy=strategy)
        return self.finish(begun, layers=layers)

    def begin(
        self,
        video: Tensor | Sequence[Tensor] | Tubelets,
        *,
        upto: int = 0,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        strategy: str = "random",
    ) -> Begun:
        """The first part of ``forward``: embed the kept tokens, and run the first ``upto`` blocks.

        What comes before the first trainable block is the same in every pass, and may be kept (``frozen_blocks``).

        Args:
            video: as ``forward`` takes it, and so are those not listed here.
            upto: blocks to run, 0 to the depth.
            mask_ratio: see ``forward``.
            keep: see ``forward``.
            generator: see ``forward``.
            strategy: see ``forward``.

        Returns:
            ``Begun``; ``finish`` makes of it what ``forward`` returns.

        Raises:
            ValueError: ``upto`` out of range, and what ``forward`` raises.
        """
        given = isinstance(video, Tubelets)
        if mask_ratio and (given or keep is not None):
            raise ValueError(f"mask_ratio: wanted 0 beside {'Tubelets' if given else 'keep'}, got {mask_ratio}")
        if given and keep is not None:
            raise ValueError("keep: wanted None beside Tubelets, which say themselves what they are, got ids")
        if not 0 <= upto <= len(self.blocks):
            raise ValueError(f"upto: wanted 0..{len(self.blocks)} blocks, got {upto}")
        group = GROUPS[self.config.attention]
        cls = group if self.config.class_token else None
        if given:
            x, tokens = embed_tubelets(video, self.embed, self.image, cls)
            grid, drawn = tokens.views[0][0], False
        else:
            clips = Clips(video, self.embed, self.image)
            if mask_ratio:
                keep = clips.draw(mask_ratio, generator, strategy)
            x, tokens = clips.embed(keep, cls)
            grid, drawn = clips.grid, isinstance(keep, Kept) or bool(mask_ratio)
        restore = None
        if group != "clip" and keep is not None and not drawn:
            # A sequence's tokens have to stand together. Ours are drawn in order; a caller's may not be.
            x, tokens, restore = in_grid_order(x, tokens)
        if cls is not None:
            x = F.scatter_tokens(x, tokens.grid_rows, tokens.rows, fill=(self.cls + self.cls_pos)[0].to(x.dtype))
            restore = None
        if drawn:
            keep = keep.ids if isinstance(keep, Kept) else [one.ids[0] for one in keep]
        elif given:
            keep = video.keep
        x, _ = self._run(self.pre_norm(x), tokens, 0, upto, ())
        return Begun(x=x, tokens=tokens, blocks=upto, keep=keep, grid=grid, restore=restore)

    def finish(self, begun: Begun, *, layers: Sequence[int] = ()) -> EncoderOutput:
        """The rest of ``forward``: the blocks that ``begin`` left out, final norm, pooling.

        Args:
            begun: of this encoder.
            layers: as ``forward`` takes them, of the blocks that are run here.

        Returns:
            ``EncoderOutput``.

        Raises:
            ValueError: a layer that isn't there, or that ``begin`` has run.
        """
        layers, tokens, restore = tuple(layers), begun.tokens, begun.restore
        self._require_layers(layers, begun.blocks)
        x, found = self._run(begun.x, tokens, begun.blocks, len(self.blocks), layers)
        x = self.norm(x)
        pooled = self._pooled(x, tokens)
        place = tokens.place
        if restore is not None:
            x, *found = (F.gather_tokens(rows, restore, distinct=True) for rows in (x, *found))
            place = place[restore]
        return EncoderOutput(
            tokens=x,
            cu_seqlens=tokens.by_clip.cu_seqlens,
            place=place,
            keep=begun.keep,
            grid=begun.grid,
            pooled=pooled,
            counts=tokens.counts,
            layers=tuple(found),
        )

    def frozen_blocks(self, *, images: bool = False) -> int:
        """Blocks that run before anything trainable, the embedding counted with them: what ``begin`` may run once.

        Args:
            images: of images, which have an embedding of their own; else of clips.

        Returns:
            0 to the depth; 0 where the embedding (or a CLS token) is trained.
        """
        first = [self.image if images else self.embed, self.pre_norm]
        before = [p for module in first for p in module.parameters()]
        before += [p for p in (self.cls, self.cls_pos) if p is not None]
        if any(p.requires_grad for p in before):
            return 0
        return next((i for i, block in enumerate(self.blocks) if block.trains), len(self.blocks))

    def _require_layers(self, layers: Sequence[int], first: int) -> None:
        for layer in layers:
            if not first <= layer < len(self.blocks):
                raise ValueError(f"layers: wanted blocks in {first}..{len(self.blocks) - 1}, got {layer}")

    def _run(
        self, x: Tensor, tokens: Tokens, first: int, last: int, layers: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Blocks ``first`` to ``last - 1``: the tokens, and those after each block asked for."""
        group = tokens.grouping(GROUPS[self.config.attention])
        extra = None
        if self.config.attention == "factorised":
            extra = tokens.by_place
        elif self.config.cross_view:
            extra = tokens.by_clip
        found = {}
        for index in range(first, last):
            block = self.blocks[index]
            saving = self.checkpointing is not None and self.training and (x.requires_grad or block.trains)
            inputs = (x, group, tokens.by_clip, extra)
            if saving and self.checkpointing == "full":
                x = checkpointed(block, *inputs, offload=self.offload)
            else:
                x = block(*inputs, True) if saving else block(*inputs)
            if index in layers:
                found[index] = x
        return x, [found[index] for index in layers]

    def _pooled(self, x: Tensor, tokens: Tokens) -> Tensor | None:
        """(B, D) of all rows (M, D)."""
        if self.config.pool == "attention":
            return self.pool(x, tokens.by_clip.cu_seqlens, tokens.by_clip.max_seqlen)
        return None if self.config.pool is None else mean_of_clips(x, tokens, cls=self.config.pool == "cls")
