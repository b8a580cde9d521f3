"""The program of a decoder process: `fastvivit.data.guarded` starts it and talks to it.

It reads requests from standard input, one JSON object a line, and answers them in the same way; pixels go through
memory that both processes see. It ends when its input does, which is when its parent is gone.

It is run as a file, not as a module of the package, for `import fastvivit` brings torch: a second and 200 MB that a
decoder has no use for.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import queue
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SLACK = 5.0  # seconds after the deadline at which the kernel ends this process, should nobody else have done so


def main(answers: int, buffer: int, memory: int) -> None:
    """Answer requests until the input ends.

    Args:
        answers: the file descriptor to write answers to.
        buffer: that of the shared memory.
        memory: bytes that decoding may take.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sys.path[:] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    send = lambda answer: os.write(answers, json.dumps(answer).encode() + b"\n")
    try:
        decoder = _Decoder(buffer, memory, send)
    except ImportError as error:
        send({"missing": str(error)})
        return
    send({"ready": True})
    while True:
        request = json.loads(requests.get())
        send(_answer(decoder, request))


def _receive(requests: queue.SimpleQueue[bytes]) -> None:
    """Take requests while the decoder works, or hangs: that is how the end of the parent is noticed."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _answer(decoder: _Decoder, request: dict[str, Any]) -> dict[str, Any]:
    from fastvivit.data.container import VideoError

    try:
        decoder.limit = request.pop("deadline")
        decoder.alarm()
        return {"found": getattr(decoder, request.pop("do"))(**request)}
    except VideoError as error:
        return {"video": str(error)}
    except MemoryError:
        return {"memory": True}
    except OSError as error:
        return {"system": [error.errno, error.strerror, error.filename]}
    except Exception:
        return {"bug": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Decoder:
    """What can be asked for: each method is a request of its name, its arguments the request's fields."""

    def __init__(self, buffer: int, memory: int, send: Callable[[Any], Any]) -> None:
        # The package's own __init__ modules import torch; empty ones in their place find the same modules.
        folder = Path(__file__).resolve().parent
        for name, path in (("fastvivit", folder.parent), ("fastvivit.data", folder)):
            package = types.ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
        from fastvivit.data.container import import_av

        import_av()
        self._file, self._memory, self._send = buffer, memory, send
        self._base = _address_space()
        self._map: mmap.mmap | None = None
        self.limit = math.inf
        _die_first()
        self._limit_memory(0)

    def alarm(self) -> None:
        """Begin the time that may pass without an answer or a sign of life."""
        if math.isfinite(self.limit):
            signal.setitimer(signal.ITIMER_REAL, self.limit + _SLACK)

    def clip(self, path: str, frames: int, height: int, width: int, **how: Any) -> int:
        """``decode_clip`` into the shared memory."""
        from fastvivit.data.decoding import decode_clip

        return decode_clip(path, self._pixels(frames, height, width), **how)

    def image(self, path: str, height: int, width: int) -> None:
        """``decode_image`` into the shared memory."""
        from fastvivit.data.decoding import decode_image

        decode_image(path, self._pixels(1, height, width)[0])

    def survey(self, path: str, kind: str, threads: int) -> dict[str, Any]:
        """``survey``, as a dict."""
        from dataclasses import asdict

        from fastvivit.data.survey import survey

        return asdict(survey(path, kind, threads, self._alive))

    def _alive(self) -> None:
        self.alarm()
        self._send({"alive": True})

    def _pixels(self, frames: int, height: int, width: int) -> Any:
        import numpy as np

        size = os.fstat(self._file).st_size
        if self._map is None or len(self._map) < size:
            self._limit_memory(size)
            self._map = mmap.mmap(self._file, size)
        return np.ndarray((frames, height, width, 3), np.uint8, buffer=self._map)

    def _limit_memory(self, shared: int) -> None:
        if sys.platform != "linux":  # elsewhere address space can't be limited, or not read
            return
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        # The old map goes only after the new one has come.
        wanted = self._base + self._memory + 2 * shared
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _address_space() -> int:
    """Bytes of address space in use: of which numpy and FFmpeg take plenty without ever touching it."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _die_first() -> None:
    """Where memory runs out nevertheless, the kernel shall end this process and not a training run."""
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
