"""From actions to awaits: the dispatcher, the jobs it runs, resumed streams, and the history of calls."""
