"""Discovery: candidates (settings, localhost, containers, subnets) become nodes, one for each machine and port.

Runs only when called. `networks` says what may be searched, `candidates` what will be, `sweep` finds open ports,
`verify` asks them, `identity` counts machines, `patience` knows when to stop, and `search` holds it together.
"""

from sollol.discovery.candidates import Source
from sollol.discovery.identity import Found
from sollol.discovery.search import discover, discover_ollama_nodes, physical_hosts

__all__ = ["Found", "Source", "discover", "discover_ollama_nodes", "physical_hosts"]
