"""Python's `httpx`: a body in each direction."""

import hashlib
import sys

import httpx

BASE, LENGTH = sys.argv[1], int(sys.argv[2])
BODY = (bytes(range(251)) * (LENGTH // 251 + 1))[:LENGTH]
EXPECTED = hashlib.sha256(BODY).hexdigest()

with httpx.Client(timeout=60) as client:
    pieces = (BODY[at:at + 60_000] for at in range(0, LENGTH, 60_000))
    answer = client.post(f"{BASE}/hash", content=pieces).json()
    assert answer["sha256"] == EXPECTED, f"up: {answer}"
    came = hashlib.sha256()
    with client.stream("GET", f"{BASE}/pattern", params={"bytes": LENGTH}) as response:
        for piece in response.iter_raw():
            came.update(piece)
    assert came.hexdigest() == EXPECTED, "down: another body"
    seen = 0
    with client.stream("GET", f"{BASE}/events", params={"count": 1_000_000, "ms": 5}) as response:
        for line in response.iter_lines():
            seen += line.startswith("data:")
            if seen == 10:
                break
print("up, down, leaves an endless one")
