"""Requests that a node, simulated or real, and the gateway before it must answer alike.

`{chat}` and `{embed}` in a path or body stand for the models of the node.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One request. `loose`: only the status is compared."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    loose: bool = False


WORDS = b'"options":{"num_predict":2},"stream":false'
MESSAGES = b'"messages":[{"role":"user","content":"a"}]'
SPELLINGS = (
    b"{chat}",
    b"{CHAT}",
    b"library/{chat}",
    b"Library/{CHAT}:LATEST",
    b"registry.ollama.ai/library/{chat}:latest",
    b"https://registry.ollama.ai/library/{chat}",
    b" {chat} ",
    b"{chat}:local",
    b"{chat}:latest:local",
    b"other/{chat}",
    b"{chat}:other",
)


def _post(name: str, path: str, body: bytes, *headers: tuple[str, str], loose: bool = False) -> Case:
    return Case(name, "POST", path, body, headers, loose)


def _names() -> list[Case]:
    found = []
    for spelling in SPELLINGS:
        label = spelling.decode()
        found += [
            _post(f"chat of {label}", "/api/chat", b'{"model":"%b",%b,%b}' % (spelling, MESSAGES, WORDS)),
            _post(f"generate of {label}", "/api/generate", b'{"model":"%b","prompt":"a",%b}' % (spelling, WORDS)),
            _post(f"show of {label}", "/api/show", b'{"model":"%b"}' % spelling, loose=True),
            _post(
                f"/v1 chat of {label}",
                "/v1/chat/completions",
                b'{"model":"%b",%b,"max_tokens":2}' % (spelling, MESSAGES),
            ),
        ]
        embed = spelling.replace(b"chat", b"embed").replace(b"CHAT", b"EMBED")
        found += [
            _post(f"embed of {label}", "/api/embed", b'{"model":"%b","input":"a"}' % embed),
            _post(f"/v1 embeddings of {label}", "/v1/embeddings", b'{"model":"%b","input":"a"}' % embed),
        ]
    return found


def _bodies() -> list[Case]:
    generate = b'{"model":"{chat}","prompt":"a",%b' % WORDS
    chat = b'{"model":"{chat}",%b,%b' % (MESSAGES, WORDS)
    openai = b'{"model":"{chat}",%b,"max_tokens":2' % MESSAGES
    embed = b'{"model":"{embed}","input":'
    many = b"[" + b",".join(b'"text %d"' % place for place in range(70)) + b"]"
    return [
        _post("half of a surrogate pair, generate", "/api/generate", generate.replace(b'"a"', b'"hi \\ud83d"') + b"}"),
        _post("half of a surrogate pair, chat", "/api/chat", chat.replace(b'"a"', b'"hi \\ud83d"') + b"}"),
        _post("half of a surrogate pair, /v1", "/v1/chat/completions", openai.replace(b'"a"', b'"\\ude00!"') + b"}"),
        _post("half of a surrogate pair, embed", "/api/embed", embed + b'["h\\ud83d","b"]}'),
        _post("half of a surrogate pair, long list", "/api/embed", embed + many.replace(b"text 7", b"\\ud83d") + b"}"),
        _post("a byte that is not UTF-8, generate", "/api/generate", generate.replace(b'"a"', b'"h\xe9"') + b"}"),
        _post("a byte that is not UTF-8, /v1", "/v1/chat/completions", openai.replace(b'"a"', b'"h\xe9"') + b"}"),
        _post("a byte that is not UTF-8, embed", "/api/embed", embed + b'"h\xe9"}'),
        _post("stream is 5, chat", "/api/chat", chat.replace(b"false", b"5") + b"}"),
        _post("stream is 5, generate", "/api/generate", generate.replace(b"false", b"5") + b"}"),
        _post("stream is 5, embed", "/api/embed", embed + b'"a","stream":5}'),
        _post("stream is 5, show", "/api/show", b'{"model":"{chat}","stream":5}', loose=True),
        _post("stream is 5, /v1 embeddings", "/v1/embeddings", embed + b'"a","stream":5}'),
        _post("stream is 5, /v1 chat", "/v1/chat/completions", openai + b',"stream":5}'),
        _post("tools are a text, /v1 chat", "/v1/chat/completions", openai + b',"tools":"x"}'),
        _post("stream is 5, messages", "/v1/messages", openai + b',"stream":5}'),
        _post("tools are a text, messages", "/v1/messages", openai + b',"tools":"x"}'),
        _post("stream is 5, responses", "/v1/responses", b'{"model":"{chat}","input":"a","stream":5}'),
        _post("encoding_format is 5", "/v1/embeddings", embed + b'["a","b"],"encoding_format":5}'),
        _post("tools are a text, chat", "/api/chat", chat + b',"tools":"x"}', loose=True),
        _post("tools are a text, generate", "/api/generate", generate + b',"tools":"x"}'),
        _post("tools are numbers, chat", "/api/chat", chat + b',"tools":[3]}', loose=True),
        _post("bytes behind, generate", "/api/generate", generate + b"} garbage"),
        _post("another object behind, chat", "/api/chat", chat + b'}{"model":"other"}'),
        _post("bytes behind, /v1", "/v1/chat/completions", openai + b"}}"),
        _post("bytes behind, embed", "/api/embed", embed + b'"a"}x'),
        _post("bytes behind, show", "/api/show", b'{"model":"{chat}"}x', loose=True),
        _post("Model", "/api/generate", b'{"Model":"{chat}","Prompt":"a","OPTIONS":{"num_predict":2},"Stream":false}'),
        _post("the last name wins", "/api/generate", b'{"model":"other","MODEL":"{chat}","prompt":"a",%b}' % WORDS),
        _post("the last name wins, to its loss", "/api/generate", generate + b',"\\u004dodel":"other"}'),
        _post("null leaves a name", "/api/generate", generate + b',"Model":null}'),
        _post(
            "letters that fold", "/api/generate", b'{"model":"{chat}","prompt":"a","\xc5\xbftream":false}', loose=True
        ),
        _post("no object", "/api/chat", b"[]", loose=True),
        _post("null", "/api/generate", b"null"),
        _post("not JSON", "/api/generate", b"{,}", loose=True),
        _post("no body", "/api/generate", b""),
        _post("hex", "/v1/embeddings", embed + b'["a","b"],"encoding_format":"hex"}'),
        _post("hex, long list", "/v1/embeddings", embed + many + b',"encoding_format":"hex"}'),
        _post("BASE64, long list", "/v1/embeddings", embed + many + b',"encoding_format":"BASE64"}'),
        _post("Content-Type twice", "/api/generate", generate + b"}", *[("Content-Type", "application/json")] * 2),
        _post("a form without a model", "/v1/audio/transcriptions", b"x", loose=True),
    ]


def _paths() -> list[Case]:
    paths = (
        "//api/tags", "/api/tags/", "/api//tags", "/v1//models", "/v1/models/", "/API/tags", "/api/chat/", "//api/chat",
        "/v1//chat/completions", "/v1//chat/completions/", "/api/../api/tags", "/./api/tags", "/api/ps", "/v1/models",
        "/nope", "/api/nope", "//nope", "//api/tags?x=1", "/api/tags?x=1", "/api/me", "//", "/api%2Ftags",
        "/api/version", "/api/show",
    )  # fmt: skip
    found = []
    for path in paths:
        for method in ("GET", "HEAD", "DELETE"):
            loose = (
                path.startswith(("/api/tags", "/api/ps", "/v1/models", "/api%2F", "/api/version")) and method == "GET"
            )
            found.append(Case(f"{method} {path}", method, path, loose=loose))
        if path not in ("/api/me", "/api/show"):
            found.append(Case(f"POST {path}", "POST", path, b"{}", loose=path == "/api/chat"))
    return found


CASES = [*_names(), *_bodies(), *_paths()]
