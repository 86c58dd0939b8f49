"""Produce and consume, unary and streaming."""

import itertools
import threading
import time

import grpc
import pytest
from conftest import TIMEOUT, details, fails, make_topic, read_all, records, values
from ringlog.v1 import log_pb2

MIB = 1 << 20


def produce(log, topic, *what, **more):
    return log.Produce(log_pb2.ProduceRequest(topic=topic, records=records(*what), **more), timeout=TIMEOUT)


def test_a_record_comes_back_whole(log, topic):
    record = log_pb2.Record(key=b"k\0", value=b"v" * 1000, timestamp_us=1_700_000_000_000_000)
    record.headers.add(name="trace", value=b"\xff")
    ack = log.Produce(log_pb2.ProduceRequest(topic=topic, records=[record, log_pb2.Record()]), timeout=TIMEOUT)
    assert (ack.topic, ack.shard, ack.base_offset, ack.count) == (topic, 0, 0, 2)
    assert ack.durability == log_pb2.DURABILITY_QUORUM_FLUSHED
    assert abs(ack.timestamp_us / 1e6 - time.time()) < 3600

    answer = log.Consume(log_pb2.ConsumeRequest(topic=topic), timeout=TIMEOUT)
    first, second = answer.records
    record.offset = 0
    assert first == record
    assert (second.offset, second.value, second.timestamp_us) == (1, b"", ack.timestamp_us)
    assert (answer.next_offset, answer.log_start, answer.high_watermark) == (2, 0, 2)


def test_the_empty_topic_is_the_default_one(log):
    ack = produce(log, "", b"x")
    assert ack.topic == "default"
    request = log_pb2.ConsumeRequest(shard=ack.shard, offset=ack.base_offset, max_records=1)
    assert values(log.Consume(request, timeout=TIMEOUT).records) == [b"x"]


def test_a_topic_is_made_by_its_first_record(log):
    topic = f"auto-{time.time_ns()}"
    ack = produce(log, topic, b"x")
    request = log_pb2.ConsumeRequest(topic=topic, shard=ack.shard)
    assert values(log.Consume(request, timeout=TIMEOUT).records) == [b"x"]


def test_a_weaker_durability_is_echoed(log, topic):
    ack = produce(log, topic, b"x", durability=log_pb2.DURABILITY_LEADER_MEMORY)
    assert ack.durability == log_pb2.DURABILITY_LEADER_MEMORY
    assert produce(log, topic, b"y").base_offset == 1


def test_a_key_always_goes_to_the_same_shard(log, admin):
    topic = make_topic(admin, shards=4)
    shards = {}
    for _, key in itertools.product(range(3), [b"a", b"b", b"c", b"d", b"e"]):
        request = log_pb2.ProduceRequest(topic=topic, records=[log_pb2.Record(key=key)])
        shards.setdefault(key, set()).add(log.Produce(request, timeout=TIMEOUT).shard)
    assert all(len(found) == 1 for found in shards.values())


def test_an_explicit_shard_is_obeyed(log, admin):
    topic = make_topic(admin, shards=4)
    for shard in range(4):
        assert produce(log, topic, b"%d" % shard, shard=shard).shard == shard
        assert values(read_all(log, topic, shard)) == [b"%d" % shard]


def test_a_conditional_append(log, topic):
    produce(log, topic, b"0", expected_offset=0)
    error = fails(grpc.StatusCode.FAILED_PRECONDITION, lambda: produce(log, topic, b"1", expected_offset=0))
    assert details(error)["ErrorInfo"].metadata["definite"] == "true"
    produce(log, topic, b"1", expected_offset=1)
    assert values(read_all(log, topic)) == [b"0", b"1"]


def test_ten_thousand_requests_on_one_stream(log, topic):
    requests = (log_pb2.ProduceStreamRequest(topic=topic, records=records(b"%d" % i)) for i in range(10_000))
    offsets = [ack.base_offset for ack in log.ProduceStream(requests, timeout=TIMEOUT)]
    assert offsets == list(range(10_000))
    assert values(read_all(log, topic)) == [b"%d" % i for i in range(10_000)]


def test_a_stream_acknowledges_without_being_closed(log, topic):
    """One request at a time: each ack comes while the stream is open."""
    acked = threading.Semaphore(1)

    def requests():
        for i in range(100):
            assert acked.acquire(timeout=TIMEOUT)
            yield log_pb2.ProduceStreamRequest(topic=topic, records=records(b"%d" % i))

    for i, ack in enumerate(log.ProduceStream(requests(), timeout=TIMEOUT)):
        assert ack.base_offset == i
        acked.release()


def test_the_first_failure_ends_a_stream_after_the_acks_before_it(log, topic):
    def requests():
        for i in range(5):
            yield log_pb2.ProduceStreamRequest(topic=topic, records=records(b"%d" % i))
        yield log_pb2.ProduceStreamRequest(topic=topic)

    acks = []
    error = fails(
        grpc.StatusCode.INVALID_ARGUMENT,
        lambda: acks.extend(log.ProduceStream(requests(), timeout=TIMEOUT)),
    )
    # grpcio hands out what came before the error only one by one.
    if len(acks) < 5:
        acks = []
        with pytest.raises(grpc.RpcError):
            for ack in log.ProduceStream(requests(), timeout=TIMEOUT):
                acks.append(ack.base_offset)
    assert len(acks) == 5
    assert details(error)["ErrorInfo"].reason == "NO_RECORDS"


def test_an_empty_stream(log):
    assert list(log.ProduceStream(iter(()), timeout=TIMEOUT)) == []


def test_limits_of_a_consume(log, topic):
    produce(log, topic, *[b"%d" % i * 1000 for i in range(10)])
    offset, found = 0, []
    while offset < 10:
        request = log_pb2.ConsumeRequest(topic=topic, offset=offset, max_records=3)
        answer = log.Consume(request, timeout=TIMEOUT)
        assert 1 <= len(answer.records) <= 3
        assert answer.next_offset == offset + len(answer.records)
        found += answer.records
        offset = answer.next_offset
    assert values(found) == [b"%d" % i * 1000 for i in range(10)]
    request = log_pb2.ConsumeRequest(topic=topic, offset=4, max_bytes=1)
    assert [record.offset for record in log.Consume(request, timeout=TIMEOUT).records] == [4]


def test_where_a_consume_starts(log, topic):
    for i in range(5):
        record = log_pb2.Record(value=b"%d" % i, timestamp_us=1_000 * (i + 1))
        log.Produce(log_pb2.ProduceRequest(topic=topic, records=[record]), timeout=TIMEOUT)

    def consume(**start):
        return values(log.Consume(log_pb2.ConsumeRequest(topic=topic, **start), timeout=TIMEOUT).records)

    everything = [b"0", b"1", b"2", b"3", b"4"]
    assert consume() == everything
    assert consume(position=log_pb2.POSITION_EARLIEST) == everything
    assert consume(position=log_pb2.POSITION_LATEST) == []
    assert consume(offset=3) == [b"3", b"4"]
    assert consume(offset=5) == []
    assert consume(timestamp_us=2_500) == [b"2", b"3", b"4"]
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: consume(timestamp_us=-1))


def test_a_consume_waits_for_a_record(log, topic):
    request = log_pb2.ConsumeRequest(topic=topic, wait_ms=50_000)
    waiting = log.Consume.future(request, timeout=TIMEOUT)
    time.sleep(0.2)
    assert not waiting.done()
    produce(log, topic, b"x")
    assert values(waiting.result().records) == [b"x"]


def test_a_consume_waits_no_longer_than_asked(log, topic):
    start = time.monotonic()
    answer = log.Consume(log_pb2.ConsumeRequest(topic=topic, wait_ms=300), timeout=TIMEOUT)
    assert list(answer.records) == [] and answer.next_offset == 0
    assert time.monotonic() - start >= 0.3


def test_a_stream_catches_up_then_follows(log, topic):
    produce(log, topic, b"0", b"1", b"2")
    stream = log.ConsumeStream(log_pb2.ConsumeStreamRequest(topic=topic, max_records=6), timeout=TIMEOUT)
    found = []
    for answer in stream:
        assert answer.records
        found += values(answer.records)
        assert answer.next_offset == len(found)
        if len(found) == 3:
            produce(log, topic, b"3")
        elif len(found) == 4:
            # More than it wants: it ends by itself at 6.
            produce(log, topic, b"4", b"5", b"6")
    assert found == [b"%d" % i for i in range(6)]
    assert stream.code() == grpc.StatusCode.OK


def test_a_stream_from_latest_sees_only_what_follows(log, topic):
    produce(log, topic, b"old")
    request = log_pb2.ConsumeStreamRequest(topic=topic, position=log_pb2.POSITION_LATEST, max_records=1)
    stream = log.ConsumeStream(request, timeout=TIMEOUT)
    # The headers say that the call was accepted, not yet where it starts: records go on until one is seen.
    stream.initial_metadata()
    stop = threading.Event()

    def produce_until_seen():
        while not stop.wait(0.05):
            produce(log, topic, b"new")

    producer = threading.Thread(target=produce_until_seen)
    producer.start()
    try:
        found = [record for answer in stream for record in answer.records]
    finally:
        stop.set()
        producer.join()
    assert values(found) == [b"new"]


def test_a_long_log_streams_whole(log, topic):
    """40 MiB, more than all windows together."""
    block = bytes(range(256)) * 256
    requests = (log_pb2.ProduceStreamRequest(topic=topic, records=records(*[block] * 16)) for _ in range(40))
    assert len(list(log.ProduceStream(requests, timeout=TIMEOUT))) == 40
    request = log_pb2.ConsumeStreamRequest(topic=topic, max_records=640)
    found = [record for answer in log.ConsumeStream(request, timeout=TIMEOUT) for record in answer.records]
    assert [record.offset for record in found] == list(range(640))
    assert all(record.value == block for record in found)


def test_a_consumer_that_does_not_read_stops_nobody(node, log, topic):
    block = b"x" * (MIB - 100)
    for _ in range(24):
        produce(log, topic, block)
    with node.channel() as other:
        from ringlog.v1 import log_pb2_grpc

        stream = log_pb2_grpc.LogStub(other).ConsumeStream(log_pb2.ConsumeStreamRequest(topic=topic), timeout=TIMEOUT)
        next(stream)
        # The stream is full and nobody reads it.
        for _ in range(100):
            produce(log, topic, b"y")
        assert len(read_all(log, topic)) == 124
        stream.cancel()


def test_large_messages(log, topic):
    block = b"x" * (MIB - 1000)
    ack = produce(log, topic, block, block, block, b"y" * (900 * 1024))
    assert ack.count == 4
    assert [len(value) for value in values(read_all(log, topic))] == [MIB - 1000] * 3 + [900 * 1024]

    error = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: produce(log, topic, *[block] * 5))
    info = details(error)["ErrorInfo"]
    assert info.reason == "MESSAGE_TOO_LARGE" and info.metadata["definite"] == "true"
    error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: produce(log, topic, b"x" * (MIB + 1)))
    assert details(error)["ErrorInfo"].reason == "RECORD_TOO_LONG"
    # The connection lives on.
    assert produce(log, topic, b"z").base_offset == 4


def test_many_refused_uploads_leave_the_connection_alone(log, topic):
    for _ in range(50):
        fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: produce(log, topic, b"x" * (5 * MIB)))
    assert produce(log, topic, b"z").base_offset == 0


def test_gzip(log, topic):
    request = log_pb2.ProduceRequest(topic=topic, records=records(b"z" * 100_000))
    ack = log.Produce(request, timeout=TIMEOUT, compression=grpc.Compression.Gzip)
    assert ack.base_offset == 0
    requests = (log_pb2.ProduceStreamRequest(topic=topic, records=records(b"%d" % i * 50)) for i in range(100))
    acks = list(log.ProduceStream(requests, timeout=TIMEOUT, compression=grpc.Compression.Gzip))
    assert [ack.base_offset for ack in acks] == list(range(1, 101))
    assert values(read_all(log, topic)) == [b"z" * 100_000] + [b"%d" % i * 50 for i in range(100)]

    # 8 MiB of zeros are small on the wire.
    bomb = log_pb2.ProduceRequest(topic=topic, records=records(bytes(8 * MIB)))
    call = lambda: log.Produce(bomb, timeout=TIMEOUT, compression=grpc.Compression.Gzip)  # noqa: E731
    fails(grpc.StatusCode.RESOURCE_EXHAUSTED, call)


def test_deflate_is_refused_by_name(log, topic):
    request = log_pb2.ProduceRequest(topic=topic, records=records(b"z" * 100_000))
    call = lambda: log.Produce(request, timeout=TIMEOUT, compression=grpc.Compression.Deflate)  # noqa: E731
    error = fails(grpc.StatusCode.UNIMPLEMENTED, call)
    assert "deflate" in error.details()


def test_many_connections(node, admin):
    topic = make_topic(admin, shards=2)
    from ringlog.v1 import log_pb2_grpc

    channels = [node.channel() for _ in range(50)]
    try:
        calls = []
        for i, channel in enumerate(channels):
            log = log_pb2_grpc.LogStub(channel)
            for j in range(20):
                request = log_pb2.ProduceRequest(topic=topic, records=records(b"%d/%d" % (i, j)))
                calls.append(log.Produce.future(request, timeout=TIMEOUT))
        acks = {(ack.shard, ack.base_offset) for ack in (call.result() for call in calls)}
        assert len(acks) == 1000
        found = values(read_all(log, topic, 0)) + values(read_all(log, topic, 1))
        assert sorted(found) == sorted(b"%d/%d" % (i, j) for i in range(50) for j in range(20))
    finally:
        for channel in channels:
            channel.close()
