"""The page, its files, and code that runs in a kernel by a WebSocket."""

import asyncio
import json
import re
import uuid

import httpx
import websockets
from observe import BASE, WS, saw

TOKEN = {"authorization": "token t"}


def message(kind, content, session):
    header = {"msg_id": uuid.uuid4().hex, "username": "u", "session": session, "msg_type": kind, "version": "5.3"}
    return json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []})


async def main():
    async with httpx.AsyncClient(base_url=BASE, timeout=60, headers=TOKEN) as client:
        page = await client.get("/lab")
        saw("page", (page.status_code, page.headers["content-type"]))
        scripts = re.findall(r'src="([^"]+\.js[^"]*)"', page.text)
        for script in scripts:
            file = await client.get(script)
            saw(script, (file.status_code, len(file.content)))
        forbidden = await httpx.AsyncClient().get(f"{BASE}/api/contents")
        saw("without a token", forbidden.status_code)
        kernel = (await client.post("/api/kernels", json={"name": "python3"})).json()["id"]
        session = uuid.uuid4().hex
        address = f"{WS}/api/kernels/{kernel}/channels?session_id={session}"
        origin = BASE
        async with websockets.connect(address, additional_headers=TOKEN, origin=origin, max_size=None) as socket:
            code = "import time\nfor number in range(3):\n    print(number, flush=True)\n    time.sleep(0.2)\nprint('x' * 200_000)"
            await socket.send(message("execute_request", {"code": code, "silent": False}, session))
            text, state = "", ""
            while state != "ok":
                heard = json.loads(await asyncio.wait_for(socket.recv(), 60))
                if heard["msg_type"] == "stream":
                    text += heard["content"]["text"]
                if heard["msg_type"] == "execute_reply":
                    state = heard["content"]["status"]
            while len(text) < 200_007:
                heard = json.loads(await asyncio.wait_for(socket.recv(), 60))
                if heard["msg_type"] == "stream":
                    text += heard["content"]["text"]
            saw("what the code printed", (text[:6], len(text)))
        saw("the kernel is ended", (await client.delete(f"/api/kernels/{kernel}")).status_code)


asyncio.run(main())
