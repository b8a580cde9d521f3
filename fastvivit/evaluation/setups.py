"""What the paper evaluates on, and how: section 5, section 6, appendices B to D."""

from __future__ import annotations

from dataclasses import dataclass

from fastvivit.evaluation.clips import Reading

RETRIEVAL, CAPTIONING, SUMMARIES, CHOICE = TASKS = ("retrieval", "captioning", "summaries", "multiple_choice")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One benchmark as the paper evaluates it.

    Attributes:
        task: "retrieval", "captioning", "summaries" or "multiple_choice".
        split: the part of the data set.
        level: what a clip is: "video", "segments" (a clip an event), or "paragraph" (a whole video whose events'
            sentences are one text).
        metric: the score that the paper reports, by its key in the results.
        frames: pictures of a clip.
        fps: pictures per second.
        mask_ratio: share of the tokens dropped at inference.
        seconds: only the beginning of each video, where the paper cuts it; ``frames / fps`` reads no more.
    """

    task: str
    split: str
    level: str
    metric: str
    frames: int = 16
    fps: float = 1.0
    mask_ratio: float = 0.0
    seconds: float | None = None

    @property
    def reading(self) -> Reading:
        """How its clips are read."""
        return Reading(frames=self.frames, fps=self.fps)


# Short videos: 16 frames at 1 FPS (section 6.1; longer inputs show no benefit, appendix C.1, "Context length").
# Retrieval is unmasked (B4 is training only: section 6.1). The 30 % of inference are said of longer videos
# (section 6.1, appendix C.2); for short captions nothing is said, and the same is taken, as models are trained with it.
# Long videos: 256 frames at 1 FPS (section 6.2, table 3).
SETUPS: dict[str, Setup] = {
    # "the full test set for text-video retrieval", 20 captions a video, averaged (appendix B).
    "msrvtt-retrieval": Setup(task=RETRIEVAL, split="test", level="video", metric="t2v_r1"),
    # "a subset of 1000 examples from the test set for video captioning" (appendix B); which ones is not said.
    "msrvtt-captioning": Setup(
        task=CAPTIONING, split="test, 1000 clips", level="video", metric="cider_d", mask_ratio=0.3
    ),
    # "the validation set for text-video retrieval and the test set for video captioning", 10 captions a video.
    "vatex-retrieval": Setup(task=RETRIEVAL, split="val", level="video", metric="t2v_r1"),
    "vatex-captioning": Setup(task=CAPTIONING, split="test", level="video", metric="cider_d", mask_ratio=0.3),
    # "the ground-truth segments and full-length videos of the validation set" (appendix B; tables 2 and 3).
    "youcook2-retrieval": Setup(task=RETRIEVAL, split="val", level="segments", metric="t2v_r1"),
    "youcook2-captioning": Setup(task=CAPTIONING, split="val", level="segments", metric="cider_d", mask_ratio=0.3),
    "youcook2-summaries": Setup(
        task=SUMMARIES, split="val", level="paragraph", metric="rouge_l_f1", frames=256, mask_ratio=0.3
    ),
    # "the first 16 seconds ... for paragraph-video retrieval and segment-by-segment captions", val1 (appendix B).
    "activitynet-retrieval": Setup(task=RETRIEVAL, split="val1", level="paragraph", metric="t2v_r1", seconds=16.0),
    "activitynet-captioning": Setup(task=CAPTIONING, split="val1", level="segments", metric="cider_d", mask_ratio=0.3),
    # "the raw, full-length videos of val1 ... multiple captions, in which case we report the average" (appendix B).
    "activitynet-summaries": Setup(
        task=SUMMARIES, split="val1", level="paragraph", metric="rouge_l_f1", frames=256, mask_ratio=0.3
    ),
    # "the released subset with annotations (500 examples in total)" (appendix B; table 3).
    "egoschema": Setup(task=CHOICE, split="subset", level="video", metric="accuracy", frames=256, mask_ratio=0.3),
    # "at 5 FPS considering 256 input frames" (appendix D); the short models of table 9 have 32 frames at 1 FPS.
    # The split is not named; answers are public for the validation set only.
    "perception-test": Setup(
        task=CHOICE, split="valid", level="video", metric="accuracy", frames=256, fps=5.0, mask_ratio=0.3
    ),
}
