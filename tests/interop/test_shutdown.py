"""SIGTERM: what is in flight finishes, streams are told, what was acknowledged is there afterwards."""

import threading

import grpc
from conftest import TIMEOUT, details, read_all, records, values
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ringlog.v1 import log_pb2, log_pb2_grpc


def test_calls_in_flight_finish(own_node):
    with own_node.channel() as channel:
        log = log_pb2_grpc.LogStub(channel)
        requests = [log_pb2.ProduceRequest(topic="t", shard=0, records=records(b"%d" % i)) for i in range(2_000)]
        log.Produce(requests[0], timeout=TIMEOUT)
        calls = [log.Produce.future(request, timeout=TIMEOUT) for request in requests[1:]]
        calls[100].result()
        own_node.terminate()
        acked = {0: b"0"}
        for i, call in enumerate(calls, start=1):
            error = call.exception()
            if error is None:
                acked[call.result().base_offset] = b"%d" % i
            else:
                # A call that came too late was never begun.
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
    assert own_node.wait() == 0, own_node.log.read_text()[-4000:]

    own_node.start()
    with own_node.channel() as channel:
        found = dict(enumerate(values(read_all(log_pb2_grpc.LogStub(channel), "t"))))
    assert len(acked) > 100
    assert {offset: found.get(offset) for offset in acked} == acked
    own_node.terminate()
    assert own_node.wait() == 0


def test_streams_are_told(own_node):
    with own_node.channel() as channel:
        log = log_pb2_grpc.LogStub(channel)
        log.Produce(log_pb2.ProduceRequest(topic="t", shard=0, records=records(b"x")), timeout=TIMEOUT)
        following = log.ConsumeStream(log_pb2.ConsumeStreamRequest(topic="t"), timeout=TIMEOUT)
        assert values(next(following).records) == [b"x"]
        waiting = log.Consume.future(log_pb2.ConsumeRequest(topic="t", offset=1, wait_ms=50_000), timeout=TIMEOUT)
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        open_end = threading.Event()

        def requests():
            yield log_pb2.ProduceStreamRequest(topic="t", shard=0, records=records(b"y"))
            open_end.wait(TIMEOUT)

        producing = log.ProduceStream(requests(), timeout=TIMEOUT)
        assert next(producing).base_offset == 1
        # What the produce made visible is delivered before the goodbye.
        assert values(next(following).records) == [b"y"]
        assert values(waiting.result().records) == [b"y"]

        waiting = log.Consume.future(log_pb2.ConsumeRequest(topic="t", offset=2, wait_ms=50_000), timeout=TIMEOUT)
        own_node.terminate()
        try:
            for stream in (following, producing, watching):
                error = None
                try:
                    for answer in stream:
                        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
                except grpc.RpcError as caught:
                    error = caught
                assert error is not None and error.code() == grpc.StatusCode.UNAVAILABLE, error
                assert details(error)["ErrorInfo"].reason == "SHUTTING_DOWN"
            # Either it arrived and was told, or it came after the goodbye and was never begun.
            assert waiting.exception() is None or waiting.exception().code() == grpc.StatusCode.UNAVAILABLE
        finally:
            open_end.set()
    assert own_node.wait() == 0, own_node.log.read_text()[-4000:]


def test_idle_connections_do_not_hold_it_up(own_node):
    channels = [own_node.channel() for _ in range(20)]
    try:
        for channel in channels:
            grpc.channel_ready_future(channel).result(TIMEOUT)
        own_node.terminate()
        assert own_node.wait() == 0
    finally:
        for channel in channels:
            channel.close()
