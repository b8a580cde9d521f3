"""Decoding in a process of its own: a file may hang it, crash it or fill its memory, and costs no more than itself."""

from __future__ import annotations

import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvivit.data.container import VideoError
from fastvivit.data.survey import KINDS, Survey
from fastvivit.data.video import check_clip, decoder_threads

_PROGRAM = Path(__file__).with_name("decoder_process.py")
_START = 120.0  # seconds: PyAV's libraries may come over a network
_REAP = 5.0  # seconds; a process that the kernel itself holds up is left behind


class DecoderTimeout(VideoError):
    """A file took longer than its deadline."""


class DecoderDied(VideoError):
    """The process that decoded a file ended: a crash of the decoder, or memory."""


class GuardedReader:
    """Reads as `read_clip` and `read_image` do, to the bit, but in a child process that it owns.

    A file that takes longer than the deadline, crashes the decoder or takes too much memory is a `VideoError`; the
    next file has a new child. The child starts with the first file and ends with `close`, with this object, or with
    the process that owns it, whatever ends that. It has no torch, and takes about 60 MB.

    May be used in a DataLoader's workers: after a fork, or when it is pickled, each process has a child of its own.
    Several threads may use one reader, one after the other.

    Args:
        deadline: seconds for one file; None waits for ever.
        memory: bytes that decoding one file may take beside its result (Linux; elsewhere there is no limit).

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, deadline: float | None = 60.0, *, memory: int = 4 << 30) -> None:
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline: wanted seconds above 0 or None, got {deadline!r}")
        if memory < 1:
            raise ValueError(f"memory: wanted bytes of at least 1, got {memory!r}")
        self.deadline, self.memory = deadline, memory
        self._begin()

    def _begin(self) -> None:
        self._child: _Child | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"deadline": self.deadline, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __enter__(self) -> GuardedReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one; reading again starts another."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.end()

    def interrupt(self) -> None:
        """From another thread: make what is being read now fail, with ``DecoderDied``."""
        child = self._child
        if child is not None and self._owner == os.getpid():
            child.process.kill()

    def read_clip(
        self,
        path: str | os.PathLike[str],
        frames: int,
        fps: float = 1.0,
        size: int | tuple[int, int] = 256,
        start: float = 0.0,
        *,
        stream: int | None = None,
        pad: bool = True,
        end: float | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """`read_clip` of a file or a member of a tar, with a deadline.

        Raises:
            DecoderTimeout: (a VideoError) the deadline has passed.
            DecoderDied: (a VideoError) the decoder crashed, or took too much memory.
            VideoError: as ``read_clip``, like all other errors.
        """
        height, width = check_clip(frames, fps, size, start, stream, end)
        how = {"fps": fps, "start": start, "stream": stream, "pad": pad, "end": end}
        how |= {"frames": frames, "height": height, "width": width, "threads": decoder_threads(threads)}
        with self._lock_of_this_process():
            filled = self._ask("clip", path, how, frames * height * width * 3)
            return self._child.pixels((filled, height, width, 3)).permute(3, 0, 1, 2)

    def read_image(self, path: str | os.PathLike[str], size: int | tuple[int, int] = 256) -> Tensor:
        """`read_image` with a deadline; raises as ``read_clip`` here and ``read_image``."""
        height, width = check_clip(1, 1.0, size, 0.0, None, None)
        with self._lock_of_this_process():
            self._ask("image", path, {"height": height, "width": width}, height * width * 3)
            return self._child.pixels((height, width, 3)).permute(2, 0, 1)

    def survey(self, path: str | os.PathLike[str], kind: str = "video", *, threads: int | None = None) -> Survey:
        """Decode all of a file, and say what it holds.

        The deadline is for the time without another picture: a film may take as long as it needs.

        Args:
            path: a local file.
            kind: "video" or "image".
            threads: decoder threads, as in ``read_clip``.

        Raises:
            VideoError: as ``read_clip``; no video that can be opened, or no picture in it.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: wanted one of {KINDS}, got {kind!r}")
        with self._lock_of_this_process():
            return Survey(**self._ask("survey", path, {"kind": kind, "threads": decoder_threads(threads)}, 0))

    def _lock_of_this_process(self) -> threading.Lock:
        if self._owner != os.getpid():  # forked: the child is the parent's, who may be talking to it
            if self._child is not None:
                self._child.disown()
            self._begin()
        return self._lock

    def _ask(self, what: str, path: str | os.PathLike[str], how: dict[str, Any], size: int) -> Any:
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"path: wanted a path, for another process to open, got a {type(path).__name__}")
        deadline = math.inf if self.deadline is None else self.deadline
        if self._child is not None and self._child.process.poll() is not None:
            self.close()  # it was ended while it was idle, which is not this file's fault
        try:
            if self._child is None:
                self._child = _Child(self.memory)
            self._child.grow(size)
            answer = self._child.ask({"do": what, "path": os.fspath(path), "deadline": deadline, **how}, deadline)
        except TimeoutError:
            self.close()
            raise DecoderTimeout(f"{path}: wanted to read it within {deadline:g} s, it took longer") from None
        except _Gone as error:
            self.close()
            raise DecoderDied(f"{path}: the decoder died ({error})") from None
        except BaseException:  # Ctrl-C: the answer would be taken for that of the next request
            self.close()
            raise
        if "found" in answer:
            return answer["found"]
        if "video" in answer:
            raise VideoError(answer["video"])
        if "memory" in answer:
            raise DecoderDied(f"{path}: the decoder wanted more than {self.memory:,} bytes of memory")
        if "system" in answer:
            raise OSError(*answer["system"])
        raise RuntimeError(f"{path}: in the decoder process: {answer['bug']}")


class _Gone(Exception):
    """The child has ended; says how."""


class _Child:
    """One decoder process: two pipes and a memory that both see."""

    def __init__(self, memory: int) -> None:
        self._memory = os.memfd_create("fastvivit") if hasattr(os, "memfd_create") else _unnamed_file()
        self._map: mmap.mmap | None = None
        self._read, write = os.pipe()
        self._unread = b""
        command = [sys.executable, "-I", "-S", str(_PROGRAM), str(write), str(self._memory), str(memory)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # some decoders print
                pass_fds=(write, self._memory),
                # numpy's threads would take address space and do nothing.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        except BaseException:
            os.close(self._read)
            os.close(self._memory)
            raise
        finally:
            os.close(write)
        # Not atexit: the workers of a DataLoader leave without it.
        self.end = Finalize(self, _end, (self.process, self._read, self._memory), exitpriority=10)
        try:
            self._send([str(folder) for folder in sys.path])
            answer = self._answer(_START)
        except (_Gone, TimeoutError) as error:
            self.end()
            raise RuntimeError(f"the decoder process can't be started: {error or 'no answer'}: {command}") from None
        if "missing" in answer:
            self.end()
            raise ImportError(answer["missing"])

    def grow(self, size: int) -> None:
        """Make the shared memory at least so large."""
        if size and (self._map is None or len(self._map) < size):
            os.ftruncate(self._memory, size)
            self._map = mmap.mmap(self._memory, size)

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The answer to a request. Raises ``TimeoutError`` or ``_Gone``."""
        self._send(request)
        while "alive" in (answer := self._answer(deadline)):
            pass
        return answer

    def pixels(self, shape: tuple[int, ...]) -> Tensor:
        """A copy of what the shared memory begins with."""
        return torch.from_numpy(np.ndarray(shape, np.uint8, buffer=self._map).copy())

    def disown(self) -> None:
        """In a fork of its owner: forget the child, which goes on."""
        self.process.stdin.close()
        os.close(self._read)
        os.close(self._memory)
        self.process.returncode = 0  # or Popen would warn of a process that it left running

    def _send(self, message: Any) -> None:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise _Gone(self._how_it_ended()) from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while b"\n" not in self._unread:
            left = until - time.monotonic()
            if not poll.poll(None if math.isinf(left) else max(0.0, left) * 1000):
                raise TimeoutError
            got = os.read(self._read, 1 << 16)
            if not got:
                raise _Gone(self._how_it_ended())
            self._unread += got
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(_REAP)
        except subprocess.TimeoutExpired:
            return "it closed its end"
        if code >= 0:
            return f"exit status {code}"
        known = -code in {int(number) for number in signal.Signals}
        return f"signal {-code}, {signal.Signals(-code).name}" if known else f"signal {-code}"


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(process: subprocess.Popen[bytes], *files: int) -> None:
    process.kill()
    with suppress(BrokenPipeError):  # a request that it never read
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_REAP)
    for file in files:
        os.close(file)
