"""llama-index at one address, by its ollama and its openai-like classes: `in_llama_index.py URL`."""

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL = sys.argv[1]
HELLO = [ChatMessage(role="user", content="the small node sends the ready model")]
TEXTS = [f"text number {i}" for i in range(60)]


class Town(BaseModel):
    name: str


def weather(town: str) -> str:
    """The weather of a town."""
    return f"rain in {town}"


def ollama(model: str) -> Ollama:
    return Ollama(model=model, base_url=URL, context_window=4096, additional_kwargs={"num_predict": 9})


def openai(model: str) -> OpenAILike:
    more = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 9, "max_retries": 0}
    return OpenAILike(model=model, api_base=f"{URL}/v1", api_key="none", **more)


def refusal(llm: Any) -> list[Any]:
    try:
        llm.chat(HELLO)
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None), str(error)[:120]]
    raise SystemExit("no error came")


async def asynchronous(llm: Any) -> str:
    return "".join([part.delta or "" async for part in await llm.astream_chat(HELLO)])


found = {}
for name, make in (("ollama", ollama), ("openai-like", openai)):
    llm = make("llama3.2")
    found[f"{name} chat"] = llm.chat(HELLO).message.content
    found[f"{name} complete"] = llm.complete("the small node").text
    found[f"{name} stream"] = "".join(part.delta or "" for part in llm.stream_chat(HELLO))
    found[f"{name} async stream"] = asyncio.run(asynchronous(make("llama3.2")))
    called = llm.chat_with_tools([FunctionTool.from_defaults(weather)], "what is the weather?")
    found[f"{name} tools"] = [
        [call.tool_name, call.tool_kwargs] for call in llm.get_tool_calls_from_response(called, False)
    ]
    found[f"{name} unknown model"] = refusal(make("nope"))
shaped = Ollama(model="llama3.2", base_url=URL, context_window=4096).as_structured_llm(Town).chat(HELLO)
found["ollama structured"] = shaped.message.content
for name, embedding in (
    ("ollama", OllamaEmbedding("nomic-embed-text", base_url=URL, embed_batch_size=60)),
    ("openai-like", OpenAILikeEmbedding("nomic-embed-text", api_base=f"{URL}/v1", api_key="none", embed_batch_size=60)),
):
    found[f"{name} embeddings"] = embedding.get_text_embedding_batch(TEXTS)
    found[f"{name} query embedding"] = embedding.get_query_embedding("x")
    assert len(found[f"{name} embeddings"]) == len(TEXTS)
print(json.dumps(found))
