"""What hostile clients cost: a bounded amount of memory, and nobody else's calls. `hostile.py` has the attacks, and prints what they
cost in time, too.

RINGLOG_HOSTILE_CONNECTIONS   of each attack that takes many (default 1,000; the bar is for 4,096)
"""

import contextlib
import os
import threading
import time

import grpc
import hostile
import pytest
from conftest import log_pb2, log_pb2_grpc

CONNECTIONS = int(os.environ.get("RINGLOG_HOSTILE_CONNECTIONS", "1000"))
# Over what the node had before.
RSS_MORE_MAX_MIB = 512


@pytest.mark.parametrize("attack", hostile.ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(own_node, attack):
    connections = hostile.connections_possible(CONNECTIONS)
    with own_node.channel() as channel, own_node.channel() as other_channel:
        log = log_pb2_grpc.LogStub(channel)
        hostile.fill(log, log_pb2)
        stream = hostile.GoodStream(log_pb2_grpc.LogStub(other_channel), log_pb2)
        web = hostile.GoodHttp(own_node.http) if hostile.is_over_http(attack) else contextlib.nullcontext()
        with stream, web, hostile.Watch(own_node.process.pid) as watch:
            assert stream.goes_on(), stream.error
            held, done = [], threading.Event()

            def run():
                try:
                    held.extend(attack(hostile.address_for(attack, own_node), connections, "t"))
                finally:
                    done.set()

            thread = threading.Thread(target=run)
            before = stream.acknowledged
            thread.start()
            taken, refused = hostile.good_calls(log, log_pb2, until=done)
            goes_on_during = stream.acknowledged > before or stream.goes_on()
            thread.join()
            # While all of it is still held.
            after, refused_after = hostile.good_calls(log, log_pb2, seconds=0.5)
            goes_on_held = stream.goes_on()
            # Where the node has work to do for the attacker, others have their turn when they have it.
            is_web_served = attack not in hostile.HTTP_WAITS or web.goes_on()
            for connection in held:
                connection.close()
            goes_on_after = stream.goes_on()
    assert own_node.process.poll() is None, own_node.log.read_text()[-2000:]
    assert refused == refused_after == 0, "a good client's calls fail"
    assert taken and after
    assert (goes_on_during, goes_on_held, goes_on_after) == (True, True, True), f"a good client's stream: {stream.error}"
    assert stream.error is None
    assert stream.acknowledged == stream.sent, "each request has its acknowledgement"
    assert watch.more_mib <= RSS_MORE_MAX_MIB, f"{watch.more_mib:.0f} MiB more"
    if hostile.is_over_http(attack):
        p50, p99 = hostile.at(web.taken, 50), hostile.at(web.taken, 99)
        taken = f"{len(web.taken)} requests over HTTP, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        print(taken)
        assert web.failed == [], f"a good HTTP client's requests fail; beside them {taken}"
        assert is_web_served, taken


def test_unfinished_messages_make_room(own_node):
    """Connections that leave large messages unfinished for long make room for those of others."""
    value = b"v" * (1 << 19)
    request = log_pb2.ProduceRequest(topic="t", shard=0, records=[log_pb2.Record(value=value)] * 3)
    with own_node.channel() as channel:
        log = log_pb2_grpc.LogStub(channel)
        log.Produce(request, timeout=30)
        with hostile.Watch(own_node.process.pid) as watch:
            held = hostile.unfinished(own_node.address, 16, "t")
            assert len(held) == 16
            began, refused = time.monotonic(), 0
            while True:
                try:
                    log.Produce(request, timeout=30)
                    break
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
                    refused += 1
                assert time.monotonic() < began + 20, "nobody makes room"
                time.sleep(0.2)
        # On a busy machine the first ones have made room before the last ones have sent theirs.
        assert refused > 0 or watch.more_mib > 16, "the attack takes nothing"
        for connection in held:
            connection.close()
        log.Produce(request, timeout=30)
