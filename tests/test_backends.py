"""Choosing a backend, and saying why not."""

import pytest

from fastvivit._backends import Backend, BackendError, Op

HERE = "fastvivit.ops.gather_tokens.reference"


def op(**reasons):
    """Three backends: one absent, one that refuses, one for another device, as asked."""
    return Op(
        "stack",
        (
            Backend(name="best", module=HERE, absent=lambda: reasons.get("best")),
            Backend(name="picky", module=HERE, refuses=lambda x: reasons.get("picky")),
            Backend(name="other", module=HERE, auto=("cuda",)),
        ),
    )


def test_auto_takes_the_first_that_can_run():
    assert op().choose("auto", "cpu", None).__name__ == HERE


def test_a_named_backend_never_falls_back():
    with pytest.raises(
        BackendError, match="stack: backend 'best' can't run this\n  best: no such luck\n  picky: can run"
    ):
        op(best="no such luck").choose("best", "cpu", None)


def test_every_reason_is_listed():
    with pytest.raises(BackendError) as caught:
        op(best="absent here", picky="wanted float32").choose("auto", "cpu", None)
    assert str(caught.value) == (
        "stack: no backend can run this\n  best: absent here\n  picky: wanted float32\n"
        "  other: can run when asked for by name (auto: cuda)"
    )


def test_a_device_of_its_own_is_only_for_auto():
    found = op(best="absent", picky="refused")
    assert found.choose("other", "cpu", None).__name__ == HERE
    assert found.choose("auto", "cuda", None).__name__ == HERE


def test_an_unknown_name_is_a_value_error():
    with pytest.raises(ValueError, match="backend: wanted one of 'auto', 'best', 'picky', 'other', got 'bset'"):
        op().choose("bset", "cpu", None)
