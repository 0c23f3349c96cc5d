"""`sollol chat`: one question, a conversation, and what is said of the way it took."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sollol.answers import Answer, ChatResponse
from sollol.cli import chat, fleet
from sollol.cli.app import app
from sollol.errors import NoNodeAvailable
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

Run = Callable[..., Result]
ROUTING = {
    "id": 7,
    "node": "a:1",
    "reasons": ["finishes first of 2"],
    "predicted_ms": 812.4,
    "actual_ms": 1900.0,
    "queue_ms": 3.0,
    "tried": [],
}


class Talker:
    """A pool that says back what it was told; `steps` come before each part."""

    nodes = ()

    def warm_models(self, models: list[str]) -> None: ...

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.steps = list(steps)

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def chat(self, model: str, messages: list[Any], stream: bool = False, **how: Any) -> Any:
        self.asked.append({"model": model, "messages": list(messages), **how})
        words = f"You said {messages[-1]['content']}."
        whole = ChatResponse(message={"role": "assistant", "content": words}, model=model)
        whole["_sollol_routing"] = Answer(ROUTING)
        return self._stream(words, whole) if stream else whole

    def _stream(self, words: str, whole: ChatResponse) -> Iterator[ChatResponse]:
        for word in words.split(" ", 1):
            yield ChatResponse(message={"role": "assistant", "content": word + " "})
            if self.steps:
                self.steps.pop(0)()
        yield ChatResponse(whole, message={"role": "assistant", "content": ""})


@pytest.fixture
def talker(monkeypatch: pytest.MonkeyPatch) -> Talker:
    made = Talker()
    monkeypatch.setattr(fleet, "open_pool", lambda endpoints: made)
    return made


def test_a_prompt_is_answered_on_stdout_alone(run: Run, talker: Talker) -> None:
    result = run("chat", "hello", "-m", "m")
    assert result.stdout == "You said hello. \n"
    assert result.stderr == ""
    assert talker.asked == [
        {"model": "m", "messages": [{"role": "user", "content": "hello"}], "mode": None, "priority": 5}
    ]


def test_options_reach_the_pool(run: Run, talker: Talker) -> None:
    run("chat", "x", "-m", "m", "--system", "Be brief.", "--mode", "fast", "--priority", 8, "--num-ctx", 8192)
    asked = talker.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["mode"], asked["priority"], asked["options"]) == ("fast", 8, {"num_ctx": 8192})


def test_the_way_it_took(run: Run, talker: Talker) -> None:
    result = run("chat", "hello", "-m", "m", "--show-routing")
    assert result.stdout == "You said hello. \n"
    assert "a:1 (finishes first of 2); predicted 812 ms, actual 1.9 s, waited 3 ms; call 7" in result.stderr


def test_json(run: Run, talker: Talker) -> None:
    told = json.loads(run("chat", "hello", "-m", "m", "--json").stdout)
    assert told["message"]["content"] == "You said hello."
    assert told["routing"]["node"] == "a:1"
    assert "_sollol_routing" not in told


def test_what_is_piped_in_stands_before_the_prompt(talker: Talker) -> None:
    def ask(*words: str, input: str) -> str:
        result = CliRunner().invoke(app, ["chat", "-m", "m", *words], input=input)
        assert result.exit_code == 0, result.output
        return str(talker.asked[-1]["messages"][-1]["content"])

    assert ask(input="a long text\n") == "a long text\n"
    assert ask("Sum up.", input="a long text") == "a long text\n\nSum up."


@pytest.mark.parametrize("words", [(), ("",), ("  ",), ("--json",)])
def test_without_a_prompt_it_says_so(run: Run, talker: Talker, words: tuple[str, ...]) -> None:
    assert "there is no prompt" in run("chat", "-m", "m", *words, code=2).stderr


def test_what_cannot_be_used(run: Run) -> None:
    assert "'fast', 'reliable', 'async'" in run("chat", "x", "-m", "m", "--mode", "turbo", code=2).stderr
    assert "127.0.0.1:9" in run("chat", "x", "-m", "m", code=1).stderr
    assert "--model" in run("chat", "x", code=2).stderr


def test_a_model_cannot_command_the_terminal(
    talker: Talker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    chat.Conversation(talker, "m", None, {}, False).answer("\x1b[2J\x9b31m\ahello\nyou")
    assert capsys.readouterr().out == "You said \\x1b[2J\\x9b31m\\x07hello\nyou. \n"


# --- a conversation ---


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"].strip() for message in messages]


def test_it_remembers_forgets_and_ends(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat.Conversation(talker, "m", "Be brief.", {}, False)
    chat.converse(talk, iter(["one", "", "two", "/clear", "three", "/bye", "never"]))
    assert [contents(asked["messages"]) for asked in talker.asked] == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "You said one.", "two"],
        ["Be brief.", "three"],
    ]
    out, err = capsys.readouterr()
    assert "You said three." in out
    assert "/clear removes" in err


def test_an_interrupted_answer_keeps_what_was_heard(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    talker.steps = [stop]
    talk = chat.Conversation(talker, "m", None, {}, False)
    chat.converse(talk, iter(["one", "two"]))
    assert contents(talk.messages)[:3] == ["one", "You", "two"]
    assert "Interrupted" in capsys.readouterr().err


def test_a_failed_answer_is_no_part_of_it(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise NoNodeAvailable("no node is left", [("a:1", "died")])

    whole = talker.chat
    talker.chat = fail  # type: ignore[method-assign]
    talk = chat.Conversation(talker, "m", None, {}, False)

    def lines() -> Iterator[str]:
        yield "one"
        talker.chat = whole  # type: ignore[method-assign]
        yield "two"

    chat.converse(talk, lines())
    assert contents(talk.messages) == ["two", "You said two."]
    assert "a:1: died" in capsys.readouterr().err


# --- on real sockets ---


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    spec = NodeSpec(models=(ModelSpec("talker", mean_words=20.0),), decode_tokens_per_s=200.0)
    with sim_cluster([spec, spec]) as running:
        yield running


def test_over_simulated_nodes(run: Run, cluster: Cluster) -> None:
    nodes = ",".join(cluster)
    whole = json.loads(run("chat", "hello", "-m", "talker", "--nodes", nodes, "--json").stdout)
    result = run("chat", "hello", "-m", "talker", "--nodes", nodes, "--show-routing")
    assert result.stdout.strip() == whole["message"]["content"].strip()
    assert whole["routing"]["node"] in nodes
    assert "predicted" in result.stderr
    assert "call 1]" in result.stderr


def test_the_first_question_knows_all_nodes_and_waits_for_no_silent_one(run: Run) -> None:
    slow = NodeSpec(models=(ModelSpec("talker", mean_words=20.0),), decode_tokens_per_s=200.0, load_bytes_per_s=1e9)
    warm = NodeSpec(models=slow.models, decode_tokens_per_s=200.0, load_bytes_per_s=1e9, loaded=("talker",))
    with sim_cluster([slow, slow, warm]) as cluster:
        cluster.do(lambda nodes: nodes[0].freeze())
        told = json.loads(run("chat", "hello", "-m", "talker", "--nodes", ",".join(cluster), "--json").stdout)
        assert told["routing"]["node"] in cluster[2]
        assert len(told["routing"]["candidates"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_in_a_terminal_it_asks_for_lines(cluster: Cluster) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "sollol", "chat", "-m", "talker", "--nodes", ",".join(cluster), "--show-routing"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    seen = b""

    def wait_for(text: bytes, count: int = 1) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while seen.count(text) < count:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 4096)

    try:
        wait_for(b">>> ")
        os.write(master, b"hello\n")
        wait_for(b"call 1]")
        wait_for(b">>> ", 2)
        os.write(master, b"and again\n")
        wait_for(b"call 2]")
        wait_for(b">>> ", 3)
        os.write(master, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(master)
