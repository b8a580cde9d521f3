"""``fastvivit data caption``: a new manifest whose clips are described by what one of their frames shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from fastvivit.cli.data_texts import clips_of, finish, ledger_of, load_callable
from fastvivit.cli.models import load_captioner
from fastvivit.data.synthetic import FRAMES, FRAMES_FPS, caption_frames
from fastvivit.data.synthetic.frames import Captioner
from fastvivit.train.progress import progress


@dataclass(frozen=True, kw_only=True)
class CaptionFrames:
    """Caption each clip by its 50th frame at 10 FPS, else the 25th, else the first, as the paper does (appendix B).

    The new manifest says of each text where it is from. Captions made so far are kept in MANIFEST.jsonl.texts beside
    it: the same command goes on after a kill, and again costs nothing for clips that are done.

    Attributes:
        source: a manifest, tar shards, or a folder of videos.
        out: the JSONL manifest to write.
        by: module:function, from images uint8 (B, 3, H, W) to B strings; or module:Class, made without arguments.
            Modules of the current folder are found.
        model: instead of it the folder of a VideoCaptioner or its run, which sees the frame as a still video.
        frames: numbers of the frames to try.
        fps: the rate at which they are numbered.
        size: pixels of the square that frames are cut to; by default 256, or the model's.
        batch_size: images at a time.
        workers: processes that decode.
        max_new_tokens: longest caption of the model.
        keep_captions: put the new caption behind those that there are, instead of in their place.
        dropped: write the clips without a caption to this JSONL file, with reasons.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MANIFEST")]
    out: Annotated[Path, tyro.conf.arg(metavar="MANIFEST.jsonl")]
    by: Annotated[str | None, tyro.conf.arg(metavar="MODULE:NAME")] = None
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    frames: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = FRAMES
    fps: float = FRAMES_FPS
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    batch_size: int = 8
    workers: int = 0
    max_new_tokens: int = 32
    keep_captions: bool = False
    dropped: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(arguments: list[str]) -> int:
    """Caption, write, and say what there is and what is not."""
    options = tyro.cli(
        CaptionFrames, prog="fastvivit data caption", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if (options.by is None) == (options.model is None):
        raise ValueError("by: wanted --by or --model, one of the two")
    if options.max_new_tokens < 1:
        raise ValueError(f"max-new-tokens: wanted at least 1, got {options.max_new_tokens}")
    ledger, clips = ledger_of(options.out), clips_of(options.source)
    size: int | tuple[int, int] = options.size or 256
    if options.by is not None:
        captioner, name = load_callable(options.by), options.by
    else:
        captioner, name, size = _still_captioner(options.model, options.max_new_tokens, options.size)
    with progress(len(clips), "captions", "clip") as advance:
        found = caption_frames(
            clips,
            captioner,
            by=name,
            frames=options.frames,
            fps=options.fps,
            size=size,
            batch_size=options.batch_size,
            workers=options.workers,
            keep_captions=options.keep_captions,
            ledger=ledger,
            advance=advance,
        )
    return finish(found, options.out, options.dropped)


def _still_captioner(
    folder: Path, max_new_tokens: int, size: int | None
) -> tuple[Captioner, str, int | tuple[int, int]]:
    """A VideoCaptioner for single frames, its name in the manifest, and the size of its frames."""
    model, known = load_captioner(folder)
    config, device = model.video.config, next(model.layers.parameters()).device

    @torch.no_grad()
    def captioner(images: Tensor) -> list[str]:
        still = images.unsqueeze(2).expand(-1, -1, config.frames, -1, -1)
        return model.generate(still.to(device), known.prompt, max_new_tokens)

    return captioner, f"fastvivit {folder.absolute().as_posix()}", size or config.size
