"""Files in the exact form of the official ones, with invented content; videos are empty files with the right names."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def written(tmp_path):
    """``written("name.json", value)`` → the path; text is written as it is."""

    def write(name, value):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture
def videos(tmp_path):
    """``videos("a.mp4", "sub/b.mkv")`` → the folder that holds them."""

    def make(*names):
        folder = tmp_path / "videos"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    return make
