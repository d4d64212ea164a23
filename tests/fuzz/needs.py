"""The mark of tests that need the tools in `.venv-fuzz`."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.fuzzer import OWN_PYTHON

needs_own_venv = pytest.mark.skipif(
    not OWN_PYTHON.exists() and os.environ.get("CI") != "true", reason="tests/run.sh makes .venv-fuzz"
)
"""In CI, such a test fails without that environment."""
