"""Serve HTTP within bounds, for the gateway and the dashboard."""
