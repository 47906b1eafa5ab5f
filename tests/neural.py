"""Tests that need the extras `neural` or `upscale`: skipped without them, except in CI, where a lack is an error."""

from __future__ import annotations

import importlib.util
import os

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips where one of the packages is not installed. In CI nothing is skipped, and the test fails on the import."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(lacking) and not os.environ.get("CI"),
        reason=f"the extra that brings {', '.join(lacking)} is not installed",
    )
