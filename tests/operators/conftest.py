"""What tests of operators share."""

from __future__ import annotations

import pytest

from subcompress.format import codec
from subcompress.operators import kernels
from subcompress.rebuild.backends import available


@pytest.fixture
def no_kernel(monkeypatch):
    """The package as it is where nothing was compiled."""
    monkeypatch.setattr(kernels, "library", lambda: None)
    monkeypatch.setattr(codec, "library", lambda: None)
    assert "native" not in available()
