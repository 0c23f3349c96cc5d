"""Send what was recorded to other programs: each exporter in a thread of its own, so that no request waits."""
