"""The Perceiver resampler: as many latents for every clip, whatever its length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit._checks import require_tensor
from fastvivit.modules.cross import CrossAttention, require_counts, require_lengths
from fastvivit.modules.linear import Linear
from fastvivit.modules.mlp import Mlp
from fastvivit.modules.offload import HostOffload
from fastvivit.modules.recompute import checkpointed
from fastvivit.ops.checked_cu_seqlens import checked_cu_seqlens


@dataclass(frozen=True, eq=False, kw_only=True)
class Keys:
    """What the latents of each clip attend to, for every layer.

    Attributes:
        order: (M + B·L,) int64 row of cat(media, latents) of each key, clip after clip; None where the media are
            the keys.
        cu_seqlens_q: (B + 1,) int32 latents of each clip.
        cu_seqlens_k: (B + 1,) int32 keys of each clip.
        max_seqlen_q: L.
        max_seqlen_k: an upper bound of the keys of a clip, or None.
        schedule: of ``F.varlen_schedule``; None on a CPU.
    """

    order: Tensor | None
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int | None
    schedule: Tensor | None


class ResamplerLayer(nn.Module):
    """``z + XA(LN z, LN media)``, then ``z + MLP(LN z)``, for latents z."""

    def __init__(
        self, width: int, heads: int, ff: int, *, head_dim: int | None = None, qk_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm_media = nn.LayerNorm(width, eps)
        self.norm_latents = nn.LayerNorm(width, eps)
        self.attn = CrossAttention(width, width, heads, head_dim=head_dim, qk_norm=qk_norm, eps=eps)
        self.norm_ff = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, ff)

    def forward(self, latents: Tensor, media: Tensor, keys: Keys) -> Tensor:
        """Latents (B·L, D), media (M, D) → (B·L, D)."""
        queries, seen = self.norm_latents(latents), self.norm_media(media)
        if keys.order is not None:
            # One move before the product: the cheapest way measured on a CPU. After the product there are twice the
            # columns to move; two attentions merged by their lse move nothing, but run every kernel twice, and a
            # float32 lse would limit float64.
            seen = F.gather_tokens(torch.cat((seen, queries)), keys.order, distinct=True)
        latents = latents + self.attn(
            queries, seen, keys.cu_seqlens_q, keys.cu_seqlens_k, keys.max_seqlen_q, keys.max_seqlen_k,
            schedule=keys.schedule,
        )  # fmt: skip
        return latents + self.mlp(self.norm_ff(latents))


class PerceiverResampler(nn.Module):
    """Learned latents that attend to a clip's tokens, layer by layer (Flamingo, Alayrac et al. 2022, section 2.1).

    The resampler between the video encoder and the language model of the paper (section 3.2): 3 layers, 1024 wide, 8
    heads, 256 latents. What it leaves open follows Flamingo: keys are the media and the latents, the activation is
    GELU. Scores are never stored, padding is never attended to.

    Args:
        dim: D of the latents.
        in_dim: width of the media; where it differs from ``dim`` a linear layer comes first.
        depth: layers.
        heads: attention heads; they divide ``dim``.
        latents: L latents a clip.
        ff: inner width of the feed-forward layers.
        concat_latents: whether latents attend to each other too (Flamingo), or to the media only (Perceiver, Jaegle
            et al. 2021).
        qk_norm: whether queries and keys get a LayerNorm in each head.
        out_dim: width of the result by a last linear layer; None leaves it out.
        head_dim: width of a head; None is ``dim / heads``, 64 is Flamingo's.
        eps: of the LayerNorms.

    Raises:
        ValueError: a number below 1, heads that do not divide ``dim`` where ``head_dim`` is None.
    """

    def __init__(
        self,
        dim: int = 1024,
        in_dim: int = 768,
        depth: int = 3,
        heads: int = 8,
        latents: int = 256,
        ff: int = 4096,
        *,
        concat_latents: bool = True,
        qk_norm: bool = False,
        out_dim: int | None = None,
        head_dim: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        require_counts(dim=dim, in_dim=in_dim, depth=depth, heads=heads, latents=latents, ff=ff)
        if out_dim is not None:
            require_counts(out_dim=out_dim)
        self.in_dim, self.concat_latents = in_dim, concat_latents
        # The arguments, for those who write a resampler to disk.
        self.settings = {
            "dim": dim, "in_dim": in_dim, "depth": depth, "heads": heads, "latents": latents, "ff": ff,
            "concat_latents": concat_latents, "qk_norm": qk_norm, "out_dim": out_dim, "head_dim": head_dim, "eps": eps,
        }  # fmt: skip
        self.in_proj = Linear(in_dim, dim) if in_dim != dim else nn.Identity()
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.layers = nn.ModuleList(
            ResamplerLayer(dim, heads, ff, head_dim=head_dim, qk_norm=qk_norm, eps=eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps)
        self.out_proj = Linear(dim, out_dim) if out_dim is not None else nn.Identity()
        self.checkpointing = False
        self.offload: HostOffload | None = None

    @property
    def num_features(self) -> int:
        """Width of the result."""
        return self.out_proj.out_features if isinstance(self.out_proj, Linear) else self.latents.shape[1]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return {"latents"}

    def set_grad_checkpointing(self, enable: bool = True, *, offload: bool = False) -> None:
        """Keep no activations inside layers while training; they are computed again in the backward.

        With ``offload`` the inputs that are kept wait in host memory: see ``HostOffload``.
        """
        self.checkpointing = enable
        self.offload = HostOffload() if enable and offload else None

    def forward(
        self,
        media: Tensor,
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Resample a batch, padded or packed.

        A place that is masked, or lies past the end of packed media, has no influence and gets gradient 0, whatever it
        holds. A clip without media is what the latents make of each other, or of themselves alone.

        Args:
            media: (B, S, in_dim), or packed (M, in_dim) with ``cu_seqlens``.
            mask: (B, S) bool, True where (B, S, in_dim) media are real; None is everywhere.
            cu_seqlens: (B + 1,) int32, from 0, never falling: clip b has rows ``cu[b] .. cu[b + 1] - 1``.
            max_seqlen: an upper bound of these lengths; None never stalls a device, but some GPU backends need it.

        Returns:
            (B, L, dim or out_dim).

        Raises:
            ValueError: a wrong shape, dtype or device, or (on a CPU) bad ``cu_seqlens`` or too small a maximum. On a
                GPU bad ``cu_seqlens`` make the whole result NaN.
        """
        self._check(media, mask, cu_seqlens, max_seqlen)
        packed = cu_seqlens is not None
        if packed:
            cu_seqlens = checked_cu_seqlens(cu_seqlens, media.shape[0], max_seqlen)
            row = torch.arange(media.shape[0], dtype=torch.int32, device=media.device)
            clip = torch.searchsorted(cu_seqlens[1:], row, right=True)
        else:
            clip, cu_seqlens, max_seqlen = _padded(media, mask)
            media = media.flatten(0, 1)
        clips = cu_seqlens.shape[0] - 1
        if packed or mask is not None:
            # Attention ignores these rows, but the gradient of a weight would not ignore their NaN.
            media = media.masked_fill((clip == clips).unsqueeze(1), 0)
        if mask is not None and not self.concat_latents:
            media = F.gather_tokens(media, clip.argsort(stable=True), distinct=True)
        x = self.in_proj(media)
        keys = self._keys(clip, cu_seqlens, max_seqlen)
        latents = self.latents.repeat(clips, 1)
        for layer in self.layers:
            if self.checkpointing and self.training:
                latents = checkpointed(layer, latents, x, keys, offload=self.offload)
            else:
                latents = layer(latents, x, keys)
        return self.out_proj(self.norm(latents)).unflatten(0, (clips, self.latents.shape[0]))

    def _check(self, media: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None) -> None:
        require_tensor("media", media, (2, 3))
        if media.shape[-1] != self.in_dim:
            raise ValueError(f"media: wanted a width of in_dim = {self.in_dim}, got shape {tuple(media.shape)}")
        if media.dim() == 2:
            if cu_seqlens is None:
                raise ValueError("cu_seqlens: wanted (B + 1,) int32 beside packed media (M, in_dim), got None")
            require_lengths(cu_seqlens, media)
            if mask is not None:
                raise ValueError("mask: wanted None beside packed media (M, in_dim), got a mask")
            return
        for name, value in (("cu_seqlens", cu_seqlens), ("max_seqlen", max_seqlen)):
            if value is not None:
                raise ValueError(f"{name}: wanted None beside media (B, S, in_dim), got {value}")
        if mask is not None:
            require_tensor("mask", mask, (2,), (torch.bool,), media)
            if mask.shape != media.shape[:2]:
                raise ValueError(f"mask: wanted shape {tuple(media.shape[:2])} like media, got {tuple(mask.shape)}")

    def _keys(self, clip: Tensor, cu_seqlens: Tensor, longest: int | None) -> Keys:
        """From the clip (M,) of each row of media (B: of none), and the media (B + 1,) of each clip."""
        clips, count = cu_seqlens.shape[0] - 1, self.latents.shape[0]
        owner = torch.arange(clips + 1, dtype=torch.int32, device=clip.device)
        cu_seqlens_q = owner * count
        rows, order = clip.shape[0], None
        if self.concat_latents:
            mine = owner[:-1].unsqueeze(1).expand(-1, count).flatten()
            order = torch.cat((clip, mine)).argsort(stable=True)
            rows = rows + clips * count
            # Unsound lengths are -1 throughout and stay below 0 at the head, where attention sees it.
            cu_seqlens = cu_seqlens + cu_seqlens_q
            longest = None if longest is None else longest + count
        schedule = None
        if cu_seqlens.is_cuda:
            schedule = F.varlen_schedule(cu_seqlens_q, cu_seqlens, clips * count, rows)
        return Keys(
            order=order, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens, max_seqlen_q=count, max_seqlen_k=longest,
            schedule=schedule,
        )  # fmt: skip

    @torch.no_grad()
    def load_flamingo(self, state: Mapping[str, Tensor]) -> None:
        """Load the resampler of open_flamingo. It has no biases: ours become 0, which is the same function.

        Args:
            state: its state dict (the keys under ``perceiver.`` of a whole model's, without that prefix).

        Raises:
            ValueError: frame or time embeddings, which this resampler does not have; other names, or shapes that are
                not those of this resampler's ``dim``, ``depth``, ``heads``, ``head_dim``, ``latents`` and ``ff``.
        """
        own = {name: torch.zeros_like(value) for name, value in self.state_dict().items()}
        filled = {name for name in own if name.endswith(".bias") and "norm" not in name}
        for name, value in state.items():
            target = _flamingo_name(name)
            if target not in own:
                raise ValueError(f"state: wanted the names of an open_flamingo resampler, got {name}")
            if value.shape != own[target].shape:
                raise ValueError(f"state: wanted {name} of shape {tuple(own[target].shape)}, got {tuple(value.shape)}")
            own[target] = value
            filled.add(target)
        if missing := own.keys() - filled:
            raise ValueError(f"state: wanted values for {', '.join(sorted(missing))} too, got none")
        self.load_state_dict(own)


def _padded(media: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Clip (B·S,) int64 of each row (B where masked), media (B + 1,) int32 of each clip, the longest length."""
    clips, longest = media.shape[:2]
    owner = torch.arange(clips + 1, device=media.device)
    clip = owner[:-1].unsqueeze(1).expand(-1, longest)
    if mask is None:
        return clip.flatten(), (owner * longest).int(), longest
    clip = torch.where(mask, clip, clips).flatten()
    return clip, nnf.pad(mask.sum(1).cumsum(0), (1, 0)).int(), longest


_FLAMINGO = {
    "0.norm_media": "norm_media",
    "0.norm_latents": "norm_latents",
    "0.to_q": "attn.q",
    "0.to_kv": "attn.kv",
    "0.to_out": "attn.proj",
    "1.0": "norm_ff",
    "1.1": "mlp.fc1",
    "1.3": "mlp.fc2",
}


def _flamingo_name(name: str) -> str:
    """open_flamingo's name of a parameter → ours; names of other parameters stay."""
    parts = name.split(".")
    if parts[0] != "layers" or len(parts) != 5:
        return name
    inner = ".".join(parts[2:4])
    return f"layers.{parts[1]}.{_FLAMINGO.get(inner, inner)}.{parts[4]}"
