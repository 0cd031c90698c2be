"""Every endpoint, as its page lists them, directly and through the sidecar.

One is not asked: TRACE would show fields that are not its client's to see, so the gateway answers it with 501.

Left out of each answer: the time, and what docs/sidecar.md lists as different.
"""

import hashlib
import json
import re

import httpx
from observe import BASE, saw

# What proxies say, and what concerns one connection.
OURS = re.compile(r"^(x-forwarded-\w+|forwarded|x-request-id|traceparent|connection|transfer-encoding|content-length)$", re.I)
FIELDS_LEFT_OUT = {"date", "connection", "transfer-encoding", "content-length", "x-request-id"}


def without_ours(value):
    if isinstance(value, dict):
        return {key: without_ours(entry) for key, entry in sorted(value.items()) if not OURS.match(key) and key != "id"}
    if isinstance(value, list):
        return [without_ours(entry) for entry in value]
    return value


def shown(path, response):
    kind = response.headers.get("content-type", "")
    fields = sorted((name, value) for name, value in response.headers.multi_items() if name not in FIELDS_LEFT_OUT)
    if path.startswith("/digest-auth"):
        # The challenge is made of chance.
        fields = [(name, value) for name, value in fields if name not in ("www-authenticate", "set-cookie")]
    if path == "/cache":
        # Made of the time.
        fields = [(name, value) for name, value in fields if name not in ("etag", "last-modified")]
    if path.startswith("/stream/"):
        return response.status_code, fields, [without_ours(json.loads(line)) for line in response.text.splitlines()]
    if kind.startswith("application/json"):
        try:
            return response.status_code, fields, without_ours(response.json())
        except ValueError:
            pass
    # Its own address stands in some pages.
    content = response.content.replace(BASE.encode(), b"BASE")
    return response.status_code, fields, hashlib.sha256(content).hexdigest(), len(response.content)


EVERY = ["get", "post", "put", "delete", "patch"]
REQUESTS = [
    *((method, f"/{method}", {}) for method in EVERY),
    *((method, "/anything/a/b?x=1&x=2&y=%C3%A9", {}) for method in EVERY),
    *((method, f"/status/{code}", {}) for code in (200, 204, 301, 304, 400, 401, 404, 418, 500, 503) for method in ("get", "post")),
    ("post", "/post", {"data": {"a": "1"}}),
    ("post", "/post", {"json": {"a": [1, 2]}}),
    ("post", "/post", {"files": {"f": ("name.txt", b"content")}}),
    ("post", "/post", {"content": bytes(100_000)}),
    ("put", "/put", {"content": b"raw", "headers": {"content-type": "application/octet-stream"}}),
    ("get", "/headers", {"headers": {"x-one": "1", "accept": "text/plain"}}),
    ("get", "/user-agent", {}),
    ("get", "/response-headers?a=1&a=2&set-cookie=x%3D1", {}),
    ("get", "/cache", {}),
    ("get", "/cache", {"headers": {"if-none-match": "x"}}),
    ("get", "/cache/60", {}),
    ("get", "/etag/abc", {}),
    ("get", "/etag/abc", {"headers": {"if-none-match": "abc"}}),
    ("get", "/etag/abc", {"headers": {"if-match": "other"}}),
    ("get", "/basic-auth/u/p", {}),
    ("get", "/basic-auth/u/p", {"auth": ("u", "p")}),
    ("get", "/hidden-basic-auth/u/p", {}),
    ("get", "/digest-auth/auth/u/p", {}),
    ("get", "/digest-auth/auth/u/p", {"auth": httpx.DigestAuth("u", "p")}),
    ("get", "/digest-auth/auth/u/p", {"auth": httpx.DigestAuth("u", "other")}),
    ("get", "/digest-auth/auth/u/p/SHA-256", {"auth": httpx.DigestAuth("u", "p")}),
    *((method, "/delay/0", {}) for method in EVERY),
    *((method, "/redirect-to?url=%2Fanything&status_code=308", {}) for method in EVERY),
    ("get", "/bearer", {"headers": {"authorization": "Bearer t"}}),
    ("get", "/bearer", {}),
    *(("get", path, {}) for path in (
        "/brotli", "/deflate", "/gzip", "/deny", "/encoding/utf8", "/html", "/json", "/robots.txt", "/xml", "/forms/post",
        "/base64/SFRUUEJJTiBpcyBhd2Vzb21l", "/bytes/5000?seed=7", "/delay/1", "/drip?duration=1&numbytes=20&delay=0",
        "/links/5/1", "/range/2000", "/stream-bytes/70000?seed=7&chunk_size=1000", "/stream/5",
        "/image/png", "/image/jpeg", "/image/webp", "/image/svg", "/image",
        "/cookies", "/cookies/set?a=1", "/cookies/set/b/2", "/cookies/delete?a=1",
        "/redirect/2", "/redirect-to?url=%2Fget&status_code=307", "/relative-redirect/2", "/absolute-redirect/2",
    )),
    ("get", "/range/2000", {"headers": {"range": "bytes=100-199"}}),
    ("get", "/range/2000", {"headers": {"range": "bytes=5000-"}}),
    ("get", "/image", {"headers": {"accept": "image/webp"}}),
    ("get", "/cookies", {"headers": {"cookie": "a=1; b=2"}}),
    ("head", "/get", {}),
    ("options", "/get", {}),
    ("get", "/uuid", {}),
    ("get", "/ip", {}),
]

with httpx.Client(base_url=BASE, timeout=30) as client:
    for method, path, more in REQUESTS:
        client.cookies.clear()
        try:
            response = client.request(method, path, **more)
        except httpx.HTTPError as error:
            saw(f"{method} {path}", type(error).__name__)
            continue
        if path == "/uuid":
            saw(path, sorted(response.json()))
            continue
        saw(f"{method} {path} {sorted(more)}", re.sub(r"boundary=\w+", "boundary", repr(shown(path, response))))
