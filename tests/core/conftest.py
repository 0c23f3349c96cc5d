"""One scheduler in virtual time, for all tests of the core."""

from __future__ import annotations

import pytest

from sollol.engine.engine import default_policies
from sollol.policies.concurrency import LearnedLimit
from tests.core.virtual import VirtualCluster


@pytest.fixture
def cluster() -> VirtualCluster:
    """A scheduler without nodes. Each node that is added has one slot."""
    return VirtualCluster(default_policies()._replace(limiter=lambda: LearnedLimit(1, 1)))
