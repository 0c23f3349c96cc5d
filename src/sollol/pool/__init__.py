"""The Python API: pools over the engine."""
