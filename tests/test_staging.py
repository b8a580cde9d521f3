"""Copies beside the work: their order, with streams that only take notes."""

from contextlib import contextmanager

import pytest
import torch

import fastvivit as fv
from fastvivit import _staging
from fastvivit._staging import Staging
from fastvivit.modules.clips import Kept

CPU = torch.device("cpu")


def test_the_next_item_is_loaded_before_the_work_on_this_one():
    seen = []
    for item, loaded in Staging(CPU).ahead([1, 2, 3], lambda item: seen.append(f"load {item}") or 10 * item):
        assert loaded == 10 * item
        seen.append(f"work {item}")
    assert seen == ["load 1", "load 2", "work 1", "load 3", "work 2", "work 3"]
    assert list(Staging(CPU).ahead([], lambda item: item)) == []


def test_what_goes_to_the_device_keeps_its_kind():
    staging, x = Staging(CPU), torch.arange(4)
    assert staging.to_device(None) is None and torch.equal(staging.to_device(x), x)
    assert [t.tolist() for t in staging.to_device([x, x[:1]])] == [[0, 1, 2, 3], [0]]
    kept = staging.to_device(Kept(x.view(1, 4), (4,)))
    assert kept.split == (4,) and torch.equal(kept.ids, x.view(1, 4))
    cut = fv.Tubelets.from_clips(torch.zeros(1, 3, 2, 16, 16), None, (2, 16, 16))
    assert isinstance(staging.to_device(cut), fv.Tubelets)
    assert torch.equal(staging.to_host(x), x)


@pytest.fixture
def notes(monkeypatch):
    """What streams are asked for."""
    notes = []

    class Stream:
        def wait_stream(self, other):
            notes.append(f"copies wait for {other}")

        def record_event(self):
            notes.append("copied")
            return "event"

    class Work:
        def wait_event(self, event):
            notes.append(f"work waits for {event}")

        def __str__(self):
            return "work"

    @contextmanager
    def within(stream):
        notes.append("on the copies' stream")
        yield

    work = Work()
    monkeypatch.setattr(_staging, "_copies", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", within)
    return notes


def test_copies_wait_for_the_work_before_and_work_for_its_own_copy(notes):
    for item, _ in Staging(torch.device("cuda", 0)).ahead([1, 2], lambda item: notes.append(f"load {item}")):
        notes.append(f"work {item}")
    load = ["copies wait for work", "on the copies' stream"]
    assert notes == [
        *load, "load 1", "copied", *load, "load 2", "copied", "work waits for event", "work 1",
        "work waits for event", "work 2",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies to and from it")
def test_there_and_back_on_a_gpu():
    staging, items = Staging(torch.device("cuda", 0)), [torch.randn(1 << 20) for _ in range(4)]
    back = []
    for _, there in staging.ahead(items, staging.to_device):
        assert there.is_cuda
        back.append(staging.to_host(there + 1))
    torch.cuda.synchronize()
    assert all(one.is_pinned() and torch.equal(one, item + 1) for one, item in zip(back, items, strict=True))
