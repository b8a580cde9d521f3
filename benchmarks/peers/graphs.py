"""CUDA graphs: a call recorded once and replayed, which takes the launches off the host."""

from __future__ import annotations

from collections.abc import Callable

import torch


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` as a graph, recorded at its first use; the results are the same tensors every time."""
    made: list[tuple[torch.cuda.CUDAGraph, object]] = []

    def replay() -> object:
        if not made:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # first uses, compilations and buffers before the recording
                for _ in range(3):
                    call()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = call()
            made.append((graph, results))
        graph, results = made[0]
        graph.replay()
        return results

    return replay
