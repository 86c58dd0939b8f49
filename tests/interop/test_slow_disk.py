"""A leader whose disk becomes slow, on a real device: the leadership moves away and comes back, and no call fails. What producers
notice of it, in milliseconds, is printed by `slow_disk.py`."""

import os

import pytest
import slow_disk
from conftest import free_port

# Each waits 50 ms: slow beside any disk.
WRITES_PER_S = 20


def test_leadership_moves(tmp_path):
    try:
        slow_disk.SlowDisk(tmp_path).close()
    except OSError as error:
        pytest.skip(f"no disk can be slowed down here: {error}")
    # Each node has its ports at its place above the first one: room for them is below those that the kernel gives away.
    base_port = 10_000 + free_port() % 10_000
    with slow_disk.cluster_under_load(os.environ["INTEROP_BIN"], tmp_path, base_port) as (cluster, disk, led_by, load, leader):
        slow_disk.wait_for("some calls", lambda: len(load.taken) > 100)
        disk.limit(WRITES_PER_S)
        disk.add(cluster.pid(led_by))
        slow_disk.wait_for("another leader", lambda: leader() not in (0, led_by))
        disk.limit(None)
        slow_disk.wait_for("the first leader", lambda: leader() == led_by, patience_s=120)
        acknowledged = len(load.taken)
        slow_disk.wait_for("more calls", lambda: len(load.taken) > acknowledged + 100)
    assert load.failed == []
