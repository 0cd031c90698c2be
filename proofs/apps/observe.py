"""What the scripts share: an address to ask, and lines of what was seen."""

import sys

BASE = sys.argv[1].rstrip("/")
WS = BASE.replace("http://", "ws://")


def saw(what, value):
    """Prints one observation; what differs at each run has no place in it."""
    print(f"{what}: {value!r}".replace(BASE, "BASE").replace(BASE.removeprefix("http://"), "HOST"))
