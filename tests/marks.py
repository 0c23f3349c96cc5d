"""Marks of tests."""

from __future__ import annotations

import pytest

from sollol.core import scheduler

plain_only = pytest.mark.skipif(
    not str(scheduler.__file__).endswith(".py"), reason="compiled code takes no stand-ins and no changed constants"
)
