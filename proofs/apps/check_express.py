"""JSON both ways, a link that is the client's, and what is conditional."""

import httpx
from observe import BASE, saw

with httpx.Client(base_url=BASE, timeout=30) as client:
    hello = client.get("/")
    saw("hello", (hello.status_code, hello.json()))
    saw("sum", client.post("/sum", json={"numbers": list(range(100))}).json())
    saw("unchanged", client.get("/", headers={"if-none-match": hello.headers["etag"]}).status_code)
    saw("broken", client.post("/sum", content=b"{", headers={"content-type": "application/json"}).status_code)
