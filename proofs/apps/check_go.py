"""JSON and events as they come."""

import time

import httpx
from observe import BASE, saw

with httpx.Client(base_url=BASE, timeout=30) as client:
    hello = client.get("/").json()
    # Directly there is no proxy that could say it.
    hello.pop("client")
    saw("hello", hello)
    started, first = time.monotonic(), None
    with client.stream("GET", "/events") as events:
        lines = []
        for line in events.iter_lines():
            first = first or time.monotonic() - started
            lines.append(line)
    saw("events", lines)
    saw("the first came before the last was made", first < 0.2)
    saw("missing", client.get("/missing").status_code)
    saw("method", client.post("/").headers.get("allow"))
