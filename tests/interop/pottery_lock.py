"""A lock of pottery's Redlock, driven by lines on standard input.

pottery_lock.py KEY PORT ..: one word a line (acquire, release, locked), one word an answer.
"""

import sys

from pottery import Redlock, ReleaseUnlockedLock
from redis import Redis


def main() -> None:
    key, *ports = sys.argv[1:]
    masters = {Redis(host="127.0.0.1", port=int(port), socket_timeout=60) for port in ports}
    # Long: what ends it here is its release.
    lock = Redlock(key=key, masters=masters, auto_release_time=600)

    def release() -> str:
        try:
            lock.release()
            return "released"
        except ReleaseUnlockedLock:
            return "not_held"

    commands = {
        "acquire": lambda: "granted" if lock.acquire(blocking=False) else "contended",
        "release": release,
        "locked": lambda: "held" if lock.locked() > 0 else "free",
    }
    for line in sys.stdin:
        print(commands[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
