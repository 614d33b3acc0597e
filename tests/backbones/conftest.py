from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty cache; only tests of the real backbone see the user's."""
    home = tmp_path / "climafuse-cache"
    if "real" not in request.keywords:
        monkeypatch.setenv("CLIMAFUSE_HOME", str(home))
    return home
