"""What hostile clients cost: a bounded amount of memory, and nobody else's calls. `hostile.py` has the attacks, and prints what they
cost in time, too.

RINGLOG_HOSTILE_CONNECTIONS   of each attack that takes many (default 1,000; the bar is for 4,096)
"""

import os
import threading

import hostile
import pytest
from conftest import log_pb2, log_pb2_grpc

CONNECTIONS = int(os.environ.get("RINGLOG_HOSTILE_CONNECTIONS", "1000"))
# Over what the node had before.
RSS_MORE_MAX_MIB = 512


@pytest.mark.parametrize("attack", hostile.ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(own_node, attack):
    connections = hostile.connections_possible(CONNECTIONS)
    with own_node.channel() as channel:
        log = log_pb2_grpc.LogStub(channel)
        hostile.fill(log, log_pb2)
        with hostile.Watch(own_node.process.pid) as watch:
            held, done = [], threading.Event()

            def run():
                try:
                    held.extend(attack(own_node.address, connections, "t"))
                finally:
                    done.set()

            thread = threading.Thread(target=run)
            thread.start()
            taken, refused = hostile.good_calls(log, log_pb2, until=done)
            thread.join()
            # While all of it is still held.
            after, refused_after = hostile.good_calls(log, log_pb2, seconds=0.5)
    for connection in held:
        connection.close()
    assert own_node.process.poll() is None, own_node.log.read_text()[-2000:]
    assert refused == refused_after == 0, "a good client's calls fail"
    assert taken and after
    assert watch.more_mib <= RSS_MORE_MAX_MIB, f"{watch.more_mib:.0f} MiB more"
