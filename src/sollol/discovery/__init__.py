"""Discovery: candidates (settings, localhost, containers, subnets) become nodes, one for each machine and port.

Runs only when called. `networks` lists the permitted networks, `candidates` the addresses to try, `sweep` finds open
ports, `verify` identifies Ollama, `identity` removes duplicates, `stop_policy` ends the search, `search` runs it.
"""

from __future__ import annotations

from typing import Any

from sollol.discovery.candidates import CandidateSource
from sollol.discovery.identity import Found
from sollol.discovery.search import discover, discover_ollama_nodes, physical_hosts
from sollol.former import find_former

__all__ = ["Found", "CandidateSource", "discover", "discover_ollama_nodes", "physical_hosts"]


def __getattr__(name: str) -> Any:
    return find_former("discovery", name)
