"""Requests to a node and the meaning of its answers, by kind of server. Pure except for the probe."""
