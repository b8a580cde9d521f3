"""A GPU's clock, played by stand-ins: what is flushed, waited for and timed, in which order."""

import types

import pytest
import torch

from benchmarks import measure
from benchmarks.peers import graphs


@pytest.fixture
def device(monkeypatch):
    """``torch.cuda`` that notes what is asked of it; each call between two events takes 2 ms."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def elapsed_time(self, end):
            return 2.0

    properties = types.SimpleNamespace(L2_cache_size=1 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("wait"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: told.append("sync"))
    return told


def test_a_call_is_timed_alone_behind_a_flush_and_a_wait(device):
    cold = measure.ColdCalls("cpu")
    cold._flush = types.SimpleNamespace(zero_=lambda: device.append("flush"))
    assert cold.sample(lambda: device.append("call"), 2, "cpu") == pytest.approx(2e-3)
    assert device == ["sync", *["flush", "wait", "event", "call", "event"] * 2, "sync"]


def test_what_is_flushed_is_larger_than_the_cache(device):
    assert measure.ColdCalls("cpu")._flush.numel() >= 64 << 20
    torch.cuda.get_device_properties("cpu").L2_cache_size = 50 << 20
    assert measure.ColdCalls("cpu")._flush.numel() == 100 << 20


@pytest.mark.parametrize(("clock", "cold"), [("device", True), ("wall", False)])
def test_the_case_says_which_clock(clock, cold, device, monkeypatch):
    taken = []

    class Cold:
        def __init__(self, device):
            pass

        def sample(self, call, times, device):
            taken.append(times)
            call()
            return 1e-4

    monkeypatch.setattr(measure, "ColdCalls", Cold)
    found = measure.interleaved({"a": lambda: None}, seconds=0.0, min_rounds=3, device="cuda", clock=clock)
    assert len(found["a"].samples) == 3
    # Two to warm up and to estimate, then rounds of as many calls as 2 ms hold, eight at most.
    assert taken == ([1, 1, 8, 8, 8] if cold else [])


def test_a_call_is_recorded_once_and_replayed(device, monkeypatch):
    class Graph:
        def replay(self):
            device.append("replay")

    class Recording:
        def __init__(self, graph):
            assert isinstance(graph, Graph)

        def __enter__(self):
            device.append("record")

        def __exit__(self, *exception):
            device.append("recorded")

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda which: Recording(Graph()))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    replay = graphs.recorded(lambda: device.append("call") or "results")
    assert replay() == replay() == "results"
    assert device.count("call") == 4 and device.count("replay") == 2
    assert device.index("sync") < len(device) - 1 - device[::-1].index("call")
