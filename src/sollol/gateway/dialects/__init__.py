"""The APIs that a node speaks besides its own: how their streams end, and how they are gone on with. No I/O."""
