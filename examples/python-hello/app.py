from urllib.parse import urlsplit

from spin_sdk import http
from spin_sdk.http import Request, Response


class HttpHandler(http.Handler):
    async def handle_request(self, request: Request) -> Response:
        name = urlsplit(request.uri).path.strip("/") or "world"
        return Response(200, {"content-type": "text/plain"}, f"Hello, {name}!\n".encode())
