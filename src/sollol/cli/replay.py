"""Implement `sollol replay`, which feeds a recorded journal to a new scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sollol.cli.console import EXIT_FAILED, note, plural, print_json, say
from sollol.cli.fleet import JsonOption
from sollol.errors import BadInput

EPILOG = """\
[bold]Examples[/bold]

  sollol serve --journal today.jsonl
  sollol replay today.jsonl

[bold]What it is for[/bold]

  A bug report with a journal can be looked at event by event: the same
  events give the same decisions. Prompts, answers and keys are not in it;
  names of nodes, models and applications are.

[bold]Exit codes[/bold]

  0    the same decisions
  1    other decisions: another version of SOLLOL wrote it, or a defect
  2    the file is no journal
"""


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A journal of `sollol serve --journal`.")],
    as_json: JsonOption = False,
) -> None:
    """Replay a journal, and compare the decisions with those that were recorded."""
    from sollol.engine.engine import default_policies
    from sollol.observe import journal_file

    if not file.is_file():
        raise BadInput(f"{file} is not a file; expected a journal of `sollol serve --journal`")
    found = journal_file.replay(file, default_policies())
    view = found.scheduler.view()
    if as_json:
        same, digest = found.differs_at is None, found.digest
        state = {"nodes": len(view.nodes), "open_tasks": len(view.tasks), "attempts": len(view.attempts)}
        print_json(
            {
                "events": found.events,
                "digests": found.digests,
                "same": same,
                "differs_at": found.differs_at,
                "digest": digest,
                **state,
            }
        )
    else:
        counts = (found.events, "event"), (len(view.nodes), "node"), (len(view.tasks), "open task")
        say(", ".join(plural(number, noun) for number, noun in counts) + ".")
        if not found.digests:
            note("Nothing was compared: the journal ends before its first digest.")
        elif found.differs_at is None:
            say(f"The decisions are the recorded ones ({plural(found.digests, 'digest')} compared).")
        else:
            note(f"The decisions differ from the recorded ones, at event {found.differs_at:,} or later.")
    if found.differs_at is not None:
        raise typer.Exit(EXIT_FAILED)
