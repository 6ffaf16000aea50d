from __future__ import annotations

import os
import socket
from pathlib import Path

# Before transformers is imported: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models that are put together go beside the tests, not into the user's cache.
os.environ.setdefault("VLMFLOW_CACHE", str(Path(__file__).parents[1] / ".vlmflow-cache"))

import pytest
from hypothesis import settings

# The same examples on every machine, every time.
settings.register_profile("vlmflow", derandomize=True, deadline=None, database=None)
settings.load_profile("vlmflow")

LONGEST = (
    *("test_docs", "test_page", "test_examples", "test_bundled_model", "test_ray", "test_answers"),
    *("test_peer_tests", "test_own_signals", "test_commands", "test_training"),
    *("test_own_rankings", "test_static_cache", "test_truncation", "test_faithfulness_study"),
)
"""Files that take longest: they go first, so that no process ends on one while others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file, and among all others, nothing moves."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""

    def refuse(self: socket.socket, address: object) -> None:
        pytest.fail(f"connected to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
