"""The wishes of the owners of nodes: sizes, hours, addresses, and what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from sollol.config import load_settings
from sollol.errors import BadInput, ConfigError
from sollol.node_options import parse_node_options

MONDAY = datetime(2026, 11, 30)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12GB", 12 * 10**9),
        ("8 GiB", 8 * 2**30),
        ("500 mb", 500 * 10**6),
        ("1000", 1000),
        ("1.5TB", 15 * 10**11),
        ("1TiB", 2**40),
        ("512 KiB", 2**19),
        ("9B", 9),
    ],
)
def test_budgets_are_sizes(text: str, found: int) -> None:
    assert parse_node_options({"budget": text}).budget == found


def test_budgets_are_shares() -> None:
    assert parse_node_options({"budget": "80%"}).budget_share == 0.8


@pytest.mark.parametrize(
    ("hours", "at", "quiet"),
    [
        ("Mon-Fri 09:00-18:00", "09:00", True),
        ("Mon-Fri 09:00-18:00", "18:00", False),
        ("Mon-Fri 09:00-18:00", "08:59", False),
        ("Sat-Sun 09:00-18:00", "12:00", False),
        ("Sat-Mon 09:00-18:00", "12:00", True),
        ("22:00-06:00", "23:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("Sun 22:00-06:00", "03:00", True),
        ("Mon 22:00-06:00", "03:00", False),
        ("Tue 10:00-11:00, Mon 07:00-08:00", "07:30", True),
        ("monday 07:00-24:00", "23:59", True),
        ("Mon, Wed 09:00-18:00", "10:00", True),
        ("Sat,Sun 22:00-06:00, Tue-Wed,Fri 10:00-11:00", "03:00", True),
        ("Sat,Sun 22:00-06:00, Tue-Wed,Fri 10:00-11:00", "10:30", False),
    ],
)
def test_hours_may_end_on_the_next_day(hours: str, at: str, quiet: bool) -> None:
    hour, minute = (int(part) for part in at.split(":"))
    found = parse_node_options({"quiet": hours}).quiet
    assert any(each.includes(MONDAY.replace(hour=hour, minute=minute)) for each in found) is quiet


def test_addresses_are_read() -> None:
    found = parse_node_options({"mac": "A4-BB-6D-01-02-03", "wake": "192.168.1.255:9", "warm_at": "8:45"})
    assert (found.mac.hex(), found.wake, found.warm_at) == ("a4bb6d010203", ("192.168.1.255", 9), 525)
    assert parse_node_options({"mac": "a4bb6d010203"}).mac.hex() == "a4bb6d010203"


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"budget": "much"}, "budget = 'much'"),
        ({"budget": "120%"}, "budget = '120%'"),
        ({"budget": "0GB"}, "budget = '0GB'"),
        ({"budget": 12}, "budget = 12"),
        ({"budget": "0.3"}, "budget = '0.3'"),
        ({"quiet": "at night"}, "quiet = 'at night'"),
        ({"quiet": "Mon 09:00-25:00"}, "25:00"),
        ({"quiet": "Mon,,Wed 09:00-10:00"}, "names no days"),
        ({"quiet": "24:00-00:00"}, "no hours"),
        ({"quiet": "Xyz 09:00-10:00"}, "'Xyz'"),
        ({"mac": "a4:bb"}, "mac = 'a4:bb'"),
        ({"mac": "a4:bb:6d:01:02:03", "wake": "host"}, "wake = 'host'"),
        ({"mac": "a4:bb:6d:01:02:03", "wake": "10.0.0.1:99999"}, "wake = "),
        ({"mac": "a4:bb:6d:01:02:03", "wake": "999.1.1.1:9"}, "wake = "),
        ({"quiet": "Mon 09:00-09:00"}, "no hours"),
        ({"warm_at": "08:45"}, "warm_at needs the mac"),
        ({"qiet": "x"}, "qiet is not a setting"),
        ("12GB", "expected a table"),
    ],
)
def test_what_cannot_be_used_is_named(table: object, named: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_node_options(table)
    assert named in str(error.value)


def test_the_file_has_nodes_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text('[nodes."gpu-box"]\n[nodes."office-pc:5000"]\nbudget = "12GB"\n')
    settings = load_settings({}, config=path)
    assert [node.key for node in settings.nodes] == ["gpu-box:11434", "office-pc:5000"]
    assert settings.node_options["office-pc:5000"].budget == 12 * 10**9
    path.write_text('[nodes."office-pc"]\nbudget = "much"\n')
    with pytest.raises(ConfigError, match="of office-pc: budget = 'much' cannot be used"):
        load_settings({}, config=path)
