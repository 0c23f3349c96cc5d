"""The real clients through the gateway: what they get is what they get from a node itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ollama
import openai
import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings

from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import Stage, gateway_over

CHAT = ModelSpec("llama3.2", size_bytes=2_000_000_000, tools=True)
EMBED = ModelSpec("nomic-embed-text", "embed", 274_000_000, context_length=2048)
PLAIN = ModelSpec("plain", size_bytes=1_000_000_000)
PULLABLE = ModelSpec("gemma3:1b", size_bytes=800)
HELLO = [{"role": "user", "content": "the small node sends the ready model"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
TEXTS = [f"text number {i}" for i in range(100)]


def spec(seed: int) -> NodeSpec:
    return NodeSpec(models=(CHAT, PLAIN, EMBED), registry=(PULLABLE,), seed=seed)


@pytest.fixture(scope="module")
def stage() -> Any:
    with sim_cluster([spec(1), spec(2)]) as nodes, gateway_over(nodes.urls) as found:
        found.nodes = nodes
        yield found


@contextmanager
def ollama_client(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(url)
    try:
        yield client
    finally:
        client._client.close()


@contextmanager
def openai_client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0) as client:
        yield client


def both(stage: Stage, ask: Callable[[str], Any]) -> Any:
    """The same through the gateway and from a node; they must agree."""
    through, direct = ask(stage.url), ask(stage.nodes.urls[0])
    assert through == direct
    return through


# --- ollama ---


def test_ollama_chat(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            answer = client.chat("llama3.2", HELLO, options={"num_predict": 9})
        return answer.message.content, answer.done_reason, answer.eval_count

    assert both(stage, ask)[2] == 9


def test_ollama_stream(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            parts = list(client.chat("llama3.2", HELLO, stream=True, options={"num_predict": 9}))
        return [part.message.content for part in parts], parts[-1].eval_count

    assert len(both(stage, ask)[0]) == 10


def test_ollama_async(stage: Stage) -> None:
    def ask(url: str) -> Any:
        async def go() -> Any:
            client = ollama.AsyncClient(url)
            parts = [part.response async for part in await client.generate("llama3.2", "x", stream=True)]
            one = await client.embed("nomic-embed-text", TEXTS[0])
            await client._client.aclose()
            return parts, one.embeddings

        return asyncio.run(go())

    both(stage, ask)


def test_ollama_tools_and_structured_output(stage: Stage) -> None:
    def ask(url: str) -> Any:
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        with ollama_client(url) as client:
            called = client.chat("llama3.2", HELLO, tools=[TOOL]).message.tool_calls
            shaped = client.chat("llama3.2", HELLO, format=schema).message.content
        return [(call.function.name, call.function.arguments) for call in called or ()], shaped

    assert both(stage, ask)[0][0][0] == "weather"


def test_ollama_embeds_a_long_list_over_all_nodes(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            answer = client.embed("nomic-embed-text", TEXTS)
        return answer.embeddings, answer.prompt_eval_count

    assert len(both(stage, ask)[0]) == len(TEXTS)


def test_ollama_models(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            listed = sorted(str(row.model) for row in client.list().models)
            return listed, getattr(client.show("llama3.2").details, "family", None)

    assert both(stage, ask)[0] == ["llama3.2:latest", "nomic-embed-text:latest", "plain:latest"]
    with ollama_client(stage.url) as client:
        assert client.chat("llama3.2", HELLO).message.content
        assert "llama3.2:latest" in {row.model for row in client.ps().models}
        progress = list(client.pull("gemma3:1b", stream=True))
        assert progress[-1].status == "success"
        assert client.delete("gemma3:1b").status == "success"


@pytest.mark.parametrize(
    ("model", "more", "status"), [("nope", {}, 404), ("llama3.2", {"options": {"num_ctx": "x"}}, 500)]
)
def test_ollama_errors(stage: Stage, model: str, more: dict[str, Any], status: int) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client, pytest.raises(ollama.ResponseError) as caught:
            client.chat(model, HELLO, **more)
        return caught.value.status_code, caught.value.error

    assert both(stage, ask)[0] == status


def test_ollama_async_chat_stream_with_tools(stage: Stage) -> None:
    def ask(url: str) -> Any:
        async def go() -> Any:
            client = ollama.AsyncClient(url)
            parts = [part async for part in await client.chat("llama3.2", HELLO, tools=[TOOL], stream=True)]
            await client._client.aclose()
            calls = [call.function.name for part in parts for call in part.message.tool_calls or ()]
            return calls, [part.message.content for part in parts], parts[-1].done_reason

        return asyncio.run(go())

    assert both(stage, ask)[0] == ["weather"]


def test_ollama_old_embeddings_and_generate(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            old = client.embeddings("nomic-embed-text", TEXTS[0]).embedding
            shaped = client.generate("llama3.2", "x", format="json").response
            raw = client.generate("llama3.2", "x", raw=True, options={"num_predict": 7})
        return old, shaped, raw.response, raw.eval_count

    assert both(stage, ask)[3] == 7


def test_ollama_pull_copy_create_and_delete() -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            pulled = [part.status for part in client.pull("gemma3:1b", stream=True)]
            again = client.pull("gemma3:1b").status
            copied = client.copy("gemma3:1b", "mine").status
            made = client.create("derived", from_="gemma3:1b", system="x").status
            listed = sorted(str(row.model) for row in client.list().models)
            gone = [client.delete(name).status for name in ("mine", "derived", "gemma3:1b")]
            with pytest.raises(ollama.ResponseError) as caught:
                client.pull("nowhere")
        last = pulled[-1]  # of many nodes, progress has more lines than of one
        return last, "pulling manifest" in pulled, again, copied, made, listed, gone, caught.value.status_code

    with sim_cluster([spec(1), spec(2)]) as nodes, gateway_over(nodes.urls[:1]) as found:
        assert ask(found.url) == ask(nodes.urls[1])


def test_ollama_running_models() -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client:
            client.generate("llama3.2", keep_alive=60)
            rows = [(row.model, row.size, row.size_vram, row.context_length) for row in client.ps().models]
            client.generate("llama3.2", keep_alive=0)
            return rows, len(client.ps().models)

    with sim_cluster([spec(1), spec(2)]) as nodes, gateway_over(nodes.urls[:1]) as found:
        assert ask(found.url) == ask(nodes.urls[1])


@pytest.mark.parametrize(
    ("verb", "asked", "status"),
    [
        ("chat", {"model": "nomic-embed-text", "messages": HELLO}, 400),
        ("chat", {"model": "plain", "messages": HELLO, "tools": [TOOL]}, 400),
        ("generate", {"model": "llama3.2", "prompt": "x", "think": True}, 400),
        ("embed", {"model": "llama3.2", "input": "x"}, 501),
        ("embed", {"model": "nomic-embed-text", "input": "word " * 9000, "truncate": False}, 400),
        ("embed", {"model": "nope", "input": "x"}, 404),
        ("embed", {"model": "nope", "input": TEXTS}, 404),
        ("show", {"model": "nope"}, 404),
        ("delete", {"model": "nope"}, 404),
        ("copy", {"source": "nope", "destination": "x"}, 404),
    ],
)
def test_ollama_refusals(stage: Stage, verb: str, asked: dict[str, Any], status: int) -> None:
    def ask(url: str) -> Any:
        with ollama_client(url) as client, pytest.raises(ollama.ResponseError) as caught:
            getattr(client, verb)(**asked)
        return caught.value.status_code, caught.value.error

    assert both(stage, ask)[0] == status


# --- openai ---


def test_openai_async(stage: Stage) -> None:
    def ask(url: str) -> Any:
        async def go() -> Any:
            asked: dict[str, Any] = {"model": "llama3.2", "messages": HELLO, "max_tokens": 9}
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0) as client:
                whole = await client.chat.completions.create(**asked)
                stream = await client.chat.completions.create(**asked, stream=True)
                parts = [part.choices[0].delta.content or "" async for part in stream if part.choices]
            return whole.choices[0].message.content, "".join(parts)

        return asyncio.run(go())

    whole, text = both(stage, ask)
    assert whole == text


def test_openai_structured_output_and_streamed_tools(stage: Stage) -> None:
    def ask(url: str) -> Any:
        shape = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": shape}}
        with openai_client(url) as client:
            chat: Any = client.chat.completions
            shaped = chat.create(model="llama3.2", messages=HELLO, response_format=wanted).choices[0].message.content
            parts = list(chat.create(model="llama3.2", messages=HELLO, tools=[TOOL], stream=True))
            text = "".join(
                part.choices[0].text for part in client.completions.create(model="llama3.2", prompt="x", stream=True)
            )
        deltas = [part.choices[0].delta for part in parts if part.choices]
        calls = [(call.function.name, call.function.arguments) for d in deltas for call in d.tool_calls or ()]
        return shaped, calls, text

    shaped, calls, text = both(stage, ask)
    assert "age" in shaped
    assert calls[0][0] == "weather"
    assert text


def test_openai_chat_and_stream(stage: Stage) -> None:
    def ask(url: str) -> Any:
        asked: dict[str, Any] = {"model": "llama3.2", "messages": HELLO, "max_tokens": 9}
        with openai_client(url) as client:
            whole = client.chat.completions.create(**asked)
            stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            parts = list(stream)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        return whole.choices[0].message.content, whole.usage.completion_tokens, text, parts[-1].usage.completion_tokens

    whole, count, text, streamed = both(stage, ask)
    assert whole == text
    assert count == streamed == 9


def test_openai_tools(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with openai_client(url) as client:
            asked: dict[str, Any] = {"model": "llama3.2", "messages": HELLO, "tools": [TOOL]}
            answer = client.chat.completions.create(**asked)
        calls = answer.choices[0].message.tool_calls
        return answer.choices[0].finish_reason, [(call.function.name, call.function.arguments) for call in calls]

    assert both(stage, ask)[0] == "tool_calls"


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("count", [1, 100])
def test_openai_embeddings(stage: Stage, encoding: str, count: int) -> None:
    def ask(url: str) -> Any:
        asked: dict[str, Any] = {"model": "nomic-embed-text", "input": TEXTS[:count], "encoding_format": encoding}
        with openai_client(url) as client:
            answer = client.embeddings.create(**asked)
        return [(row.index, row.embedding) for row in answer.data], answer.usage.prompt_tokens

    assert [index for index, _ in both(stage, ask)[0]] == list(range(count))


def test_openai_completions_responses_and_models(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with openai_client(url) as client:
            done = client.completions.create(model="llama3.2", prompt="x", max_tokens=5).choices[0].text
            response = client.responses.create(model="llama3.2", input="x", max_output_tokens=5).output_text
            return done, response, sorted(row.id for row in client.models.list())

    both(stage, ask)


def test_openai_errors(stage: Stage) -> None:
    def ask(url: str) -> Any:
        with openai_client(url) as client:
            chat: Any = client.chat.completions
            with pytest.raises(openai.NotFoundError) as caught:
                chat.create(model="nope", messages=HELLO)
            with pytest.raises(openai.BadRequestError) as empty:
                chat.create(model="llama3.2", messages=[])
        return caught.value.body, empty.value.body

    both(stage, ask)


# --- langchain ---


def test_langchain(stage: Stage) -> None:
    def ask(url: str) -> Any:
        chat = ChatOllama(model="llama3.2", base_url=url, num_predict=9)
        called = chat.bind_tools([TOOL]).invoke("x").tool_calls
        streamed = "".join(str(part.content) for part in chat.stream("x"))
        embeddings = OllamaEmbeddings(model="nomic-embed-text", base_url=url)
        vectors = embeddings.embed_documents(TEXTS)
        whole = chat.invoke("x").content
        made: Any
        for made in (chat, embeddings):
            made._client._client.close()
        return whole, streamed, [call["name"] for call in called], vectors

    whole, streamed, _, vectors = both(stage, ask)
    assert whole == streamed
    assert len(vectors) == len(TEXTS)


def test_langchain_async_structured_and_refused(stage: Stage) -> None:
    def ask(url: str) -> Any:
        async def go() -> Any:
            chat = ChatOllama(model="llama3.2", base_url=url, num_predict=9)
            streamed = "".join([str(part.content) async for part in chat.astream("x")])
            for client in (chat._client, chat._async_client):
                closed = client.close()
                if asyncio.iscoroutine(closed):
                    await closed
            return streamed

        shaped = ChatOllama(model="llama3.2", base_url=url, format="json")
        told = shaped.invoke("x").content
        missing = ChatOllama(model="nope", base_url=url)
        with pytest.raises(ollama.ResponseError) as caught:
            missing.invoke("x")
        for made in (shaped, missing):
            made._client._client.close()
        return asyncio.run(go()), told, caught.value.status_code, caught.value.error

    assert both(stage, ask)[2] == 404
