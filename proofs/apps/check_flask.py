"""JSON, a form with a file, and a link that is the client's."""

import httpx
from observe import BASE, saw

with httpx.Client(base_url=BASE, timeout=30) as client:
    hello = client.get("/")
    saw("hello", (hello.status_code, hello.json()))
    form = client.post("/form", data={"a": "1", "b": "x y"}, files={"file": bytes(200_000)})
    saw("form", (form.status_code, form.json()))
    saw("method", client.put("/form").status_code)
    saw("head", client.head("/").headers["content-length"] == hello.headers["content-length"])
