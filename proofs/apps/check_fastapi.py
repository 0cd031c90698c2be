"""JSON, an upload in pieces, events as they come, and a WebSocket."""

import asyncio
import hashlib
import time

import httpx
import websockets
from observe import BASE, WS, saw


async def main():
    async with httpx.AsyncClient(base_url=BASE, timeout=30) as client:
        hello = await client.get("/", headers={"host": "shop.example"})
        saw("hello", (hello.status_code, hello.json()))
        for size in (0, 1, 65_536, 3_000_000):
            body = bytes(size)

            async def pieces():
                for start in range(0, size, 10_000):
                    yield body[start : start + 10_000]

            for content in (body, pieces()):
                answer = (await client.post("/upload", content=content)).json()
                right = answer == {"bytes": size, "sha256": hashlib.sha256(body).hexdigest()}
                saw(f"upload of {size}", right)
        started, first = time.monotonic(), None
        async with client.stream("GET", "/events?count=5&ms=200") as events:
            lines = []
            async for line in events.aiter_lines():
                first = first or time.monotonic() - started
                lines.append(line)
        saw("events", (events.headers["content-type"], lines))
        saw("the first came before the last was made", first < 0.7)
        missing = await client.get("/missing")
        saw("missing", (missing.status_code, missing.json()))
    async with websockets.connect(f"{WS}/ws", max_size=None) as socket:
        for size in (1, 1_000, 1_000_000):
            await socket.send("m" * size)
            saw(f"a message of {size}", await socket.recv() == "m" * size)
        saw("extensions", [extension.name for extension in socket.protocol.extensions])
    saw("closed with", socket.close_code)


asyncio.run(main())
