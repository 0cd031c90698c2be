"""Its pages, an account, a collection, records, a file of 3 MB, and events of changes."""

import hashlib
import json
import re
import threading

import httpx
from observe import BASE, saw

NAME = "things"
FIELDS = [{"name": "title", "type": "text"}, {"name": "file", "type": "file", "maxSelect": 1, "maxSize": 10_000_000}]


def events(client, heard, subscribed, done):
    """Subscribes to changes of records, as the library of PocketBase does, and notes what it hears."""
    with client.stream("GET", "/api/realtime") as stream:
        kind = None
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line.removeprefix("event:").strip()
            if not line.startswith("data:"):
                continue
            told = json.loads(line.removeprefix("data:"))
            if kind == "PB_CONNECT":
                wanted = {"clientId": told["clientId"], "subscriptions": [f"{NAME}/*"]}
                saw("subscribed", client.post("/api/realtime", json=wanted).status_code)
                subscribed.set()
                continue
            heard.append((kind, told["action"], told["record"]["title"]))
            if told["action"] == "delete":
                done.set()
                return


with httpx.Client(base_url=BASE, timeout=60) as client:
    page = client.get("/_/")
    saw("page", (page.status_code, page.headers["content-type"]))
    for file in sorted(set(re.findall(r'(?:src|href)="\.?/?([^":]+\.(?:js|css))"', page.text))):
        got = client.get(f"/_/{file.removeprefix('./')}")
        saw(file, (got.status_code, len(got.content)))
    refused = client.get("/api/collections")
    saw("without an account", (refused.status_code, refused.json()["message"]))
    account = {"identity": "root@app.example", "password": "secret-of-a-test"}
    token = client.post("/api/collections/_superusers/auth-with-password", json=account).json()["token"]
    client.headers["authorization"] = token
    client.delete(f"/api/collections/{NAME}")
    open_to_all = {"listRule": "", "viewRule": ""}
    made = client.post("/api/collections", json={"name": NAME, "type": "base", "fields": FIELDS, **open_to_all})
    saw("collection", (made.status_code, made.json()["name"]))

    heard, subscribed, done = [], threading.Event(), threading.Event()
    hearing = threading.Thread(target=events, args=(client, heard, subscribed, done), daemon=True)
    hearing.start()
    saw("it hears", subscribed.wait(30))
    content = bytes(range(256)) * 12_000
    record = client.post(f"/api/collections/{NAME}/records", data={"title": "one"}, files={"file": ("three.bin", content)}).json()
    saw("record", record["title"])
    file = client.get(f"/api/files/{NAME}/{record['id']}/{record['file']}")
    saw("file", (file.status_code, hashlib.sha256(file.content).digest() == hashlib.sha256(content).digest()))
    part = client.get(f"/api/files/{NAME}/{record['id']}/{record['file']}", headers={"range": "bytes=100-199"})
    saw("a part of it", (part.status_code, part.headers["content-range"], part.content == content[100:200]))
    changed = client.patch(f"/api/collections/{NAME}/records/{record['id']}", json={"title": "two"})
    saw("changed", (changed.status_code, changed.json()["title"]))
    found = client.get(f"/api/collections/{NAME}/records", params={"filter": 'title = "two"'}).json()
    saw("found", (found["totalItems"], found["items"][0]["title"]))
    saw("deleted", client.delete(f"/api/collections/{NAME}/records/{record['id']}").status_code)
    saw("it heard the last of it", done.wait(30))
    saw("events", heard)
    saw("collection deleted", client.delete(f"/api/collections/{NAME}").status_code)
