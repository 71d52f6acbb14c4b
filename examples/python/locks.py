"""Locks from Python: a call of its own, and a session that renews.

    pip install grpcio grpcio-tools
    python examples/python/locks.py localhost:50051

The stubs are made from the proto file of this repository when the program starts; `python -m grpc_tools.protoc` makes files of them.
"""

import pathlib
import queue
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
pb2, pb2_grpc = grpc.protos_and_services("redlock/v1/lock.proto")


def seconds(duration) -> float:
    return duration.seconds + duration.nanos / 1e9


class Session:
    """Holds leases on one stream. The proxy renews them; a thread sends the keep-alives, and another reads what is told.

    A lease ends at the instant that `end` says, on `time.monotonic()`. Stop the protected work before it.
    """

    def __init__(self, stub, ttl: float):
        self.ttl = ttl
        self._seq = 0
        self._sent = {}  # When each message was sent: an answer may count from there.
        self._unanswered = set()
        self._ends = {}
        self._answers = {}
        self._lock = threading.Condition()
        self._requests = queue.SimpleQueue()
        self._responses = stub.Session(iter(self._requests.get, None))
        self._closed = threading.Event()
        for work in (self._read, self._keep_alive):
            threading.Thread(target=work, daemon=True).start()

    def acquire(self, name: str, wait: float = 0):
        """The lease as SessionGranted tells it, or None if somebody else has the lock when the wait is over."""
        request = pb2.AcquireRequest(name=name)
        request.ttl.FromMilliseconds(int(self.ttl * 1000))
        request.wait.FromMilliseconds(int(wait * 1000))
        answer = self._ask(acquire=pb2.SessionAcquire(request=request))
        return answer.granted if answer.WhichOneof("message") == "granted" else None

    def release(self, granted) -> bool:
        """Whether it was still held."""
        self._ask(answered_as=granted.lease, release=pb2.SessionRelease(lease=granted.lease))
        released = self._answers.pop(granted.lease).released
        return released.outcome == pb2.RELEASE_OUTCOME_RELEASED

    def end(self, granted) -> float:
        """When the lease ends, on `time.monotonic()`; it moves on with each renewal. 0 if it is lost."""
        with self._lock:
            return self._ends.get(granted.lease, 0)

    def close(self) -> None:
        """Releases everything."""
        self._send(close=pb2.SessionClose())
        self._closed.wait(10)

    def _send(self, **message) -> int:
        with self._lock:
            self._seq += 1
            # Before it is sent: all time on the network is charged to the lease.
            self._sent[self._seq] = time.monotonic()
            # Nothing counts from what is older than two TTLs, but the answer to a message that was sent then.
            old = self._sent[self._seq] - 2 * self.ttl
            for seq in [seq for seq, sent in self._sent.items() if sent < old and seq not in self._unanswered]:
                del self._sent[seq]
            self._unanswered |= {self._seq} if "acquire" in message else set()
            self._requests.put(pb2.SessionRequest(seq=self._seq, **message))
            return self._seq

    def _ask(self, answered_as=None, **message):
        seq = self._send(**message)
        number = answered_as or seq
        with self._lock:
            self._lock.wait_for(lambda: number in self._answers or seq in self._answers or self._closed.is_set())
            for candidate in (seq, number):
                answer = self._answers.get(candidate)
                if answer is not None and answer.WhichOneof("message") == "failed":
                    raise RuntimeError(answer.failed.message)
            if number not in self._answers:
                raise RuntimeError("the session has ended")
            return self._answers[number] if answered_as else self._answers.pop(number)

    def _read(self) -> None:
        try:
            for response in self._responses:
                self._hear(response)
        except grpc.RpcError as error:
            print(f"the session has ended: {error.details()}", file=sys.stderr)
        with self._lock:
            self._closed.set()
            self._requests.put(None)
            self._lock.notify_all()

    def _hear(self, response) -> None:
        kind = response.WhichOneof("message")
        told = getattr(response, kind)
        with self._lock:
            if kind in ("granted", "renewed"):
                sent = self._sent[response.acked_seq]
                self._ends[told.lease] = sent + seconds(response.since_ack) + seconds(told.validity)
            elif kind in ("lost", "released"):
                self._ends.pop(told.lease, None)
            number = {"granted": "lease", "contended": "acquire", "released": "lease", "lost": "lease", "failed": "request"}.get(kind)
            if number:
                self._unanswered.discard(getattr(told, number))
                self._answers[getattr(told, number)] = response
                self._lock.notify_all()

    def _keep_alive(self) -> None:
        while not self._closed.wait(self.ttl / 7):
            self._send(keep_alive=pb2.SessionKeepAlive())


def main() -> None:
    # A proxy of the environment is not for loopback.
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
    stub = pb2_grpc.LockServiceStub(channel)

    # A call of its own. The lease lasts for its TTL (10 s by default) unless it is renewed.
    before = time.monotonic()
    granted = stub.Acquire(pb2.AcquireRequest(name="python/call", owner="example"), timeout=30).granted
    ends = before + seconds(granted.served_for) + seconds(granted.validity)
    print(f"call: token {granted.fencing_token}, {'valid' if time.monotonic() < ends else 'over'}", flush=True)
    outcome = stub.Release(pb2.ReleaseRequest(lock_id=granted.lock_id), timeout=30).outcome
    print(f"call: {pb2.ReleaseOutcome.Name(outcome)}", flush=True)

    # A session: held for twice its TTL, and nothing had to be done for it.
    session = Session(stub, ttl=2)
    lease = session.acquire("python/session", wait=5)
    print(f"session: token {lease.fencing_token}", flush=True)
    began = time.monotonic()
    while time.monotonic() < began + 4:
        if session.end(lease) <= time.monotonic():
            sys.exit("session: the lease is lost")
        time.sleep(0.05)
    other = stub.Acquire(pb2.AcquireRequest(name="python/session"), timeout=30)
    print(f"session: others find it {other.WhichOneof('outcome')}", flush=True)
    print(f"session: released {session.release(lease)}", flush=True)
    session.close()


if __name__ == "__main__":
    main()
