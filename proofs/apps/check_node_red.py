"""The editor's files, its API, and /comms."""

import asyncio
import json
import re

import httpx
import websockets
from observe import BASE, WS, saw


async def main():
    async with httpx.AsyncClient(base_url=BASE, timeout=60) as client:
        page = await client.get("/")
        files = sorted(set(re.findall(r'(?:src|href)="([^":]+\.(?:js|css)[^"]*)"', page.text)))
        saw("files", len(files))
        for file in files:
            got = await client.get("/" + file.lstrip("/"))
            saw(file, (got.status_code, len(got.content)))
        nodes = await client.get("/nodes", headers={"accept": "application/json"})
        saw("nodes", len(nodes.json()))
        flows = [
            {"id": "f1", "type": "tab", "label": "f"},
            {"id": "in", "type": "http in", "z": "f1", "url": "/made", "method": "get", "wires": [["t"]]},
            {"id": "t", "type": "template", "z": "f1", "field": "payload", "syntax": "plain", "template": "made", "wires": [["out"]]},
            {"id": "out", "type": "http response", "z": "f1", "wires": []},
        ]
        saw("deployed", (await client.post("/flows", json=flows)).status_code)
        for _ in range(100):
            made = await client.get("/made")
            if made.status_code == 200:
                break
            await asyncio.sleep(0.1)
        saw("what was made", (made.status_code, made.text))
    async with websockets.connect(f"{WS}/comms", origin=BASE) as socket:
        await socket.send(json.dumps({"subscribe": "notification/#"}))
        heard = json.loads(await asyncio.wait_for(socket.recv(), 30))
        topics = {one["topic"].split("/")[0] for one in heard}
        saw("comms", sorted(topics))


asyncio.run(main())
