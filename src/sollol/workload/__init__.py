"""From a request to a Task: classification, prefix hashes, cost, runner options, constraints. Pure."""
