"""LiteLLM's library at one address: `in_litellm.py URL`."""

import asyncio
import json
import sys
from typing import Any

import litellm

URL = sys.argv[1]
HELLO = [{"role": "user", "content": "the small node sends the ready model"}]
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a town", "parameters": PARAMETERS}}]
TEXTS = [f"text number {i}" for i in range(60)]
OLLAMA: dict[str, Any] = {"model": "ollama_chat/llama3.2", "api_base": URL, "max_tokens": 9}
OPENAI: dict[str, Any] = {"model": "openai/llama3.2", "api_base": f"{URL}/v1", "api_key": "none", "max_tokens": 9}
litellm.num_retries = 0
litellm.suppress_debug_info = True


def said(stream: Any) -> str:
    return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def usage(answer: Any) -> list[Any]:
    return [answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.completion_tokens]


def tools(kind: Any) -> list[Any]:
    answer = litellm.completion(**kind, messages=HELLO, tools=TOOLS)
    calls = answer.choices[0].message.tool_calls or []
    return [answer.choices[0].finish_reason, [[call.function.name, call.function.arguments] for call in calls]]


def refusal(kind: Any, **more: Any) -> list[Any]:
    try:
        litellm.completion(**{**kind, **more}, messages=HELLO)
    except Exception as error:
        status = getattr(error, "status_code", None)
        return [type(error).__name__, status, str(error).replace(URL, "URL")[:120]]
    raise SystemExit("no error came")


async def asynchronous(kind: Any) -> str:
    stream = await litellm.acompletion(**kind, messages=HELLO, stream=True)
    return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])


found: dict[str, Any] = {}
for name, kind in (("ollama", OLLAMA), ("openai", OPENAI)):
    found[f"{name} chat"] = usage(litellm.completion(**kind, messages=HELLO))
    found[f"{name} stream"] = said(litellm.completion(**kind, messages=HELLO, stream=True))
    found[f"{name} async stream"] = asyncio.run(asynchronous(kind))
    found[f"{name} tools"] = tools(kind)
    found[f"{name} unknown model"] = refusal(kind, model=kind["model"].replace("llama3.2", "nope"))
shape: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": PARAMETERS}}
shaped = litellm.completion(**{**OLLAMA, "max_tokens": 200}, messages=HELLO, response_format=shape)
found["ollama structured"] = shaped.choices[0].message.content
embedded = litellm.embedding(model="ollama/nomic-embed-text", api_base=URL, input=TEXTS)
found["ollama embeddings"] = [row["embedding"] for row in embedded.data]
embedded = litellm.embedding(model="openai/nomic-embed-text", api_base=f"{URL}/v1", api_key="none", input=TEXTS)
found["openai embeddings"] = [row["embedding"] for row in embedded.data]
assert len(found["ollama embeddings"]) == len(found["openai embeddings"]) == len(TEXTS)
print(json.dumps(found))
