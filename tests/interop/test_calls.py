"""What holds for every call: deadlines, cancellation, errors and their details, hostile bytes."""

import socket
import threading
import time

import grpc
import pytest
from conftest import TIMEOUT, details, fails, read_all, records, values
from ringlog.v1 import admin_pb2, log_pb2


def test_a_deadline_is_honoured(log, topic):
    start = time.monotonic()
    request = log_pb2.ConsumeRequest(topic=topic, wait_ms=55_000)
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: log.Consume(request, timeout=0.5))
    assert time.monotonic() - start < 30
    stream = log.ConsumeStream(log_pb2.ConsumeStreamRequest(topic=topic), timeout=0.5)
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(stream))


def test_the_server_keeps_the_deadline_itself(channel, topic):
    """The client's own timer is off: grpc-timeout is sent as plain metadata."""
    consume = channel.unary_unary(
        "/ringlog.v1.Log/Consume",
        request_serializer=log_pb2.ConsumeRequest.SerializeToString,
        response_deserializer=log_pb2.ConsumeResponse.FromString,
    )
    request = log_pb2.ConsumeRequest(topic=topic, wait_ms=55_000)
    metadata = [("grpc-timeout", "200m")]
    error = fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: consume(request, metadata=metadata, timeout=None))
    assert details(error)["ErrorInfo"].metadata["definite"] == "true"


def test_deadlines_that_are_hard_to_meet(log, topic):
    """What was acknowledged is there; what was definitely refused is not."""
    requests = [log_pb2.ProduceRequest(topic=topic, records=records(b"%d" % i)) for i in range(1_000)]
    calls = [log.Produce.future(request, timeout=0.001 * (1 + i % 20)) for i, request in enumerate(requests)]
    acked, refused = set(), set()
    for i, call in enumerate(calls):
        error = call.exception()
        if error is None:
            acked.add(b"%d" % i)
            continue
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        # Without details it is grpcio's own timer that ended the call: then nothing is known.
        if "grpc-status-details-bin" in dict(error.trailing_metadata() or ()):
            if details(error)["ErrorInfo"].metadata["definite"] == "true":
                refused.add(b"%d" % i)
    # A last one, behind all that may still be on its way.
    log.Produce(log_pb2.ProduceRequest(topic=topic, records=records(b"last")), timeout=TIMEOUT)
    found = set(values(read_all(log, topic)))
    assert acked <= found
    assert not refused & found


def test_a_cancelled_call_ends(log, topic):
    stream = log.ConsumeStream(log_pb2.ConsumeStreamRequest(topic=topic), timeout=TIMEOUT)
    stream.initial_metadata()
    stream.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: next(stream))
    waiting = log.Consume.future(log_pb2.ConsumeRequest(topic=topic, wait_ms=55_000), timeout=TIMEOUT)
    time.sleep(0.1)
    waiting.cancel()
    assert waiting.cancelled()
    # The connection lives on.
    request = log_pb2.ProduceRequest(topic=topic, records=records(b"x"))
    assert log.Produce(request, timeout=TIMEOUT).base_offset == 0


def test_cancelling_many_calls_at_once(log, topic):
    """More than h2 would tolerate by default in one connection."""
    for _ in range(3):
        request = log_pb2.ConsumeRequest(topic=topic, wait_ms=55_000)
        calls = [log.Consume.future(request, timeout=TIMEOUT) for _ in range(300)]
        for call in calls:
            call.cancel()
    request = log_pb2.ProduceRequest(topic=topic, records=records(b"x"))
    assert log.Produce(request, timeout=TIMEOUT).base_offset == 0


def test_unknown_methods(channel):
    for path in ("/ringlog.v1.Log/Explode", "/nobody.Service/Method", "/ringlog.v1.Log/"):
        error = fails(grpc.StatusCode.UNIMPLEMENTED, lambda: channel.unary_unary(path)(b"", timeout=TIMEOUT))
        assert path in error.details()
        assert details(error)["ErrorInfo"].reason == "UNKNOWN_METHOD"


def test_a_message_that_is_none(channel):
    for path in ("/ringlog.v1.Log/Produce", "/ringlog.v1.Log/Consume", "/ringlog.v1.Admin/CreateTopic"):
        call = channel.unary_unary(path)
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: call(b"\x0a\xff", timeout=TIMEOUT))
        assert details(error)["ErrorInfo"].reason == "MALFORMED_REQUEST"


def test_unary_takes_one_message(channel):
    call = channel.stream_unary("/ringlog.v1.Admin/ListTopics")
    for messages in ([], [b"", b""]):
        fails(grpc.StatusCode.UNIMPLEMENTED, lambda: call(iter(messages), timeout=TIMEOUT))
    call(iter([b""]), timeout=TIMEOUT)


def test_what_is_not_there(log, admin):
    error = fails(
        grpc.StatusCode.NOT_FOUND, lambda: log.Consume(log_pb2.ConsumeRequest(topic="nobody"), timeout=TIMEOUT)
    )
    assert details(error)["ErrorInfo"].reason == "TOPIC_NOT_FOUND"
    stream = log.ConsumeStream(log_pb2.ConsumeStreamRequest(topic="nobody"), timeout=TIMEOUT)
    fails(grpc.StatusCode.NOT_FOUND, lambda: next(stream))
    for call in (
        lambda: admin.DescribeTopic(admin_pb2.DescribeTopicRequest(name="nobody"), timeout=TIMEOUT),
        lambda: admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="nobody"), timeout=TIMEOUT),
        lambda: admin.TrimTopic(admin_pb2.TrimTopicRequest(name="nobody"), timeout=TIMEOUT),
    ):
        fails(grpc.StatusCode.NOT_FOUND, call)


def test_a_shard_that_is_not_there(log, topic):
    request = log_pb2.ProduceRequest(topic=topic, shard=7, records=records(b"x"))
    assert details(fails_any(lambda: log.Produce(request, timeout=TIMEOUT)))["ErrorInfo"].metadata["definite"] == "true"
    fails_any(lambda: log.Consume(log_pb2.ConsumeRequest(topic=topic, shard=7), timeout=TIMEOUT))


def fails_any(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), caught.value
    return caught.value


def test_offsets_out_of_range(log, topic):
    for offset in (1, 1 << 63, (1 << 64) - 1):
        request = log_pb2.ConsumeRequest(topic=topic, offset=offset)
        error = fails(grpc.StatusCode.OUT_OF_RANGE, lambda: log.Consume(request, timeout=TIMEOUT))
        assert details(error)["ErrorInfo"].reason == "OFFSET_OUT_OF_RANGE"


def test_bad_topic_names(log, admin):
    for name in ("a/b", "..", ".", "a\0b", "x" * 1024, "ü", "a b"):
        request = log_pb2.ProduceRequest(topic=name, records=records(b"x"))
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: log.Produce(request, timeout=TIMEOUT))
        assert details(error)["ErrorInfo"].metadata["definite"] == "true"
        create = admin_pb2.CreateTopicRequest(name=name)
        fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: admin.CreateTopic(create, timeout=TIMEOUT))


def test_numbers_that_mean_nothing(log, topic):
    produce = log_pb2.ProduceRequest(topic=topic, records=records(b"x"), durability=99)
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: log.Produce(produce, timeout=TIMEOUT))
    consume = log_pb2.ConsumeRequest(topic=topic, position=99)
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: log.Consume(consume, timeout=TIMEOUT))
    wait = log_pb2.ConsumeRequest(topic=topic, wait_ms=60_001)
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: log.Consume(wait, timeout=TIMEOUT))


def test_topics_are_administered(admin):
    name = f"admin-{time.time_ns()}"
    create = admin_pb2.CreateTopicRequest(name=name, shards=3)
    assert admin.CreateTopic(create, timeout=TIMEOUT).topic.shards == 3
    fails(grpc.StatusCode.ALREADY_EXISTS, lambda: admin.CreateTopic(create, timeout=TIMEOUT))
    topics = admin.ListTopics(admin_pb2.ListTopicsRequest(), timeout=TIMEOUT).topics
    assert name in [topic.name for topic in topics]
    described = admin.DescribeTopic(admin_pb2.DescribeTopicRequest(name=name), timeout=TIMEOUT)
    assert [shard.shard for shard in described.shards] == [0, 1, 2]
    admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name=name), timeout=TIMEOUT)
    fails(
        grpc.StatusCode.NOT_FOUND,
        lambda: admin.DescribeTopic(admin_pb2.DescribeTopicRequest(name=name), timeout=TIMEOUT),
    )


def test_a_trim_moves_the_log_start(log, admin, topic):
    log.Produce(log_pb2.ProduceRequest(topic=topic, records=records(b"0", b"1", b"2")), timeout=TIMEOUT)
    trim = admin_pb2.TrimTopicRequest(name=topic, before_offset=2)
    assert admin.TrimTopic(trim, timeout=TIMEOUT).log_start == 2
    fails(
        grpc.StatusCode.OUT_OF_RANGE,
        lambda: log.Consume(log_pb2.ConsumeRequest(topic=topic, offset=1), timeout=TIMEOUT),
    )
    answer = log.Consume(log_pb2.ConsumeRequest(topic=topic), timeout=TIMEOUT)
    assert [record.offset for record in answer.records] == [2]
    assert answer.log_start == 2


def test_the_topology(node, log, topic):
    answer = log.GetServers(log_pb2.GetServersRequest(topics=[topic]), timeout=TIMEOUT)
    assert [server.grpc_address for server in answer.servers] == [node.address]
    assert [(shards.topic, len(shards.shards)) for shards in answer.topics] == [(topic, 1)]
    assert answer.cluster_id


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xab" * 500,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 1000,
        PREFACE[:10],
        PREFACE + b"\0\0\4",
        PREFACE + EMPTY_SETTINGS + b"\0\x40\0\0\0\0\0\0\1half a frame",
        PREFACE + EMPTY_SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
        PREFACE + EMPTY_SETTINGS + b"\0\0\5\1\4\0\0\0\1" + b"\xff" * 5,
        PREFACE + EMPTY_SETTINGS * 1000,
    ],
    ids=["tls", "http1", "zeros", "half-preface", "half-head", "half-frame", "huge-frame", "bad-hpack", "settings"],
)
def test_hostile_bytes_harm_nobody_else(node, log, topic, sent):
    host, port = node.address.split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
    request = log_pb2.ProduceRequest(topic=topic, records=records(b"x"))
    assert log.Produce(request, timeout=TIMEOUT).base_offset == 0


def test_connections_that_say_nothing_block_nobody(node, log, topic):
    host, port = node.address.split(":")
    silent = [socket.create_connection((host, int(port)), timeout=TIMEOUT) for _ in range(100)]
    try:
        request = log_pb2.ProduceRequest(topic=topic, records=records(b"x"))
        assert log.Produce(request, timeout=TIMEOUT).base_offset == 0
    finally:
        for connection in silent:
            connection.close()


def test_calls_from_many_threads(log, topic):
    offsets, lock = [], threading.Lock()

    def work():
        for _ in range(50):
            ack = log.Produce(log_pb2.ProduceRequest(topic=topic, records=records(b"x")), timeout=TIMEOUT)
            with lock:
                offsets.append(ack.base_offset)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(offsets) == list(range(400))
