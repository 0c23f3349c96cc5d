"""The long versions of the hostile tests: `python -m tests.hostile --seconds 3600 --seed 1`."""
