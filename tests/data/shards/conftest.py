"""Manifests of clips that need no decoder."""

from __future__ import annotations

import pytest
from noise import pixels

from fastvivit.data import Entry, dataset
from fastvivit.data.shards import decode


@pytest.fixture
def undecoded(monkeypatch):
    """``read_entry`` is ``pixels``, for data sets and packing alike."""
    monkeypatch.setattr(decode, "read_entry", pixels)
    monkeypatch.setattr(dataset, "read_entry", lambda entry, *look, **_: pixels(entry, *look))


@pytest.fixture
def entries(tmp_path):
    """``entries(7)``: as many; ``broken=(2, 4)`` can't be read."""

    def make(count, broken=()):
        names = [f"{'broken' if i in broken else 'clip'}{i}.mp4" for i in range(count)]
        return [
            Entry(video=tmp_path / name, captions=(f"{i}a", f"{i}b"), start=i / 10, extra={"id": i})
            for i, name in enumerate(names)
        ]

    return make
