"""The state of the scheduler. Only the scheduler writes it; others read `core.view`."""
