"""Guest built with the Spin SDK 3 for Python (WASI 0.2)."""

import json
from urllib.parse import parse_qs, urlsplit

from spin_sdk import http, key_value, variables
from spin_sdk.http import Request, Response


class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request: Request) -> Response:
        url = urlsplit(request.uri)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/":
                return text("Hello from Python, SDK 3\n")
            case "/echo":
                return Response(200, {}, request.body)
            case "/echo-request":
                return answer(
                    {"method": request.method, "uri": request.uri, "headers": dict(request.headers)}
                )
            case "/kv":
                with key_value.open_default() as store:
                    store.set(query["key"], query["value"].encode())
                    return answer({"ok": store.get(query["key"]).decode()})
            case "/variable":
                try:
                    return answer({"ok": variables.get(query["name"])})
                except Exception as error:
                    return answer({"error": repr(error)})
            case "/trap":
                raise Exception("this guest was asked to fail")
        return text(f"this guest has no {url.path}\n", 404)


def text(body: str, status: int = 200) -> Response:
    return Response(status, {"content-type": "text/plain"}, body.encode())


def answer(value: object) -> Response:
    return Response(200, {"content-type": "application/json"}, json.dumps(value).encode())
