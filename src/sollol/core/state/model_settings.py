"""Settings and estimates that all models share."""

from __future__ import annotations

from collections.abc import Mapping

from sollol.core.state.estimators import Lengths


class ModelSettings:
    """Hold the versions that embeddings use, and the usual length of answers."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self.pinned: Mapping[str, str] = {}  # model -> the digest, or the beginning of one, that embeddings use
        self.used: dict[str, str] = {}  # model -> the digest that embeddings have used, also before a restart
        self.one_digest = False  # chats use one digest, too


def short(digest: str) -> str:
    """Return a digest as `ollama list` shows it."""
    return digest[:12]
