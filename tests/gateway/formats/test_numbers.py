"""Numbers that no decoder takes: the body's fault on every route, however the model of the call is found."""

from __future__ import annotations

import pytest

from sollol.gateway.settings import GatewaySettings
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, gateway_over, talker

NUMBERS = ["1e400", "-1e400", "1E+0400", "9" * 4301, "-" + "9" * 4301, "1" * 250 + "e99", "[[1e999]]", '{"a":1e400}']
ROUTES = [
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/v1/chat/completions",
    "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/audio/speech",
]  # fmt: skip
NAMES = {"plain": MODEL, "alias": "other", "fallback": "nobody-has-it", "cloud alias": "cl"}


@pytest.mark.parametrize("name", NAMES)
def test_a_number_out_of_range_is_the_fault_of_the_body(name: str) -> None:
    settings = GatewaySettings(
        aliases={"other": MODEL, "cl": "gpt-oss:120b-cloud"}, fallbacks={"nobody-has-it": (MODEL,)}
    )
    with sim_cluster([talker(1)]) as cluster, gateway_over(cluster.urls, settings) as stage, stage.client() as client:
        for path in ROUTES:
            for number in NUMBERS:
                body = f'{{"model":"{NAMES[name]}","prompt":"a","input":"a","messages":[],"x":{number}}}'
                answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code == 400, (path, number[:20], answer.text[:200])
        text = f'{{"model":"{MODEL}","prompt":"1e400 {"9" * 5000}","stream":false,"options":{{"num_predict":3}}}}'
        assert client.post("/api/generate", content=text).status_code == 200


def test_a_request_names_no_endless_list_of_nodes() -> None:
    with sim_cluster([talker(1)]) as cluster, gateway_over(cluster.urls) as stage, stage.client() as client:
        names = "a," * 3000 + "a"
        body = {"model": MODEL, "messages": [], "stream": False}
        answer = client.post("/api/chat", json=body, headers={"X-Sollol-Node": names})
        assert (answer.status_code, "at most 100" in answer.text) == (400, True)
        answer = client.post(f"/api/pull?node={names}", json={"model": MODEL})
        assert (answer.status_code, "at most 100" in answer.text) == (400, True)
