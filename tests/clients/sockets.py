"""Python's `websockets`: messages, fragments, pings, compression, and both ways to close."""

import asyncio
import sys

import websockets


async def main() -> None:
    url = sys.argv[1]
    async with websockets.connect(url, subprotocols=["echo"], max_size=None) as socket:
        assert socket.subprotocol == "echo", socket.subprotocol
        for message in ("a text", b"bytes", "", bytes(range(251)) * 40_000, "\u00e4\u2713" * 70_000):
            await socket.send(message)
            assert await socket.recv() == message, f"{len(message)} came back otherwise"
        await socket.send(["in ", "three ", "fragments"])
        assert await socket.recv() == "in three fragments"
        latency = await (await socket.ping(b"are you there"))
        assert latency < 5, latency
        # Many at once, in order.
        await asyncio.gather(*(socket.send(str(number)) for number in range(1_000)))
        assert [await socket.recv() for _ in range(1_000)] == [str(number) for number in range(1_000)]
        await socket.close(4_001, "enough")
        assert socket.close_code == 4_001, socket.close_code
    async with websockets.connect(url, compression=None) as socket:
        await socket.send("close")
        try:
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1_005, closed
    print("texts, bytes, 10 MB, fragments, pings, 1,000 at once, closes")


asyncio.run(main())
