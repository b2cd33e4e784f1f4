"""Fixtures shared by the tests of the analysis."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def meta():
    """Build on the meta device: shapes without values."""
    with torch.device("meta"):
        yield


@pytest.fixture(scope="session")
def page() -> str:
    """The page of all backbones, written anew."""
    from detkit.analysis import backbones_page

    return backbones_page("python tools/analyze.py --table docs/backbones.md")
