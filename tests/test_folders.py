"""Folders and files that are there whole or not at all: what reaches the disk before they get their name."""

import os
from pathlib import Path

import pytest

from fastvivit._folders import file_written_whole, written_whole


@pytest.fixture
def events(monkeypatch):
    """What is flushed (by path) and renamed (from, to), in order."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to name open files")
    seen = []
    flush, rename, replace = os.fsync, Path.rename, Path.replace

    def fsync(descriptor):
        seen.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))
        flush(descriptor)

    def renamed(original):
        def call(self, target):
            seen.append(("rename", self, Path(target)))
            return original(self, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed(rename))
    monkeypatch.setattr(Path, "replace", renamed(replace))
    return seen


def test_a_folder_is_on_the_disk_before_its_name_and_its_name_after(events, tmp_path):
    target = tmp_path / "run" / "checkpoints" / "one"
    with written_whole(target) as scratch:
        (scratch / "weights").write_bytes(b"1")
        (scratch / "text").mkdir()
        (scratch / "text" / "words").write_bytes(b"2")
    (place,) = [number for number, event in enumerate(events) if event[0] == "rename"]
    assert events[place] == ("rename", scratch, target)
    before, after = ([event[1] for event in part] for part in (events[:place], events[place + 1 :]))
    assert {scratch / "weights", scratch / "text", scratch / "text" / "words", scratch} <= set(before)
    assert after == [target.parent]
    # Folders that were made on the way: a name lives in the folder above.
    assert {tmp_path, tmp_path / "run"} <= set(before)


def test_a_file_is_on_the_disk_before_its_name_and_its_name_after(events, tmp_path):
    target = tmp_path / "run" / "config.json"
    target.parent.mkdir()
    target.write_text("old")
    with file_written_whole(target) as scratch:
        scratch.write_text("new")
    assert events == [("flush", scratch), ("rename", scratch, target), ("flush", target.parent)]
    assert target.read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path):
    target = tmp_path / "one"
    with written_whole(target) as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(RuntimeError, match="full"), written_whole(target) as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError("full")
    assert (target / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["one"]
