"""Decide what runs where. Pure: no clock, no sockets, no threads, no global random numbers."""
