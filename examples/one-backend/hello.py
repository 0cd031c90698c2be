"""pip install nats-py; python hello.py"""
import asyncio, json, os, nats

async def hello(message):
    name = json.loads(message.data).get("name")
    reply = {"hello": name} if name else {"_reply": {"status": 400}, "body": {"error": "who are you?"}}
    await message.respond(json.dumps(reply).encode())

async def main():
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    await client.subscribe("svc.hello.v1", queue="q", cb=hello)
    await asyncio.Event().wait()

asyncio.run(main())
