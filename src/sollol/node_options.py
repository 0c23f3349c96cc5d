"""Parse the wishes of a node's owner: the tables `[nodes."office-pc"]` of the settings.

budget = "12GB"                    # most memory for models; "80%" needs an agent that reports the size
quiet = "Mon-Fri 09:00-18:00"      # no new work in these hours, by this machine's clock
mac = "a4:bb:6d:01:02:03"          # a packet starts it: it is asleep where others are down
wake = "192.168.1.255:9"           # where the packet is sent; the broadcasts of this machine's networks without it
warm_at = "08:45"                  # woken each day at this time
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sollol.errors import BadInput

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("B", 1_000), ("IB", 1_024))
}
DAY_MINUTES: Final = 24 * 60
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B?)", re.IGNORECASE)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_CLOCK = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")
_NEXT_HOURS = re.compile(r"(?<=:\d\d)\s*,")  # other commas are between days
_MAC = re.compile(r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2}){5}|[0-9a-f]{12}", re.IGNORECASE)
_ADDRESS = re.compile(r"([0-9.]+|\[[0-9a-fA-F:%.\w]+\]):(\d{1,5})")


class Hours(NamedTuple):
    """Hours of some days, in minutes since midnight; an end before the start is on the next day."""

    days: frozenset[int]
    start: int
    end: int

    def includes(self, at: datetime) -> bool:
        """Check whether a moment is in these hours."""
        minute, day = at.hour * 60 + at.minute, at.weekday()
        if self.start <= self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


class NodeOptions(NamedTuple):
    """The wishes of a node's owner.

    Attributes:
        budget: Most bytes of models; 0 without a bound.
        budget_share: The same as a share of its memory; 0.0 without.
        quiet: Hours without new work.
        mac: The six bytes of its network card; b"" if it cannot be woken.
        wake: Host and port to which the packet is sent; None for the broadcasts of this machine's networks.
        warm_at: Minutes since midnight at which it is woken; None for never.
    """

    budget: int = 0
    budget_share: float = 0.0
    quiet: tuple[Hours, ...] = ()
    mac: bytes = b""
    wake: tuple[str, int] | None = None
    warm_at: int | None = None


def parse_node_options(raw: Any) -> NodeOptions:
    """Return the wishes in a table. Raises BadInput with the name, the value and what was expected."""
    if not isinstance(raw, Mapping):
        raise BadInput("expected a table with budget, quiet, mac, wake or warm_at")
    unknown = sorted(set(raw) - {"budget", "quiet", "mac", "wake", "warm_at"})
    if unknown:
        raise BadInput(f"{unknown[0]} is not a setting of a node; expected budget, quiet, mac, wake or warm_at")
    for name, value in raw.items():
        if not isinstance(value, str):
            raise BadInput(f"{name} = {value!r} cannot be used; expected a text in quotation marks")
    found = NodeOptions()
    if "budget" in raw:
        found = _with_budget(found, raw["budget"])
    if "quiet" in raw:
        found = found._replace(quiet=tuple(_hours(part) for part in _NEXT_HOURS.split(raw["quiet"])))
    if "mac" in raw:
        if not _MAC.fullmatch(raw["mac"]):
            raise BadInput(f"mac = {raw['mac']!r} cannot be used; expected six bytes such as a4:bb:6d:01:02:03")
        found = found._replace(mac=bytes.fromhex(re.sub("[:-]", "", raw["mac"])))
    if "wake" in raw:
        address = _ADDRESS.fullmatch(raw["wake"])
        if address is None or not 0 < int(address[2]) < 65_536 or not _is_ip(address[1].strip("[]")):
            raise BadInput(f"wake = {raw['wake']!r} cannot be used; expected address:port, such as 192.168.1.255:9")
        found = found._replace(wake=(address[1].strip("[]"), int(address[2])))
    if "warm_at" in raw:
        found = found._replace(warm_at=_minutes(raw["warm_at"], "warm_at") % DAY_MINUTES)
        if not found.mac:
            raise BadInput("warm_at needs the mac of the node, to which the packet is addressed")
    return found


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _with_budget(found: NodeOptions, raw: str) -> NodeOptions:
    share, size = _SHARE.fullmatch(raw.strip()), _SIZE.fullmatch(raw.strip())
    if share is not None and 0 < float(share[1]) <= 100:
        return found._replace(budget_share=float(share[1]) / 100)
    size_bytes = round(float(size[1]) * UNITS[size[2].upper()]) if size is not None else 0
    if size_bytes:
        return found._replace(budget=size_bytes)
    raise BadInput(f'budget = {raw!r} cannot be used; expected a size such as "12GB" or a share such as "80%"')


def _hours(text: str) -> Hours:
    """Return the hours in "Mon-Fri 09:00-18:00", "Sat, Sun 10:00-12:00", or "22:00-06:00" for every day."""
    days, _, span = text.strip().rpartition(" ")
    start, dash, end = span.partition("-")
    expected = 'expected such as "Mon-Fri 09:00-18:00" or "22:00-06:00"'
    if not dash:
        raise BadInput(f"quiet = {text.strip()!r} cannot be used; {expected}")
    hours = Hours(_days(days.strip(), expected), _minutes(start, "quiet"), _minutes(end, "quiet"))
    if hours.start == hours.end or (hours.start, hours.end) == (DAY_MINUTES, 0):
        raise BadInput(f"quiet = {text.strip()!r} has no hours; expected 00:00-24:00 for the whole day")
    return hours


def _days(text: str, expected: str) -> frozenset[int]:
    if not text:
        return frozenset(range(7))
    if "," in text:
        return frozenset().union(*(_days(part.strip() or "?", expected) for part in text.split(",")))
    first, dash, last = text.lower().partition("-")
    places = [DAYS.index(name.strip()[:3]) for name in ([first, last] if dash else [first]) if name.strip()[:3] in DAYS]
    if len(places) != (2 if dash else 1):
        raise BadInput(f"quiet: {text!r} names no days; {expected}")
    span = (places[-1] - places[0]) % 7
    return frozenset((places[0] + number) % 7 for number in range(span + 1))


def _minutes(text: str, name: str) -> int:
    found = _CLOCK.fullmatch(text.strip())
    minutes = int(found[1]) * 60 + int(found[2]) if found is not None else -1
    if not 0 <= minutes <= DAY_MINUTES:
        raise BadInput(f"{name}: {text.strip()!r} is no time of the day; expected such as 09:00")
    return minutes
