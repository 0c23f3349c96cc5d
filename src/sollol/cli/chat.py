"""Implement `sollol chat`: one answer or a conversation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from sollol.cli import fleet
from sollol.cli.console import millis, note, print_json, printable, stderr, tell_error
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.errors import BadInput, SollolError

EPILOG = """\
[bold]Examples[/bold]

  sollol chat "Name a colour." --model llama3.2
  sollol chat -m llama3.2
  cat report.txt | sollol chat "Summarise this." -m llama3.2 --num-ctx 16384
  sollol chat "Is 91 prime?" -m llama3.2 --mode fast --json

[bold]A conversation[/bold]

  Without PROMPT, in a terminal: each line is a message, and the earlier
  ones are sent with it. /clear removes them, /bye or Ctrl-D ends it,
  Ctrl-C stops an answer. Text that is piped in stands before PROMPT.

[bold]Exit codes[/bold]

  0    answered
  1    no node could answer, or Ollama refused
  2    there is no prompt, or an option cannot be used
  130  interrupted
"""
_PATIENCE_S = 0.5
_HELP = "/clear removes the messages so far, /bye ends. Ctrl-C stops an answer."


def chat(
    model: Annotated[str, typer.Option("--model", "-m", help="The chat model.", show_default=False)],
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="The message.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    nodes: NodesOption = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="fast, reliable or async; else the soonest completion.")
    ] = None,
    priority: Annotated[int, typer.Option(min=0, max=10, help="0 (can wait) to 10 (urgent).")] = 5,
    num_ctx: Annotated[int | None, typer.Option("--num-ctx", metavar="N", min=1, help="Context in tokens.")] = None,
    show_routing: Annotated[
        bool, typer.Option("--show-routing", help="Print which node answered, and its predicted and actual time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a prompt to a chat model, on the node that would finish first, and print its answer."""
    options: dict[str, Any] = {"mode": mode, "priority": priority}
    if num_ctx is not None:
        options["options"] = {"num_ctx": num_ctx}
    piped = _piped()
    text = "\n\n".join(part for part in (piped, prompt) if part and part.strip())
    talking = piped is None and prompt is None
    if not talking and not text:
        raise BadInput("there is no prompt; expected PROMPT, or text on standard input")
    if talking and as_json:
        raise BadInput("--json needs a prompt; expected PROMPT, or text on standard input")
    with fleet.open_pool(fleet.choose(nodes).endpoints) as pool:
        _probe_nodes(pool)
        talk = Conversation(pool, model, system, options, show_routing)
        if talking:
            converse(talk, _lines())
        elif as_json:
            print_json(talk.answer_whole(text))
        else:
            talk.answer(text)


def _probe_nodes(pool: Any) -> None:
    """Wait briefly for all probes, so that the prompt does not go to the first node that answers one."""
    pool.warm_models([])  # loads nothing, and starts the probes
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end and any(node.state == "unknown" for node in pool.nodes):
        time.sleep(0.005)


class Conversation:
    """Hold a pool, a model and the messages so far."""

    def __init__(self, pool: Any, model: str, system: str | None, options: dict[str, Any], show_routing: bool) -> None:
        self._pool, self._model, self._options, self._show_routing = pool, model, options, show_routing
        self._start: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def clear(self) -> None:
        """Remove all messages but the system prompt."""
        self.messages = list(self._start)

    def answer(self, text: str) -> None:
        """Send a message and print the answer as it arrives; keep the part before an interruption."""
        self.messages.append({"role": "user", "content": text})
        received: list[str] = []
        try:
            self._print(self._pool.chat(self._model, self.messages, stream=True, **self._options), received)
        finally:
            if received:
                self.messages.append({"role": "assistant", "content": "".join(received)})
            else:
                self.messages.pop()

    def answer_whole(self, text: str) -> dict[str, Any]:
        """Send a message and return the whole answer with its routing record."""
        answer = self._pool.chat(self._model, [*self.messages, {"role": "user", "content": text}], **self._options)
        return {**answer.model_dump(), "routing": answer.routing}

    def _print(self, stream: Iterator[Any], received: list[str]) -> None:
        routing: Any = None
        thinking = False
        try:
            for part in stream:
                if part.message.thinking:
                    thinking = True
                    stderr().print(printable(part.message.thinking), end="", soft_wrap=True, style="dim")
                if part.message.content:
                    if thinking and not received:
                        note("")
                    received.append(part.message.content)
                    _write(part.message.content)
                routing = part.routing or routing
        finally:
            print(flush=True)
        if self._show_routing and routing:
            note(in_words(routing))


def in_words(routing: Any) -> str:
    """Return the routing record as one line."""
    tried = f", after {', '.join(row['node'] for row in routing.tried)}" if routing.tried else ""
    return printable(
        f"[{routing.node} ({'; '.join(routing.reasons)}); predicted {millis(routing.predicted_ms)}, "
        f"actual {millis(routing.actual_ms)}, waited {millis(routing.queue_ms)}{tried}; call {routing.id}]"
    )


def converse(talk: Conversation, lines: Iterator[str]) -> None:
    """Answer each line until there are no more; an error or Ctrl-C ends only the answer."""
    note(_HELP)
    for line in lines:
        match line.strip():
            case "":
                continue
            case "/bye" | "/exit" | "/quit":
                return
            case "/clear":
                talk.clear()
                note("Forgotten.")
            case "/help" | "/?":
                note(_HELP)
            case text:
                try:
                    talk.answer(text)
                except (SollolError, KeyboardInterrupt) as error:
                    tell_error(error)


def _lines() -> Iterator[str]:
    try:
        import readline  # noqa: F401 - editing and history for input()
    except ImportError:  # Windows has no readline and does not need it
        pass
    read_line: Callable[[str], str] = input
    while True:
        try:
            yield read_line(">>> ")
        except EOFError:
            print()
            return


def _piped() -> str | None:
    """Return the text of standard input, or None where it is a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    return sys.stdin.read()


def _write(text: str) -> None:
    """Print a piece of the answer at once; on a terminal, with control characters escaped."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
