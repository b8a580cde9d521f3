"""``fastvivit data transcripts``: a new manifest whose videos are described by summaries of what is said in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.cli.data_texts import clips_of, finish, ledger_of, load_callable
from fastvivit.cli.models import load_chat
from fastvivit.data.synthetic import PROMPT, summarise_transcripts
from fastvivit.train.progress import progress


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """Caption each video by a language model's summary of its transcript, as the paper does (appendix B).

    A transcript has the stem of its video: .json (Whisper), .vtt, .srt or .txt. The new manifest says of each text
    where it is from. Summaries made so far are kept in MANIFEST.jsonl.texts beside it: the same command goes on after
    a kill, and again costs nothing for transcripts that are done.

    Attributes:
        source: a manifest, tar shards, or a folder of videos.
        out: the JSONL manifest to write.
        transcripts: the folder of transcripts, sub-folders too; by default they lie beside the videos.
        by: module:function, from a prompt to the summary, both strings; or module:Class, made without arguments.
            Modules of the current folder are found.
        llm: instead of it the folder of a transformers chat model.
        prompt: a text file with {transcript} where the transcript goes.
        max_new_tokens: longest summary of the chat model.
        min_words: fewer of them are no transcript.
        max_repetition: share of repeated 4-grams from which on a transcript or a summary is dropped.
        keep_captions: put the summary behind the captions that there are, instead of in their place.
        dropped: write the videos without a summary to this JSONL file, with reasons.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MANIFEST")]
    out: Annotated[Path, tyro.conf.arg(metavar="MANIFEST.jsonl")]
    transcripts: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    by: Annotated[str | None, tyro.conf.arg(metavar="MODULE:NAME")] = None
    llm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    prompt: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    max_new_tokens: int = 128
    min_words: int = 10
    max_repetition: float = 0.3
    keep_captions: bool = False
    dropped: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(arguments: list[str]) -> int:
    """Summarise, write, and say what there is and what is not."""
    options = tyro.cli(
        Transcripts, prog="fastvivit data transcripts", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if (options.by is None) == (options.llm is None):
        raise ValueError("by: wanted --by or --llm, one of the two")
    ledger, clips = ledger_of(options.out), clips_of(options.source)
    prompt = PROMPT if options.prompt is None else options.prompt.read_text(encoding="utf-8")
    if options.by is not None:
        summariser, name = load_callable(options.by), options.by
    else:
        summariser, name = load_chat(options.llm, options.max_new_tokens), options.llm.absolute().as_posix()
    with progress(len(clips), "summaries", "video") as advance:
        found = summarise_transcripts(
            clips,
            options.transcripts,
            summariser,
            by=name,
            prompt=prompt,
            min_words=options.min_words,
            max_repetition=options.max_repetition,
            keep_captions=options.keep_captions,
            ledger=ledger,
            advance=advance,
        )
    return finish(found, options.out, options.dropped)
