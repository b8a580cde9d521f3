"""A reader whose files may hang, crash or fill memory: each costs itself only, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from fastvivit.data import DecoderDied, DecoderTimeout, GuardedReader, VideoError, read_clip, read_image, survey

TEN = [i / 10 for i in range(40)]
ROOT = Path(__file__).resolve().parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def reader(av):
    with GuardedReader(20.0) as made:
        yield made


@pytest.fixture
def clip(encode, tmp_path):
    return encode(tmp_path / "clip.mp4", TEN, options={"g": "10"})


def pid_of(reader):
    return reader._child.process.pid


def ended(pid):
    """Whether a process is gone, or at least dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def soon(true, seconds=10.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def during(reader, act):
    """Call ``act(pid)`` from another thread as soon as the reader's child has been busy for a moment."""

    def wait():
        soon(lambda: reader._child is not None)
        time.sleep(0.5)
        act(pid_of(reader))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


LOOKS = [
    ((4, 2, 32), {}),
    ((12, 5, (40, 24), 0.7), {"end": 1.9}),
    ((3, 10, 32, 2.0), {"threads": 2}),
    ((60, 10, 48), {"pad": False, "stream": 0}),
    ((2, 1, 16), {}),
]


def test_bits_are_those_of_read_clip(reader, clip):
    for place, how in LOOKS:
        mine, theirs = reader.read_clip(clip, *place, **how), read_clip(clip, *place, **how)
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
    assert reader.read_clip(clip, 3, pad=False, start=3.95, end=3.9500001).shape == (3, 0, 256, 256)


@pytest.mark.parametrize("name", ["cup.mp4", "box.mp4", "vtest.avi", "big_buck_bunny_0_30.webm"])
def test_bits_of_real_clips(real, reader, name):
    path = real(name)
    assert torch.equal(reader.read_clip(path, 6, 2, 64, 1.3), read_clip(path, 6, 2, 64, 1.3))


def test_bits_of_images(reader, av, tmp_path, clip):
    path = tmp_path / "still.png"
    with av.open(str(clip)) as source:
        next(source.decode(video=0)).to_image().save(path)
    assert torch.equal(reader.read_image(path, (20, 32)), read_image(path, (20, 32)))


def test_results_are_not_overwritten_by_the_next(reader, clip):
    first = reader.read_clip(clip, 2, 1, 32)
    kept = first.clone()
    reader.read_clip(clip, 2, 1, 32, start=2.0)
    assert torch.equal(first, kept)


def test_errors_are_those_of_read_clip(reader, clip, broken):
    for path, how in [*((path, {}) for path in broken.values()), (clip, {"start": 9.0}), (clip, {"stream": 3})]:
        with pytest.raises(VideoError) as theirs:
            read_clip(path, 2, **how)
        with pytest.raises(VideoError) as mine:
            reader.read_clip(path, 2, **how)
        assert str(mine.value) == str(theirs.value) and type(mine.value) is VideoError
    child = pid_of(reader)
    assert torch.equal(reader.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))
    assert pid_of(reader) == child  # an error of a file is none of the child's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline": 0}, r"deadline: wanted seconds above 0 or None, got 0"),
        ({"deadline": float("nan")}, r"deadline: wanted seconds"),
        ({"memory": 0}, r"memory: wanted bytes of at least 1, got 0"),
    ],
)
def test_arguments_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GuardedReader(**arguments)


def test_arguments_of_a_read_are_refused_before_anything_starts(clip):
    with GuardedReader() as reader:
        for call in (
            lambda: reader.read_clip(clip, 0),
            lambda: reader.read_clip(clip, 2, threads=0),
            lambda: reader.read_image(clip, 0),
            lambda: reader.survey(clip, "sound"),
        ):
            with pytest.raises(ValueError, match="wanted"):
                call()
        assert reader._child is None


@linux
def test_a_file_that_hangs_costs_its_deadline(clip, hanging):
    with GuardedReader(1.0) as reader:
        reader.read_clip(clip, 2, 1, 32)
        child, began = pid_of(reader), time.monotonic()
        with pytest.raises(DecoderTimeout, match=r"hanging\.mp4: wanted to read it within 1 s, it took longer"):
            reader.read_clip(hanging, 2)
        assert 1.0 <= time.monotonic() - began < 5.0
        assert not Path(f"/proc/{child}").exists()  # not even as a zombie
        assert torch.equal(reader.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))
        with pytest.raises(DecoderTimeout):
            reader.survey(hanging)


def test_a_decoder_that_stands_still_costs_its_deadline(clip):
    """It neither decodes nor listens, as one that hangs with Python's lock held."""
    with GuardedReader(1.0) as reader:
        reader.read_clip(clip, 2, 1, 32)
        os.kill(pid_of(reader), signal.SIGSTOP)
        with pytest.raises(DecoderTimeout):
            reader.read_clip(clip, 2, 1, 32)
        assert reader.read_clip(clip, 2, 1, 32).shape == (3, 2, 32, 32)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes(reader, clip, hanging, number):
    thread = during(reader, lambda pid: os.kill(pid, number))
    with pytest.raises(
        DecoderDied, match=rf"hanging\.mp4: the decoder died \(signal {number:d}, {signal.Signals(number).name}\)"
    ):
        reader.read_clip(hanging, 2)
    thread.join()
    assert torch.equal(reader.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))


def test_a_decoder_that_died_between_two_files(reader, clip):
    reader.read_clip(clip, 2, 1, 32)
    os.kill(pid_of(reader), signal.SIGKILL)
    reader._child.process.wait()
    assert reader.read_clip(clip, 2, 1, 32).shape == (3, 2, 32, 32)


def test_an_interrupted_read_is_not_answered_to_the_next(reader, clip, hanging):
    thread = during(reader, lambda pid: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        reader.read_clip(hanging, 2)
    thread.join()
    assert torch.equal(reader.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))


@linux
def test_a_file_that_eats_memory(tmp_path, clip):
    side = 9000  # 240 MB of pixels in a small file
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with GuardedReader(20.0, memory=150 << 20) as reader:
        with pytest.raises(VideoError, match="bomb.png"):
            reader.read_image(path, 32)
        assert reader.read_clip(clip, 2, 1, 32).shape == (3, 2, 32, 32)
    with GuardedReader(20.0) as reader:
        assert reader.read_image(path, 32).max() == 0


_OWNER = """
import sys
from fastvivit.data import GuardedReader
reader = GuardedReader(60.0)
reader.read_clip(sys.argv[1], 2, 1, 32)
print(reader._child.process.pid, flush=True)
if sys.argv[2] != "-":
    reader.read_clip(sys.argv[2], 2, 1, 32)
input()
"""


@linux
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "hanging"])
def test_a_child_ends_with_its_killed_parent(clip, hanging, busy):
    command = [sys.executable, "-c", _OWNER, str(clip), str(hanging) if busy else "-"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as owner:
        child = int(owner.stdout.readline())
        time.sleep(0.3)
        assert not ended(child)
        owner.kill()
        owner.wait()
        soon(lambda: ended(child))


@linux
def test_a_child_ends_with_its_parent(clip):
    command = [sys.executable, "-W", "error", "-c", _OWNER, str(clip), "-"]
    done = subprocess.run(command, cwd=ROOT, input="\n", capture_output=True, text=True, check=True)
    assert ended(int(done.stdout)) and not done.stderr


@linux
def test_a_dropped_reader_takes_its_child_along(clip):
    reader = GuardedReader()
    reader.read_clip(clip, 2, 1, 32)
    child = pid_of(reader)
    del reader
    assert not Path(f"/proc/{child}").exists()


class Clips:
    """A data set that is read with one reader, and says who read."""

    def __init__(self, path, reader):
        self.path, self.reader = path, reader

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.reader.read_clip(self.path, 2, 1, 32, index / 2), pid_of(self.reader), os.getpid()


@linux
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used before the fork"])
def test_in_the_workers_of_a_loader(reader, clip, used):
    if used:
        reader.read_clip(clip, 2, 1, 32)
    children = set()
    for index, (video, child, worker) in enumerate(DataLoader(Clips(clip, reader), batch_size=None, num_workers=2)):
        assert torch.equal(video, read_clip(clip, 2, 1, 32, index / 2)) and worker != os.getpid()
        children.add(child)
    assert len(children) == 2
    soon(lambda: all(not Path(f"/proc/{child}").exists() for child in children))
    if used:
        assert pid_of(reader) not in children
        assert torch.equal(reader.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))


def test_a_pickled_reader_has_a_child_of_its_own(reader, clip):
    reader.read_clip(clip, 2, 1, 32)
    with pickle.loads(pickle.dumps(reader)) as other:
        assert (other.deadline, other.memory) == (reader.deadline, reader.memory)
        assert torch.equal(other.read_clip(clip, 2, 1, 32), read_clip(clip, 2, 1, 32))
        assert pid_of(other) != pid_of(reader)


def test_threads_take_turns(reader, clip):
    wanted = [read_clip(clip, 2, 1, 32, i / 10) for i in range(20)]
    got = {}

    def read(first):
        for i in range(first, 20, 4):
            got[i] = reader.read_clip(clip, 2, 1, 32, i / 10)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], wanted[i]) for i in range(20))


@linux
def test_neither_memory_nor_files_grow_over_200_files(reader, clip, broken):
    def memory(pid):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    def files(pid):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    def some():
        for number in range(100):
            reader.read_clip(clip, 8, 4, 64, number % 3)
            with pytest.raises(VideoError):
                reader.read_clip(broken["text"], 2)
        return memory(pid_of(reader))

    gc.collect()  # what other tests have left open is closed now, and not meanwhile
    taken = [some()]
    child = pid_of(reader)
    before = files(child), files(os.getpid())
    taken += [some() for _ in range(4)]
    assert pid_of(reader) == child and (files(child), files(os.getpid())) == before
    # The allocator takes a few MB more now and then, a leak takes some in every round of 200 files.
    assert min(after - before for before, after in zip(taken, taken[1:], strict=False)) < 500  # kB


@linux
def test_starting_again_and_again_leaves_no_file_open(clip):
    reader = GuardedReader()
    count = lambda: len(list(Path("/proc/self/fd").iterdir()))
    before = count()
    for _ in range(5):
        reader.read_clip(clip, 2, 1, 32)
        reader.close()
    assert count() == before


@linux
def test_the_child_has_no_torch(reader, clip):
    reader.read_clip(clip, 2, 1, 32)
    maps = Path(f"/proc/{pid_of(reader)}/maps").read_text()
    assert "libavcodec" in maps and "torch" not in maps


def test_without_pyav_the_message_says_what_to_install(clip, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])
    with pytest.raises(ImportError, match=r"pip install fastvivit\[video\]"), GuardedReader() as reader:
        reader.read_clip(clip, 2)


def test_signs_of_life_put_the_deadline_off(reader, clip, monkeypatch):
    """A survey's deadline is for the time without another picture, else long films would count as broken."""
    monkeypatch.setattr(survey, "_BEAT", 0.0)
    beats = []
    found = survey.survey(str(clip), "video", 1, lambda: beats.append(1))
    assert found.pictures == len(beats) == 40
    assert reader.survey(clip, threads=1) == found
    answers = [{"alive": True}, {"alive": True}, {"found": 3}]
    monkeypatch.setattr(reader._child, "_answer", lambda seconds: answers.pop(0))
    assert reader._child.ask({}, 1.0) == {"found": 3}


@linux
def test_a_decoder_that_cannot_start_is_no_fault_of_the_file(clip):
    """A data set, a scan or a packing leaves out what is a VideoError or an OSError, all that comes in this case."""
    import resource

    limits, opened = resource.getrlimit(resource.RLIMIT_NOFILE), len(list(Path("/proc/self/fd").iterdir()))
    os.close(free := os.dup(0))
    with GuardedReader() as reader:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(RuntimeError, match="the decoder process can't be started: .*Too many open files"):
                    reader.read_clip(clip, 4, 1.0, 32)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(list(Path("/proc/self/fd").iterdir())) == opened
        assert torch.equal(reader.read_clip(clip, 4, 1.0, 32), read_clip(clip, 4, 1.0, 32))
