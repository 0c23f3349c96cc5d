"""Images, tools and typed fields: what the official client takes is taken, what it refuses is refused."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import ollama
import pytest

from sollol import BadInput
from sollol.pool.payload import IMAGE_MOST
from sollol.pool.requests import chat_request, embed_request, generate_request
from sollol.pool.tools import as_tool
from sollol.workload.call_options import CallOptions

PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"
SAY = [{"role": "user", "content": "What is this?"}]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    return path


def sent(images: Any) -> list[str]:
    """What generate and chat send for these images: the same."""
    fields = generate_request("m", "x", False, CallOptions(), {"images": images}).fields
    message = {**SAY[0], "images": images}
    asked = chat_request("m", [message], False, CallOptions(), {}).fields["messages"][0]
    assert fields["images"] == asked["images"]
    found: list[str] = fields["images"]
    return found


def make(kind: str, path: Path) -> None:
    """Put something at `path` that is no image."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, IMAGE_MOST + 1)
    elif kind != "missing":
        path.symlink_to("/dev/zero" if kind == "device" else path)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "huge", "loop"])
@pytest.mark.parametrize("as_text", [False, True])
def test_files_that_are_no_images_are_named_and_never_waited_for(kind: str, as_text: bool, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    make(kind, path)
    with pytest.raises(BadInput, match=r"cat\.png"):
        sent([str(path) if as_text else path])


def test_a_path_with_a_null_byte() -> None:
    with pytest.raises(BadInput, match=r"null (byte|character)"):
        sent([Path("cat\0.png")])


def official(image: Any) -> str:
    """What the official client sends for it. Raises ValueError as that does."""
    return ollama.Image(value=image).model_dump()  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "base64", "the client's"])
def test_an_image_is_read_as_the_official_client_reads_it(kind: str, picture: Path) -> None:
    text = base64.b64encode(PNG).decode()
    given = {
        "path": picture,
        "text": str(picture),
        "bytes": PNG,
        "base64": text,
        "the client's": ollama.Image(value=PNG),
    }
    assert sent([given[kind]]) == [text]
    if kind != "the client's":
        assert official(given[kind]) == text


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("nothere.png", "does not exist"),
        ("photos/NotHere.JPG", "does not exist"),
        ("a.jpeg", "does not exist"),
        ("a.webp", "does not exist"),
        ("https://example.org/cat.png", "is a URL, and images are not fetched"),
        ("https://example.org/cats", "neither base64 nor a file"),
        ("abcde", "neither base64 nor a file"),
    ],
)
def test_an_image_that_is_none_is_a_value_error_before_anything_is_sent(image: str, why: str) -> None:
    with pytest.raises(ValueError):
        official(image)
    for images in ([image], [PNG, image]):
        with pytest.raises(BadInput, match=why):
            sent(images)


@pytest.mark.parametrize("image", [Path("nothere.png"), 3, None, {"url": "x"}])
def test_an_image_of_another_type_is_a_value_error_too(image: Any) -> None:
    with pytest.raises(BadInput, match=r"images.*\[0\]"):
        sent([image])


@pytest.mark.parametrize("images", ["cat.png", PNG, 3])
def test_images_are_a_list(images: Any) -> None:
    with pytest.raises(BadInput, match="expected a list"):
        generate_request("m", "x", False, CallOptions(), {"images": images})


def weather(city: str) -> str:
    """The weather.

    Args:
        city: where
    """
    return city


@pytest.mark.parametrize("tool", [3, "weather", None, [weather], {"function": 3}, {"function": {"name": 3}}])
def test_a_tool_that_is_none_is_a_value_error(tool: Any) -> None:
    with pytest.raises(ValueError):
        ollama.Tool.model_validate(tool)
    with pytest.raises(BadInput, match=r"tools\[1\]"):
        chat_request("m", SAY, False, CallOptions(), {"tools": [weather, tool]})


@pytest.mark.parametrize("tools", [3, "weather", {"type": "function"}])
def test_tools_are_a_list(tools: Any) -> None:
    with pytest.raises(BadInput, match="expected a list of functions or schemas"):
        chat_request("m", SAY, False, CallOptions(), {"tools": tools})


def test_tools_of_every_good_kind_are_sent_alike() -> None:
    schema = as_tool(weather)
    given = [weather, schema, ollama.Tool(**schema)]
    assert [
        tool["function"]["name"]
        for tool in chat_request("m", SAY, False, CallOptions(), {"tools": given}).fields["tools"]
    ]
    assert chat_request("m", SAY, False, CallOptions(), {"tools": (weather,)}).fields["tools"] == [schema]


@pytest.mark.parametrize(
    "fields",
    [
        {"think": 3}, {"format": "xml"}, {"format": 3}, {"keep_alive": []}, {"options": 3}, {"logprobs": "please"},
        {"top_logprobs": "many"},
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_a_value_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ollama._types.ChatRequest(model="m", messages=SAY, **fields)
    with pytest.raises(BadInput, match=next(iter(fields))):
        chat_request("m", SAY, False, CallOptions(), fields)


@pytest.mark.parametrize("message", ["hello", {"content": "x"}, {"role": 3}, {"role": "user", "content": 3}, 3])
def test_a_message_that_is_none_is_a_value_error(message: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        ollama.Message.model_validate(message)
    with pytest.raises(BadInput, match=r"messages\[0\]"):
        chat_request("m", [message], False, CallOptions(), {})


def test_good_fields_stay_as_they_are() -> None:
    given = {"think": "high", "format": {"type": "object"}, "keep_alive": -1, "options": {"seed": 1}, "logprobs": True}
    fields = chat_request("m", SAY, False, CallOptions(), given).fields
    assert {name: fields[name] for name in given} == given
    assert embed_request("m", "x", CallOptions(), {"dimensions": 64, "truncate": False}).fields["dimensions"] == 64
    with pytest.raises(BadInput, match="dimensions"):
        embed_request("m", "x", CallOptions(), {"dimensions": "64"})


def deep(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("value", [deep(100_000), 10**5_000], ids=["deep", "digits"])
def test_options_that_cannot_be_sent_are_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="cannot be sent as JSON"):
        chat_request("m", SAY, False, CallOptions(), {"options": {"num_ctx": value}})
