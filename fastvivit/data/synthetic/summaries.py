"""A caption for a long video from what is said in it (paper appendix B)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastvivit.data.entry import Entry
from fastvivit.data.synthetic.ledger import Ledger, key_of
from fastvivit.data.synthetic.result import Dropped, NewTexts, callable_name, read_source, video_of, with_text
from fastvivit.data.synthetic.speech import clean_transcript, repetition, words_of
from fastvivit.data.synthetic.transcripts import find_transcripts, read_transcript, said_between

_PLACE = "{transcript}"
# The paper gives no prompt; this one asks for what it says of the result (appendix B).
PROMPT = (
    "Below is an automatic transcript of what people say in a video. It is noisy, not coherent between utterances, and "
    "holds comments that have nothing to do with the task. Write a short summary of the video: the task, and the "
    "actions in the order in which they are done. Use only facts of the transcript, say nothing twice, and answer with "
    "the summary only.\n\nTranscript:\n" + _PLACE
)


def summarise_transcripts(
    source: str | os.PathLike[str] | Sequence[Entry | Path],
    transcripts: str | os.PathLike[str] | None,
    summariser: Callable[[str], str],
    *,
    by: str | None = None,
    prompt: str = PROMPT,
    min_words: int = 10,
    max_repetition: float = 0.3,
    keep_captions: bool = False,
    ledger: str | os.PathLike[str] | None = None,
    advance: Callable[[int], Any] | None = None,
) -> NewTexts:
    """Have each video described by what a language model makes of its transcript.

    The paper (appendix B) trains on HowTo100M's whole videos with such summaries: speech recognition is "noisy, not
    coherent between utterances, and contains irrelevant information", so a language model cleans and summarises it,
    and summaries that repeat themselves are discarded. Transcripts that do so, as those of a recogniser caught in a
    loop, are not worth a summary and are dropped, too. An entry with ``start`` or ``end`` is described by what is said
    in between.

    Args:
        source: a manifest or tar shards by their path, or entries; paths of videos where there are no captions yet.
        transcripts: a folder of files with the stem of a video, in sub-folders too (``find_transcripts``); None looks
            beside each video.
        summariser: the prompt -> the summary. What it raises ends the job.
        by: what the summariser is called in the manifest; its import path by default.
        prompt: with ``{transcript}`` where the cleaned transcript goes.
        min_words: fewer of them are no transcript.
        max_repetition: ``repetition`` of a transcript and of a summary, at most; 1 keeps everything.
        keep_captions: put the summary behind the captions that an entry has, instead of in their place.
        ledger: a JSONL file in which summaries are kept as they come, by prompt and summariser name. A job that was
            killed is called again with it, and goes on.
        advance: called with 1 after each video.

    Returns:
        Entries with ``extra["text_source"]`` = ``{"kind": "transcript summary", "transcript": file name, "by": name}``;
        and what was dropped: "no transcript", "bad transcript", "ambiguous transcript", "transcript without times",
        "short transcript", "repetitive transcript", "empty summary", "repetitive summary".

    Raises:
        ValueError: an argument outside its range, a bad manifest, no such folder, or a summary that is no string.
    """
    if _PLACE not in prompt:
        raise ValueError(f"prompt: wanted {_PLACE} in it, got {prompt!r}")
    if min_words < 1:
        raise ValueError(f"min_words: wanted at least 1, got {min_words}")
    if not 0 <= max_repetition <= 1:
        raise ValueError(f"max_repetition: wanted a share from 0 to 1, got {max_repetition}")
    items, by, kept = read_source(source), callable_name(summariser, by), Ledger(ledger)
    files = _Files(transcripts)
    entries, dropped = [], []
    for index, item in enumerate(items):
        try:
            file, said = _said(item, files.of(video_of(item)), min_words, max_repetition)
            key = key_of("transcript summary", by, asked := prompt.replace(_PLACE, said))
            row = kept.get(key)
            if row is None:
                row = {"text": summariser(asked)}
                if not isinstance(row["text"], str):
                    raise ValueError(f"summariser: wanted a string, got a {type(row['text']).__name__}")
                kept.add({key: row})
            summary = " ".join(row["text"].split())
            if not summary:
                raise _Drop("empty summary", f"of {file}")
            if (share := repetition(summary)) > max_repetition:
                raise _Drop("repetitive summary", f"of {file}: {share:.2f} of its 4-grams are repeated")
            about = {"kind": "transcript summary", "transcript": file.name, "by": by}
            entries.append(with_text(item, summary, about, keep_captions=keep_captions))
        except _Drop as drop:
            dropped.append(Dropped(index, str(video_of(item)), *drop.args))
        if advance is not None:
            advance(1)
    return NewTexts(entries=entries, dropped=tuple(dropped))


class _Drop(Exception):
    """Why a video gets no summary: kind and reason."""


class _Files:
    """Transcripts of videos, each folder looked at once."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._found = None if folder is None else find_transcripts(folder)
        self._beside: dict[Path, dict[str, list[Path]]] = {}

    def of(self, video: Path) -> list[Path]:
        """The transcripts of a video, best first; raises ``_Drop``."""
        found = self._found
        if found is None:
            folder = video.parent
            if folder not in self._beside:
                self._beside[folder] = find_transcripts(folder, below=False) if folder.is_dir() else {}
            found = self._beside[folder]
        files = found.get(video.stem, [])
        if not files:
            raise _Drop("no transcript", f"of the name {video.stem}")
        if len({file.parent for file in files}) > 1:
            raise _Drop("ambiguous transcript", f"{', '.join(map(str, files))}")
        return files


def _said(item: Entry | Path, files: list[Path], min_words: int, max_repetition: float) -> tuple[Path, str]:
    """The first file that is a transcript, and what is said in it, cleaned; raises ``_Drop``."""
    start, end = (item.start, item.end) if isinstance(item, Entry) else (0.0, None)
    reasons = []
    for file in files:  # a .json beside a video may be something else
        try:
            cues = read_transcript(file)
            break
        except (ValueError, OSError) as error:
            reasons.append(str(error))
    else:
        raise _Drop("bad transcript", "; ".join(reasons))
    text = said_between(cues, start, end)
    if text is None:
        raise _Drop("transcript without times", f"{file}, and the clip is a part of its video")
    text = clean_transcript(text)
    if (count := len(words_of(text))) < min_words:
        raise _Drop("short transcript", f"{file}: {count} words")
    if (share := repetition(text)) > max_repetition:
        raise _Drop("repetitive transcript", f"{file}: {share:.2f} of its 4-grams are repeated")
    return file, text
