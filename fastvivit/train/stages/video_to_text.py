"""Video to text: what lies between a frozen encoder and a frozen language model is trained to caption clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvivit.caption import VideoCaptioner
from fastvivit.caption.vision import Vision
from fastvivit.data import ClipDataset, VideoError
from fastvivit.data.dataset import read_entry
from fastvivit.data.shards import PackedDataset
from fastvivit.train.captioner import LANGUAGE, build_captioner, load_start, with_prompt
from fastvivit.train.captions import CaptionEvaluation, evaluate_captions, see
from fastvivit.train.config import TrainConfig
from fastvivit.train.language import learn_captions, save_language
from fastvivit.train.page import Page, Strip
from fastvivit.train.report import some_frames
from fastvivit.train.stages.base import Stage
from fastvivit.train.step import autocast
from fastvivit.train.vision import VisionCache, VisionDataset

VISION = "vision"
_SHOWN, _FEW = 12, 20
_NAMES = {
    "loss": "captioning loss",
    "cider_d": "CIDEr-D",
    "rouge_l_coco": "ROUGE-L (coco)",
    "rouge_l_f1": "ROUGE-L (F1)",
    "bleu_4": "BLEU-4",
}


class VideoToText(Stage):
    """The stages "video_to_text" and "finetune": they differ in what they start from, and in their presets."""

    def __init__(self, config: TrainConfig) -> None:
        config = with_prompt(config)
        self._start = load_start(config)
        video = self._start.video if isinstance(self._start, VideoCaptioner) else self._start
        if video.config.attention == "tubes" and config.mask.strategy != "random":
            raise ValueError(f"mask.strategy: wanted 'random' with tubes, got {config.mask.strategy!r}")
        super().__init__(config, video.config)
        for name, dataset in (("train", self.sources[0]), ("heldout", self.heldout)):
            if isinstance(dataset, PackedDataset):
                # Frozen vision is cached, which saves more than reading less.
                raise ValueError(f"data.{name}: wanted a manifest in stage {config.stage!r}, got packed shards")
            if dataset is not None and dataset.kind != "video":
                raise ValueError(f"data.{name}: wanted clips in stage {config.stage!r}, got images")
        self._quiet = True

    def build(self, run: Path) -> VideoCaptioner:
        """See ``build_captioner``."""
        return build_captioner(self.config, self._start, run, self.captions)

    def prepare(self, model: VideoCaptioner, run: Path, *, quiet: bool) -> None:
        """A language model from scratch learns the captions as text; clips are encoded, where they are kept."""
        config, self._quiet = self.config, quiet
        scratch = config.stage == "video_to_text" and config.language.folder is None
        if scratch and not (run / LANGUAGE).is_dir():
            learn_captions(
                model.lm,
                model.texts,
                self.captions,
                prompt=config.captions.prompt,
                steps=config.language.pretrain_steps,
                lr=config.language.pretrain_lr,
                batch_size=config.batch_size,
                seed=config.seed,
                quiet=quiet,
            )
            save_language(model.lm, model.tokenizer, run / LANGUAGE)
        if config.vision.cache:
            cache = self._cache(model, run)
            self.sources = [self._cached(cache, self.sources[0], config.vision.masks)]
            self.failures = list(self.sources[0].known)
            if self.heldout is not None:
                self.heldout = self._cached(cache, self.heldout, 1)

    def _cache(self, model: VideoCaptioner, run: Path) -> VisionCache:
        config = self.config
        return VisionCache(
            run / VISION if config.vision.folder is None else config.vision.folder,
            model.video,
            fps=config.data.fps,
            over_time=model.settings["over_time"],
            mask=config.mask,
            seed=config.seed,
            dtype=config.vision.dtype,
            precision=config.run.precision,
        )

    def _cached(self, cache: VisionCache, clips: ClipDataset, masks: int) -> VisionDataset:
        config = self.config
        failures = cache.build(
            clips.entries,
            masks,
            batch_size=min(config.batch_size, 8),
            workers=config.data.workers,
            quiet=self._quiet,
        )
        return VisionDataset(cache, clips.entries, masks=masks, seed=config.seed, failures=failures)

    def losses(
        self, model: VideoCaptioner, batches: Sequence[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor]:
        """The captioning loss of the clips under their masks."""
        (batch,) = batches
        vision: Vision = see(model, batch, self.config.mask, device)
        return {"loss": model(vision, batch["caption"], prompts=self.config.captions.prompt)}

    def evaluate(self, model: VideoCaptioner, *, last: bool) -> CaptionEvaluation | None:
        """The captioning loss of the held-out clips, each under one mask; at the end texts, too."""
        if self.heldout is None:
            return None
        config = self.config
        with autocast(config.run.precision, next(model.layers.parameters()).device):
            return evaluate_captions(
                model,
                self.heldout,
                batch_size=config.batch_size,
                mask=config.mask,
                prompt=config.captions.prompt,
                describe=config.captions.describe if last else 0,
                max_new_tokens=config.captions.max_new_tokens,
                workers=config.data.workers,
                quiet=self._quiet,
            )

    def finish(self, folder: Path) -> None:
        """Nothing: what was trained is all there is to train."""

    def report(self, page: Page, evaluation: CaptionEvaluation, *, drawable: bool) -> None:
        """Scores, and what was written beside what is true."""
        scores = evaluation.scores
        page.heading(f"Scores on {scores['clips']:.0f} held-out clips, {self.config.mask.ratio:.0%} masked")
        page.table(
            ["score", "this run"], [[name, f"{scores[key]:.3f}"] for key, name in _NAMES.items() if key in scores]
        )
        if not evaluation.texts:
            return
        page.text(f"Texts were written for {len(evaluation.texts)} of them, greedily.")
        if len(evaluation.texts) < _FEW:
            page.text(f"CIDEr-D weighs words by how few clips they are said of; below {_FEW} clips it means nothing.")
        page.heading("Written and true captions")
        every = -(-len(evaluation.texts) // _SHOWN)
        for place in range(0, len(evaluation.texts), every):
            self._show(page, evaluation, place, drawable)

    def _show(self, page: Page, evaluation: CaptionEvaluation, place: int, drawable: bool) -> None:
        entry = self.heldout.entries[evaluation.entries[place]]
        words = f"{entry.video.name}. Written: {evaluation.texts[place]!r} True: {evaluation.references[place][0]!r}"
        if not drawable:
            page.text(words)
            return
        clips = self.heldout
        try:
            video = read_entry(entry, clips.frames, clips.fps, clips.size)
        except (VideoError, OSError):
            page.text(words)  # scored from the cache, which outlives the file
            return
        page.strip(Strip(frames=some_frames(video), caption=words))
