"""Which picture is which, by its grey, and sampling by brute force."""

from __future__ import annotations


def level(number):
    """The grey of picture ``number``; 50 different ones, 4 levels apart."""
    return 20 + 4 * (number % 50)


def numbers(clip):
    """Which picture each frame of a clip (C, T, H, W) is, up to a multiple of 50."""
    means = clip.float().mean(dim=(0, 2, 3))
    found = ((means - 20) / 4).round()
    assert (means - 20 - 4 * found).abs().max() < 1.9, f"no picture has these greys: {means.tolist()}"
    return found.int().tolist()


def expected(times, frames, fps, start=0.0, end=None):
    """The picture on screen at each instant, from a list of presentation times, by looking at all of them."""
    seconds = [time - times[0] for time in times]
    shown = [time for time in seconds if end is None or time < end]
    return [max(i for i, time in enumerate(shown) if time <= start + k / fps + 1e-6) % 50 for k in range(frames)]
