"""Tests of the exporters, against real servers."""
