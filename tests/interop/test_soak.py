"""Stock clients that are merely fast: eight ProduceStreams of tiny messages on one connection, whose acks are read at once or
slowly. Every message is acknowledged, in order, and stored once. The clients are below soak/: grpc-go and gRPC C++ as Debian
has them, Node's own HTTP/2, and Python's grpcio.

RINGLOG_SOAK_MESSAGES   messages of each stream (default 50,000; Python's client, which takes long for
                        each, sends as many only where it reads slowly, else a tenth)
"""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import pytest
from conftest import ROOT, log_pb2, log_pb2_grpc

HERE = pathlib.Path(__file__).resolve().parent / "soak"
STREAMS = 8
MESSAGES = int(os.environ.get("RINGLOG_SOAK_MESSAGES", "50000"))
# Only a hang reaches it.
TIMEOUT = 900
# The pauses of a slow reader: before its first ack, and after each so many.
PAUSE_FIRST, PAUSE_EVERY, PAUSE = 1, 500, 0.025


def _need(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (.ci/run installs them)")


def _run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **options)
    assert done.returncode == 0, f"{command[0]} fails: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def _go(out):
    _need("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    # Debian's generator does not know `optional`, which means nothing on the wire, and wants the package's name.
    proto = (ROOT / "proto/ringlog/v1/log.proto").read_text()
    proto = re.sub(r"^( *)optional ", r"\1", proto, flags=re.M)
    proto = re.sub(r"^package .*$", r'\g<0>\noption go_package = "ringlog/v1;v1";', proto, flags=re.M)
    (out / "proto/ringlog/v1").mkdir(parents=True)
    (out / "proto/ringlog/v1/log.proto").write_text(proto)
    (out / "src").mkdir()
    _run("protoc", "-Iproto", "--go_out=src", "--go-grpc_out=src", "ringlog/v1/log.proto", cwd=out)
    go = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{out}:/usr/share/gocode", "GOCACHE": str(out / "cache")}
    _run("go", "build", "-o", str(out / "soak"), str(HERE / "soak.go"), env=go, cwd=out)
    return [str(out / "soak")]


def _cpp(out):
    _need("g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
    _run("protoc", f"-I{ROOT / 'proto'}", f"--cpp_out={out}", f"--grpc_out={out}", plugin, "ringlog/v1/log.proto")
    libraries = _run("pkg-config", "--cflags", "--libs", "grpc++", "protobuf").split()
    sources = [str(HERE / "soak.cc"), *map(str, sorted((out / "ringlog/v1").glob("*.cc")))]
    _run("g++", "-std=c++17", "-O1", f"-I{out}", "-o", str(out / "soak"), *sources, *libraries)
    return [str(out / "soak")]


def _node(_):
    _need("node")
    return ["node", str(HERE / "soak.mjs")]


@pytest.fixture(scope="module", params=[_go, _cpp, _node], ids=["go", "cpp", "node"])
def client(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("soak"))


def _stored(node, topic):
    """Records of the topic's only shard."""
    with node.channel() as channel:
        request = log_pb2.ConsumeRequest(topic=topic, shard=0, max_records=1)
        return log_pb2_grpc.LogStub(channel).Consume(request).high_watermark


@pytest.mark.parametrize("pace", ["eager", "slow"])
def test_tiny_messages(node, topic, client, pace):
    acked = _run(*client, node.address, topic, str(STREAMS), str(MESSAGES), pace)
    assert int(acked) == STREAMS * MESSAGES
    assert _stored(node, topic) == STREAMS * MESSAGES


@pytest.mark.parametrize("pace", ["eager", "slow"])
def test_tiny_messages_of_grpcio(node, topic, pace):
    messages = MESSAGES if pace == "slow" else max(1, MESSAGES // 10)
    failures = []

    def produce(log, stream):
        values = (bytes([stream]) * (1 + n % 60) for n in range(messages))
        requests = (log_pb2.ProduceStreamRequest(topic=topic, records=[log_pb2.Record(value=v)]) for v in values)
        acks = log.ProduceStream(requests)
        if pace == "slow":
            time.sleep(PAUSE_FIRST)
        acked, end = 0, 0
        try:
            for ack in acks:
                if ack.base_offset < end or ack.count != 1:
                    raise AssertionError(f"offset {ack.base_offset} is acknowledged behind {end}")
                acked, end = acked + 1, ack.base_offset + 1
                if pace == "slow" and acked % PAUSE_EVERY == 0:
                    time.sleep(PAUSE)
            assert acked == messages
        except Exception as failure:  # noqa: BLE001: whatever it is, it fails the test
            failures.append(f"stream {stream}, after {acked} acks: {failure}")

    with node.channel() as channel:
        log = log_pb2_grpc.LogStub(channel)
        threads = [threading.Thread(target=produce, args=(log, stream)) for stream in range(STREAMS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a stream hangs"
    assert not failures
    assert _stored(node, topic) == STREAMS * messages
