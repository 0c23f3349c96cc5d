"""Record with which options a model was loaded, and the context that its node lists.

Of a runner that others have loaded only the context is known. Our own record holds until a list contradicts it.
"""

from __future__ import annotations

from typing import Final

from sollol.core.runner_options import UNKNOWN, context_for, parse, with_context
from sollol.core.types import EMBED, Micros, Task

SHARED_MOST: Final = 64  # runner options noted for a runner with others
IN_VAIN: Final = 2  # calls after which a node is taken to compare contexts in another way
LEAST_CONTEXT: Final = 2_048  # of a model with vision, which Ollama gives it at least


class LoadedRunner:
    """Hold the runner options of a model in memory; a replica is one."""

    def __init__(self, context: int) -> None:
        self.options = UNKNOWN  # of its last load, by our own requests
        self.options_since_us: Micros = 0
        self.options_answered_us: Micros = 0  # when the first answer came with them
        self.options_used_us: Micros = 0
        self.shared: set[str] = set()  # other runner options that this runner serves
        self.context = context  # in tokens, as listed since then; 0 if unknown
        self.default_context = 0  # tokens that the node chooses for this model; 0 if not learned
        self.shared_in_vain = 0  # calls in a row that were sent a listed context, and loaded the model all the same

    def context_for(self, options: str, longest: int = 0) -> int | None:
        """Return the `num_ctx` to send so that the runner in memory serves these options; None if it cannot.

        Args:
            longest: See `core.runner_options.context_for`.
        """
        held = self.options
        if held == UNKNOWN:
            if not options or not self.context:
                return None if options else 0
            held = with_context(self.context)
        listed = self.context if self.shared_in_vain < IN_VAIN else 0
        return context_for(options, held, listed, self.default_context, longest)

    def serves_after(self, options: str) -> bool:
        """Check that a runner with these options would serve the users of this one."""
        return context_for(self.runner_options(), options, 0, self.default_context, 0) is not None

    def share(self, task: Task) -> None:
        """Note that the runner serves a task with other runner options, for the next ones like it."""
        if task.kind is not EMBED and not task.exact_context:
            if len(self.shared) >= SHARED_MOST:
                self.shared.clear()
            self.shared.add(task.options)

    def runner_options(self) -> str:
        """Return the options of the runner in memory, as far as they are known."""
        if self.options != UNKNOWN:
            return self.options
        return with_context(self.context) if self.context else ""

    def set_options(self, options: str, now: Micros) -> None:
        """Record that the runner in memory has these options, or will have them once it is loaded."""
        self.options, self.options_since_us = options, now
        self.options_answered_us = self.context = 0
        self.shared.clear()

    def is_contradicted(self, listed: int, requested_us: Micros) -> bool:
        """Compare the context that a node lists with what is recorded. Return True if others have loaded the model.

        Args:
            listed: Its tokens.
            requested_us: When the list was requested.
        """
        if listed <= 0 or (self.options != UNKNOWN and not 0 < self.options_answered_us <= requested_us):
            return False  # the list may be of the runner before
        own = parse(self.options).context
        before, self.context = self.context, listed
        if listed != before:
            self.shared.clear()
        if self.options == UNKNOWN:
            return False
        # A context below the one that was sent is the model's limit, above it the runner is another.
        if (before and listed != before) or (own and listed > max(own, LEAST_CONTEXT)):
            return True
        if not own:
            self.default_context = listed
        return False
