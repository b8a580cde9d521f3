"""Texts for clips by models: captions of a frame, summaries of what is said (paper appendix B)."""

from fastvivit.data.synthetic.frames import FRAMES, FRAMES_FPS, caption_frames
from fastvivit.data.synthetic.result import Dropped, NewTexts
from fastvivit.data.synthetic.speech import clean_transcript, repetition
from fastvivit.data.synthetic.summaries import PROMPT, summarise_transcripts
from fastvivit.data.synthetic.transcripts import Cue, find_transcripts, read_transcript

__all__ = [
    "FRAMES",
    "FRAMES_FPS",
    "PROMPT",
    "Cue",
    "Dropped",
    "NewTexts",
    "caption_frames",
    "clean_transcript",
    "find_transcripts",
    "read_transcript",
    "repetition",
    "summarise_transcripts",
]
