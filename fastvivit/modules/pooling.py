"""Tokens of a clip averaged: all of them, or over time, place by place."""

from __future__ import annotations

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit.modules.passes import EncoderOutput
from fastvivit.tokens import Tokens


def temporal_mean(out: EncoderOutput) -> tuple[Tensor, Tensor]:
    """Average each place of a clip over the time slots in which it was kept.

    What the paper's video-to-text model sees of a clip (section 3.2): as many tokens as a picture has, whatever
    the clip's length. Masking leaves places with fewer slots, now and then with none. CLS tokens are left out.

    Args:
        out: of a ViViT, of clips or images; of any attention but "tubes", which has no common places.

    Returns:
        mean (B, S, D) with S = H'·W', the most of the batch; mask (B, S) bool, True where something was kept.
        Where nothing was, and past the places of a smaller clip, the mean is 0.

    Raises:
        ValueError: an encoding by tubes.
    """
    clips = len(out.counts)
    grids = out.grid if isinstance(out.grid, list) else [out.grid] * clips
    if not all(isinstance(axis, int) for grid in grids for axis in grid):
        raise ValueError("out: wanted clips with one grid each, got an encoding by tubes, which share no places")
    areas = [h * w for _, h, w in grids]
    places = max(areas)
    row = torch.arange(len(out.place), dtype=torch.int32, device=out.place.device)
    clip = torch.searchsorted(out.cu_seqlens[1:], row, right=True)
    area = areas[0]
    if len(set(areas)) > 1:
        area = torch.tensor(areas).to(out.place.device, non_blocking=True)[clip]
    # CLS tokens go to a segment that nobody reads.
    segment = torch.where(out.place < 0, clips * places, clip * places + out.place % area)
    mean, count = F.segment_mean(out.tokens, segment, clips * places + 1)
    return mean[:-1].unflatten(0, (clips, places)), (count[:-1] > 0).unflatten(0, (clips, places))


def mean_of_clips(x: Tensor, tokens: Tokens, *, cls: bool) -> Tensor:
    """Average the tokens of each clip.

    Args:
        x: (M, D) packed rows.
        tokens: where they stand.
        cls: average the CLS tokens, of the sequences that something was kept of, instead of the others.

    Returns:
        (B, D).
    """
    clip = tokens.by_clip.segment
    if tokens.cls is not None:
        wanted = tokens.place >= 0
        if cls:
            wanted = ~wanted
            if tokens.cls != "clip":
                # The CLS of a slot or a tube of which nothing was kept has seen nothing of the clip.
                group = tokens.grouping(tokens.cls)
                wanted &= (group.cu_seqlens.diff() > 1)[group.segment]
        # Rows that are not asked for go to a segment that nobody reads.
        clip = torch.where(wanted, clip, tokens.clips)
    return F.segment_mean(x, clip, tokens.clips + (tokens.cls is not None))[0][: tokens.clips]
