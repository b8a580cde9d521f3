"""Many files surveyed at a time, each in a decoder process that may hang or crash."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from fastvivit.data.container import VideoError
from fastvivit.data.guarded import DecoderDied, DecoderTimeout, GuardedReader
from fastvivit.data.scanning.records import DIED, TOO_SLOW, UNREADABLE
from fastvivit.data.scanning.result import Broken
from fastvivit.data.survey import Survey
from fastvivit.data.video import available_cores


def surveyed(
    files: Iterable[str], folder: Path, kind: str, workers: int, deadline: float | None
) -> Generator[tuple[str, Survey | Broken], None, None]:
    """Survey files, and give each as it is done.

    Args:
        files: paths below ``folder``.
        folder: where they are.
        kind: "video" or "image".
        workers: decoder processes.
        deadline: seconds that a file may take without another picture; None waits for ever.
    """
    threads = max(1, available_cores() // workers)
    rest = iter(files)
    with ExitStack() as stack:
        readers = [stack.enter_context(GuardedReader(deadline)) for _ in range(workers)]
        free: SimpleQueue[GuardedReader] = SimpleQueue()
        for reader in readers:
            free.put(reader)

        def look(file: str) -> tuple[str, Survey | Broken]:
            reader = free.get()
            try:
                return file, reader.survey(folder / file, kind, threads=threads)
            except (VideoError, OSError) as error:
                return file, Broken(file, _kind(error), str(error))
            finally:
                free.put(reader)

        pool = ThreadPoolExecutor(workers)
        waiting: set[Future[tuple[str, Survey | Broken]]] = set()

        def stop() -> None:
            """Left early, by Ctrl-C or an error: nobody waits for what is being decoded."""
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(waiting, timeout=0.05).not_done:
                for reader in readers:
                    reader.interrupt()

        stack.callback(stop)
        while True:
            waiting |= {pool.submit(look, file) for file in islice(rest, 2 * workers - len(waiting))}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _kind(error: Exception) -> str:
    if isinstance(error, DecoderTimeout):
        return TOO_SLOW
    if isinstance(error, DecoderDied):
        return DIED
    text = str(error)
    known = {"is empty": "empty file", "wanted a video stream": "no video stream", "holds no picture": "no picture"}
    return next((kind for words, kind in known.items() if words in text), UNREADABLE)
