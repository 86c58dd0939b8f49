"""A real node and a real grpcio client. The stubs are made from proto/ each time, so that they cannot age."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import grpc
import pytest
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
# For everything that is not about time: long enough for a busy machine.
TIMEOUT = 60


def _generate():
    out = tempfile.mkdtemp(prefix="ringlog-stubs-")
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    protos = ["ringlog/v1/log.proto", "ringlog/v1/admin.proto", "google/rpc/status.proto"]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + protos) != 0:
        raise RuntimeError("protoc refused our protos")
    sys.path.insert(0, out)
    # "google" is a package of several directories; this one is new.
    import google

    google.__path__.append(os.path.join(out, "google"))


_generate()

from google.rpc import status_pb2  # noqa: E402
from ringlog.v1 import admin_pb2, admin_pb2_grpc, log_pb2, log_pb2_grpc  # noqa: E402


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Node:
    """A `ringlog serve` process, of two reactors that run anywhere, or of one on a core of its own."""

    def __init__(self, directory, core=None):
        self.directory = pathlib.Path(directory)
        self.core = core
        self.log = self.directory / "log.txt"
        self.process = None
        self.address = self.http = None

    def start(self):
        # A free port may be taken by somebody else before the node binds it.
        for _ in range(5):
            self.address = f"127.0.0.1:{free_port()}"
            self.http = f"127.0.0.1:{free_port()}"
            command = [os.environ["INTEROP_BIN"], "serve", "--data", str(self.directory / "data")]
            command += ["--grpc", self.address, "--http", self.http, "--peer", "127.0.0.1:0"]
            command += ["--reactors", "2" if self.core is None else "1", "--no-pin"]
            if self.core is not None:
                command = ["taskset", "--cpu-list", str(self.core), *command]
            # Settings of whoever runs the tests are not ours.
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RINGLOG_")}
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            if self._is_ready():
                return self
        raise RuntimeError(f"the node did not start:\n{self.log.read_text()}")

    def _is_ready(self):
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None and time.monotonic() < deadline:
            with self.channel() as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return True
                except grpc.RpcError:
                    pass
            time.sleep(0.05)
        return False

    def channel(self, **options):
        """A connection of its own: grpcio shares them between channels unless told otherwise."""
        options = {"use_local_subchannel_pool": 1, "max_receive_message_length": -1, **options}
        return grpc.insecure_channel(self.address, [(f"grpc.{name}", value) for name, value in options.items()])

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        return self.process.wait(TIMEOUT)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """One node for all tests that leave it running."""
    node = Node(tmp_path_factory.mktemp("node")).start()
    yield node
    alive = node.process.poll() is None
    node.terminate()
    try:
        code = node.wait()
    finally:
        node.kill()
    assert alive, f"the node died during the tests:\n{node.log.read_text()[-4000:]}"
    assert code == 0, f"the node ended with {code}:\n{node.log.read_text()[-4000:]}"


@pytest.fixture
def own_node(tmp_path):
    """A node that the test may stop."""
    node = Node(tmp_path).start()
    yield node
    node.kill()


@pytest.fixture
def channel(node):
    with node.channel() as channel:
        yield channel


@pytest.fixture
def log(channel):
    return log_pb2_grpc.LogStub(channel)


@pytest.fixture
def admin(channel):
    return admin_pb2_grpc.AdminStub(channel)


@pytest.fixture
def topic(admin):
    """A new topic with one shard."""
    return make_topic(admin)


def make_topic(admin, shards=1):
    name = f"t-{uuid.uuid4().hex}"
    admin.CreateTopic(admin_pb2.CreateTopicRequest(name=name, shards=shards), timeout=TIMEOUT)
    return name


def values(records):
    return [record.value for record in records]


def records(*values):
    return [log_pb2.Record(value=value) for value in values]


def read_all(log, topic, shard=0):
    """Every committed record of a shard, by unary calls."""
    found, offset = [], 0
    while True:
        request = log_pb2.ConsumeRequest(topic=topic, shard=shard, offset=offset)
        answer = log.Consume(request, timeout=TIMEOUT)
        found += answer.records
        if not answer.records:
            assert offset == answer.high_watermark
            return found
        offset = answer.next_offset


def details(error):
    """The google.rpc details of an error, by the name of their type."""
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found = {}
    for detail in status.details:
        for message in (status_pb2.ErrorInfo(), status_pb2.RetryInfo()):
            if detail.Unpack(message):
                found[type(message).__name__] = message
    assert found["ErrorInfo"].domain == "ringlog"
    return found


def fails(code, call):
    """Runs `call`, which must fail with `code`; the error."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code, caught.value
    return caught.value
