"""Tests that need the extras `neural` or `upscale`: skipped without them, except where NEURAL_TESTS=required is set,
as CI does once it has installed them: then a lack is an error."""

from __future__ import annotations

import importlib.util
import os

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips where one of the packages is not installed. Where they are required nothing is, and the test
    fails on the import."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(lacking) and os.environ.get("NEURAL_TESTS") != "required",
        reason=f"the extra that brings {', '.join(lacking)} is not installed",
    )
