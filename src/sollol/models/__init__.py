"""Model administration over all nodes: list, show, load, pull, push, create, copy, delete."""
