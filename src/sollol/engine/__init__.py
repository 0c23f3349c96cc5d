"""Carry out the scheduler's actions: dispatcher, jobs, resumed streams."""
