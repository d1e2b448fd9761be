"""A component with tests of the guest `rust-sdk7`, for `wisp test`.

Those whose names begin with `bug:` expect what is not so, as a test would that has caught
a bug.
"""

import json

from componentize_py_types import Err
from wisp_test import exports
from wisp_test.imports import app, clock, key_value, outbound, variables


def get(path: str) -> app.Response:
    return app.send(app.Request("GET", path, [], b""))


def everything():
    variables.set("greeting", "hello")
    assert json.loads(get("/variable?name=greeting").body) == {"ok": "hello"}
    get("/kv/set?store=default&key=count&value=42")
    assert key_value.get("default", "count") == b"42"
    answer = outbound.Answer_Response(app.Response(200, [("x-id", "7")], b"in stock"))
    outbound.expect(outbound.ExpectedCall("GET", "https://api.example/*", answer, 0, 1))
    answered = json.loads(get("/fetch?url=https://api.example/stock").body)
    assert answered["ok"]["body"] == "in stock", answered
    before = clock.now_ms()
    get("/sleep?ms=60000")
    assert clock.now_ms() - before == 60_000


def wrong_status():
    status = get("/no-such-path").status
    if status != 201:
        raise Err(f"the status is {status}, not 201")


def failed_assertion():
    headers = dict(get("/").headers)
    assert "cache-control" in headers, f"no header cache-control, only {sorted(headers)}"


TESTS = {
    "everything is as it should be, in Python": everything,
    "bug: a wrong status, in Python": wrong_status,
    "bug: a failed assertion, in Python": failed_assertion,
}


class Tests(exports.Tests):
    def names(self) -> list[str]:
        return list(TESTS)

    def run(self, name: str) -> None:
        TESTS[name]()
