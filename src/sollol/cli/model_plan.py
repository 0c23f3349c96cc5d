"""Implement `sollol models plan`, which shows the last plan of a gateway's controller and what it has done."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sollol.cli.attach import KeyOption, NoAnswer, UrlOption, attach
from sollol.cli.console import note, plural, print_json, printable, stdout, table
from sollol.cli.fleet import JsonOption


def plan(url: UrlOption = None, api_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Show the last plan of the controller (`sollol serve --controller`), and what it has done."""
    import asyncio

    found = asyncio.run(_read(url, api_key))
    if as_json:
        print_json(found)
        return
    for title, rows in (("Plan", found["steps"]), ("Done", found["actions"])):
        if rows:
            made = table(title, "node", "model", "at", "reason")
            for row in rows:
                at = datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S") if "at" in row else ""
                made.add_row(row["do"], row["node"], printable(row["model"]), at, printable(row["reason"]))
            stdout().print(made)
    expected = found["expected_s"]
    if expected is not None and found["steps"]:
        note(f"A request takes {expected['before']:.2f} s in the mean now, {expected['after']:.2f} s with the plan.")
    if found["not_carried_out"]:
        note(f"The plan is not carried out: {printable(found['not_carried_out'])}.")
    note(f"{plural(len(found['steps']), 'step')} planned, {plural(len(found['actions']), 'action')} done.")


async def _read(url: str | None, key: str | None) -> dict[str, Any]:
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        remote = await attach(transport, url, key)
        if remote is None or not remote.is_gateway:
            raise NoAnswer(
                "no gateway runs at port 11435 of this machine. `sollol serve --controller` starts one that plans; "
                "name another address with --url http://host:port."
            )
        return await remote.plan()
    finally:
        await transport.aclose()
