"""A collector of OpenTelemetry's for tests: decodes what OTLP over HTTP sends, with the
protocol's own definitions, answers as its specification says, and tells the test.

Every request becomes one line of JSON on standard output:

    {"signal": "traces", "path": "/v1/traces", "headers": {...}, "data": {...}}

The first line says where it listens. What is sent to /refuse/... gets 503, and what is
sent to /stall/... gets no answer.
"""

import base64
import http.server
import json
import sys
import threading

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

SIGNALS = {
    "/v1/traces": ("traces", traces.ExportTraceServiceRequest, traces.ExportTraceServiceResponse),
    "/v1/metrics": ("metrics", metrics.ExportMetricsServiceRequest, metrics.ExportMetricsServiceResponse),
    "/v1/logs": ("logs", logs.ExportLogsServiceRequest, logs.ExportLogsServiceResponse),
}

LOCK = threading.Lock()

IDS = ("traceId", "spanId", "parentSpanId")


def readable(value):
    """Ids as people write them: JSON has bytes in base64."""
    if isinstance(value, dict):
        return {
            name: base64.b64decode(of).hex() if name in IDS else readable(of) for name, of in value.items()
        }
    if isinstance(value, list):
        return [readable(item) for item in value]
    return value


def tell(line):
    with LOCK:
        print(json.dumps(line), flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/stall"):
            tell({"signal": "stalled"})
            threading.Event().wait()
        if self.path.startswith("/refuse"):
            tell({"signal": "refused"})
            return self.answer(503, b"", "text/plain")
        if self.path not in SIGNALS or self.headers["content-type"] != "application/x-protobuf":
            tell({"signal": "wrong", "path": self.path, "type": self.headers["content-type"]})
            return self.answer(404, b"", "text/plain")
        signal, request_type, response_type = SIGNALS[self.path]
        request = request_type()
        request.ParseFromString(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        tell({"signal": signal, "path": self.path, "headers": headers, "data": readable(MessageToDict(request))})
        self.answer(200, response_type().SerializeToString(), "application/x-protobuf")

    def answer(self, status, body, content_type):
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that goes away is part of some tests."""


server = Server(("127.0.0.1", 0), Handler)
print(f"listening on {server.server_address[1]}", flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
# The test's end closes this.
sys.stdin.read()
