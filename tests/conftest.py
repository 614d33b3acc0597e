"""What every test shares: no network, one thread, a cache of its own."""

from __future__ import annotations

import os

import pytest

# Set before anything imports them. A test that reached a hub would depend on the day it runs.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors: threads cost more than they give, and without them results are repeatable."""
    import torch

    torch.set_num_threads(1)
