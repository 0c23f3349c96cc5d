"""A small process beside a node: facts about its machine, its blobs, and a way to its Ollama."""
