"""The gateway: one address that speaks as Ollama, OpenAI and Anthropic do, with the whole cluster behind it.

The same journey as the pool's, with an HTTP request in front: no second scheduler, no second client.
"""
