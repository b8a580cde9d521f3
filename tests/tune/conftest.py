"""Encoders of 48 columns."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Such small products only wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
