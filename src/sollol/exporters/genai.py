"""Names of OpenTelemetry that others own, in one place, because they move.

Source of the names `gen_ai.*`: github.com/open-telemetry/semantic-conventions-genai, after its release 0.1.0,
docs/gen-ai/client-inference.md and client-embeddings.md (November 2026). Names of servers, errors and HTTP:
github.com/open-telemetry/semantic-conventions 1.44. docs/observability.md has a table of those that are used.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import Kind

OPERATION: Final = "gen_ai.operation.name"
OPERATIONS: Final = {
    Kind.CHAT.value: "chat",
    Kind.GENERATE.value: "text_completion",
    Kind.EMBED.value: "embeddings",
}
PROVIDER: Final = "gen_ai.provider.name"
OLLAMA: Final = "ollama"  # the conventions permit names of one's own
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"

INFERENCE_DURATION: Final = "gen_ai.client.inference.duration"
EMBEDDINGS_DURATION: Final = "gen_ai.client.embeddings.duration"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

# Ours, of one request.
REQUEST_ID: Final = "sollol.request.id"
APP: Final = "sollol.app"
PRIORITY: Final = "sollol.priority"
TASK_TYPE: Final = "sollol.task_type"
OUTCOME: Final = "sollol.outcome"
QUEUE_S: Final = "sollol.queue_s"
PREDICTED_S: Final = "sollol.predicted_s"  # also of an attempt
ATTEMPTS: Final = "sollol.attempts"
ATTEMPTS_DROPPED: Final = "sollol.attempts_dropped"
ITEMS: Final = "sollol.items"  # also of an attempt
FAILED_ITEMS: Final = "sollol.failed_items"
RESUMPTIONS: Final = "sollol.resumptions"
# Ours, of one attempt.
CAUSE: Final = "sollol.attempt.cause"
