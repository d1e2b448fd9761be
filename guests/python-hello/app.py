"""The smallest guest of the Spin SDK 3 for Python (WASI 0.2), for benches.

It is built for the world `wasi:http/proxy`, without the interfaces of Spin that it does
not use, so that other servers can run it too.
"""

from spin_sdk import http
from spin_sdk.http import Request, Response


class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request: Request) -> Response:
        return Response(200, {"content-type": "text/plain"}, b"Hello, world!\n")
