"""Paths, ranges and manifests: only what is in their form, whatever a client sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol.registry.manifest import MOST_BYTES, MOST_LAYERS, TENSOR, BadManifest, parse_manifest, spelled_as
from sollol.registry.names import RegistryPath, parse_content_range, parse_path, parse_range, split_model
from sollol.registry.seeders import LINK_S, Seeder, SeederChoice, is_signed, signature
from sollol.registry.server import is_private

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/space/llama3.2/manifests/1b", RegistryPath("manifest", "space", "llama3.2", "1b")),
        (f"/v2/space/m/blobs/{DIGEST}", RegistryPath("blob", "space", "m", DIGEST)),
        ("/v2/space/m/blobs/uploads/", RegistryPath("uploads", "space", "m", "")),
        ("/v2/space/m/blobs/uploads/abc", RegistryPath("upload", "space", "m", "abc")),
    ],
)
def test_paths_of_the_protocol(path: str, expected: RegistryPath) -> None:
    assert parse_path(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/v2/space/m/blobs/sha256:../../etc/passwd",
        "/v2/space/m/blobs/sha256-" + "0a" * 32,
        f"/v2/space/m/blobs/{DIGEST.upper()}",
        f"/v2/space/m/blobs/{DIGEST}\n",
        f"/v2/space/m/blobs/{DIGEST}0",
        "/v2/space/m/blobs/uploads/../x",
        "/v2/../m/manifests/latest",
        "/v2/space/../manifests/latest",
        "/v2/space/m/manifests/..",
        "/v2/space/m/manifests/a\0b",
        "/v2/spa.ce/m/manifests/latest",
        f"/v2/space/{'m' * 81}/manifests/latest",
        "/v2/sp\u0661ce/m/manifests/latest",
        "/v2//m/manifests/latest",
        "/v2/a/b/c/manifests/latest",
        "/v2/space/m/manifests/",
        "/v1/space/m/manifests/latest",
    ],
)
def test_paths_that_lead_nowhere(path: str) -> None:
    assert parse_path(path) is None


@given(st.text(alphabet="/.:-_%\\\0\nabc0\u00e9", max_size=40))
def test_no_path_leads_out_of_a_folder(rest: str) -> None:
    found = parse_path(f"/v2/{rest}")
    if found is not None:
        assert not any(part.startswith((".", "/")) or "/" in part for part in found[1:])


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_a_range_is_within_the_blob_or_refused(size: int, first: int, last: int | None) -> None:
    found = parse_range(f"bytes={first}-{'' if last is None else last}", size)
    if first < size and (last is None or last >= first):
        assert found == (first, size if last is None else min(last + 1, size))
    else:
        assert found is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=-0", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=1-0", None),
        ("bytes=\u0661-2", None),
        ("bytes=0-99999999999999999999", None),
    ],
)
def test_odd_ranges(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("0-99", (0, 100)), ("bytes 5-9/20", (5, 10)), ("9-5", None), ("-5", None), ("", None), ("0-x", None)],
)
def test_ranges_of_uploads(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_content_range(header) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.2:1b", ("library", "llama3.2", "1b")),
        ("me/own:latest", ("me", "own", "latest")),
        ("plain", ("library", "plain", "latest")),
    ],
)
def test_names_of_models(name: str, expected: tuple[str, str, str]) -> None:
    assert split_model(name) == expected


# --- manifests ---


def manifest(**more: Any) -> dict[str, Any]:
    layers = [{"mediaType": "x", "digest": DIGEST, "size": 5}]
    return {"schemaVersion": 2, "layers": layers, "config": {"digest": "sha256:" + "1b" * 32, "size": 7}} | more


def test_a_manifest_has_its_blobs() -> None:
    raw = json.dumps(manifest()).encode()
    found = parse_manifest(raw)
    assert (found.blobs, found.size, found.needs_mlx) == ({DIGEST: 5, "sha256:" + "1b" * 32: 7}, 12, False)
    without = manifest(config={"digest": ""}, layers=[{"mediaType": TENSOR, "digest": DIGEST, "size": 5}])
    assert parse_manifest(json.dumps(without).encode()).needs_mlx
    assert spelled_as(found, parse_manifest(raw + b"\n").digest).raw == raw + b"\n"
    assert spelled_as(found, "sha256:other") == found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b" " * (MOST_BYTES + 1),
        json.dumps(manifest(layers=[{"digest": "sha256:../../../etc/passwd", "size": 1}])).encode(),
        json.dumps(manifest(layers=[{"digest": DIGEST, "size": -1}])).encode(),
        json.dumps(manifest(layers=[{"digest": DIGEST, "size": 2**60}])).encode(),
        json.dumps(manifest(layers=[{"digest": DIGEST, "size": 1}, {"digest": DIGEST, "size": 2}])).encode(),
        json.dumps(manifest(config={"digest": "sha256:x", "size": 1})).encode(),
        json.dumps(manifest(layers=[{"digest": DIGEST, "size": 1}] * (MOST_LAYERS + 1))).encode(),
    ],
    ids=range(12),
)
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(raw)


# --- who may call, and who sends ---


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.9", True), ("100.64.1.1", True), ("::1", True),
        ("fe80::1%eth0", True), ("fd00::1", True), ("::ffff:10.0.0.1", True),
        ("8.8.8.8", False), ("2606:4700::1", False), ("::ffff:8.8.8.8", False), ("", False), ("gpu-box", False),
    ],
)  # fmt: skip
def test_only_private_networks(address: str, private: bool) -> None:
    assert is_private(address) is private


def test_links_end_and_are_for_one_blob() -> None:
    link = Seeder("http://node:1", "secret").link(DIGEST, now=1_000.5)
    path, _, query = link.partition("?")
    assert path == f"http://node:1/blobs/{DIGEST}"
    given_until, sign = (part.partition("=")[2] for part in query.split("&"))
    until = 1_000 + LINK_S
    assert given_until == str(until)
    assert is_signed("secret", DIGEST, given_until, sign, until)
    assert not is_signed("secret", DIGEST, given_until, sign, until + 1)
    assert not is_signed("other", DIGEST, given_until, sign, 0)
    assert not is_signed("secret", DIGEST[:-1] + "b", given_until, sign, 0)
    assert not is_signed("secret", DIGEST, str(until + 1), sign, 0)
    for bad in ("", "x", "-1", "9" * 15, "\u0661"):
        assert not is_signed("secret", DIGEST, bad, signature("secret", DIGEST, 1), 0)


def test_parts_spread_over_seeders_and_a_repeated_one_goes_elsewhere() -> None:
    choice = SeederChoice()
    seeders = [Seeder(f"http://{name}", "k") for name in "abc"]
    for seeder in seeders:
        choice.add(seeder, [DIGEST])
    first = [choice.choose(DIGEST, "client", 100 * i, 100 * i + 100, alone=False) for i in range(6)]
    assert sorted(str(seeder) for seeder in first) == sorted(str(seeder) for seeder in seeders * 2)
    again = [
        choice.choose(DIGEST, "client", 10, 100, alone=False) for _ in range(3)
    ]  # the first part, from where it was cut
    assert first[0] not in again[:2]
    assert set(again[:2]) | {first[0]} == set(seeders)
    assert again[2] is None, "all were tried: the registry sends it itself, if it can"
    alone = [choice.choose(DIGEST, "client", 10, 100, alone=True) for _ in range(4)]
    assert set(alone) == set(seeders), "nobody else has it: they are tried again and again"
    choice.drop(seeders[0])
    assert all(choice.choose(DIGEST, "other", 0, 100 + i, alone=True) != seeders[0] for i in range(4))
    assert choice.choose("sha256:other", "client", 0, 1, alone=True) is None
