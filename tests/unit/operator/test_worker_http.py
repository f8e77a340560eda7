"""A worker's metrics, as the operator reads them."""

from __future__ import annotations

import http.server
import threading

from minisgl_operator.worker_http import parse, scrape

TEXT = """\
# HELP sglang:num_running_reqs Requests that run
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 3.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{model_name="m"} NaN
minisgl:start_seconds{model_name="m",phase="weights"} 1.5
minisgl:start_seconds{model_name="m",phase="warmup"} 0.25
sglang:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 1.0
"""


def test_parse() -> None:
    metrics = parse(TEXT)
    assert (metrics.running_requests, metrics.queued_requests) == (3.0, 2.0)
    assert metrics.start_seconds == {"weights": 1.5, "warmup": 0.25}
    assert parse("nonsense {{{ }\n").running_requests == 0.0


def test_scrape() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(TEXT.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = scrape({"status": {"podIP": "127.0.0.1"}}, port=server.server_address[1])
        server.shutdown()
    assert found is not None and found.queued_requests == 2.0


def test_a_pod_that_does_not_answer_is_none() -> None:
    assert scrape({"status": {}}) is None
    assert scrape({"status": {"podIP": "127.0.0.1"}}, port=1) is None
