"""Decide by opinion: one question a file, each replaceable, its knobs in the constructor."""
