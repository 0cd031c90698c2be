"""A hello in FastAPI, and a body of any length: `bench apps` puts it behind nginx and behind the sidecar."""

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

PIECE = bytes(64 * 1024)
app = FastAPI()


@app.get("/")
async def hello():
    return {"hello": "from an app that knows nothing"}


@app.get("/stream/{length}")
async def stream(length: int):
    async def pieces():
        left = length
        while left > 0:
            yield PIECE[:left]
            left -= len(PIECE)

    return StreamingResponse(pieces(), headers={"content-length": str(length)})
