"""The limits of a sweep, as the system states them."""

from pathlib import Path

from sollol.discovery.sweep import MAX_IN_FLIGHT, descriptors, neighbour_limit


def test_neighbours_that_are_known_leave_less_room(tmp_path: Path) -> None:
    assert neighbour_limit(tmp_path) == 1024
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/arp").write_text("IP address ...\n10.0.0.1 ...\n10.0.0.2 ...\n")
    assert neighbour_limit(tmp_path) == 1022
    (tmp_path / "proc/sys/net/ipv4/neigh/default").mkdir(parents=True)
    (tmp_path / "proc/sys/net/ipv4/neigh/default/gc_thresh3").write_text("4096\n")
    assert neighbour_limit(tmp_path) == 4094


def test_descriptors_are_bounded() -> None:
    assert 16 <= descriptors() <= MAX_IN_FLIGHT
