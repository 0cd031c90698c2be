"""A FastAPI app that knows nothing of Natsway: JSON, an upload, events and a WebSocket."""

import asyncio
import hashlib

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/health")
def health():
    return {"well": True}


@app.get("/")
def hello(request: Request):
    # As the client asked for it, since the fields of proxies are believed on this machine.
    return {"hello": "world", "link": str(request.url_for("hello"))}


@app.post("/upload")
async def upload(request: Request):
    digest, size = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


@app.get("/events")
async def events(count: int = 10, ms: int = 1000):
    async def tick():
        for number in range(count):
            yield f"id: {number}\ndata: tick\n\n"
            await asyncio.sleep(ms / 1000)

    return StreamingResponse(tick(), media_type="text/event-stream")


@app.websocket("/ws")
async def echo(socket: WebSocket):
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
