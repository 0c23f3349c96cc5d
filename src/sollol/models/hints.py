"""Name the next step after an error of a node about a model."""

from __future__ import annotations

from typing import Final

# Words of Ollama's, the system's and our own errors, in lower case. The first that occurs counts.
STEPS: Final = (
    (("no space left", "disk quota", "are free on its disk"), "`sollol models rm MODEL --on {node}` makes room there"),
    (
        ("than is available", "out of memory", "cudamalloc"),
        "a smaller quantisation or num_ctx may fit, or `sollol models unload MODEL --on {node}` frees memory",
    ),
    (
        ("file does not exist", "manifest unknown"),
        "no registry has this name; https://ollama.com/library has the names",
    ),
    (
        ("lookup ", "dial tcp", "tls handshake", "i/o timeout"),
        "{node} does not reach the registry; `sollol models pull {model} --lan` brings it where another node has it",
    ),
    (("not found",), "`sollol models pull {model} --on {node}` brings it"),
    (
        ("refused the connection", "cannot be reached", "no answer", "did not answer"),
        "`sollol ping {node}` tries the way",
    ),
)


def with_next_step(text: str, model: str, node: str) -> str:
    """Return the text of a node's error with the next step, where one is known and the text has none."""
    lower = text.lower()
    step = next((step for words, step in STEPS if any(word in lower for word in words)), "")
    step = step.format(model=model, node=node)
    return text if not step or step in text or "`sollol " in text else f"{text}; {step}"
