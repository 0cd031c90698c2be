"""The page, an upload of 3 MB, and an event stream of steps."""

import json
import time

import httpx
from observe import BASE, saw

API = "/gradio_api"


def call(client, name, data):
    """The events of a call, each with when it came."""
    event = client.post(f"{API}/call/{name}", json={"data": data}).json()["event_id"]
    started, seen = time.monotonic(), []
    with client.stream("GET", f"{API}/call/{name}/{event}") as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                seen.append((json.loads(line.removeprefix("data: ")), time.monotonic() - started))
    return seen


with httpx.Client(base_url=BASE, timeout=60) as client:
    page = client.get("/")
    saw("page", (page.status_code, "gradio" in page.text))
    saw("the address that it gives itself", client.get("/config").json().get("root"))
    uploaded = client.post(f"{API}/upload", files={"files": ("three.bin", bytes(3_000_000))})
    saw("upload", (uploaded.status_code, len(uploaded.json())))
    file = {"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}
    saw("size", [data for data, _ in call(client, "size", [file])])
    steps = call(client, "steps", [3])
    saw("steps", [data for data, _ in steps])
    saw("they came one by one", steps[-1][1] - steps[0][1] > 0.4)
