"""What producers notice when the disk of their shard's leader becomes ten times slower: three real nodes on one device, of which
the kernel (blkio of cgroup v1, io of v2) holds back one node's writes. Needs root, and a directory on a real disk.

As a script it prints produce latency in windows of half a second: before, while that disk is slow, and after.

    slow_disk.py BINARY [DIRECTORY [TIMES]]
"""

import collections
import contextlib
import mmap
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

# A durable write on the slow disk takes so many times what it takes on a fast one, unless the command line says otherwise.
SLOWER = 10
# Calls begun in one second, whatever became of the earlier ones. So many flush the slow disk without a pause: what the kernel limits
# is how many writes begin, and one that comes after a pause does not wait.
RATE = 800
WINDOW_S = 0.5
# The bar: p99 is at most so many times what it was before, at the latest so long after the disk became slow.
P99_MAX, WITHIN_S = 2, 3
BLOCK = 4096


def durable_writes_ms(path, count=200):
    """What each of `count` durable 4 KiB writes to a file takes."""
    taken, block = [], mmap.mmap(-1, BLOCK)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.posix_fallocate(file, 0, count * BLOCK)
        for place in range(2 * count):  # the first round writes what the file system has only reserved
            begin = time.monotonic()
            os.pwritev(file, [block], place % count * BLOCK, os.RWF_DSYNC)
            taken.append(1000 * (time.monotonic() - begin))
    finally:
        os.close(file)
        os.unlink(path)
    return taken[count:]


class SlowDisk:
    """A control group whose processes may only begin so many writes in a second on the device of `directory`."""

    def __init__(self, directory):
        number = os.stat(directory).st_dev
        device = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not device.exists():
            raise OSError(f"{directory} is not on a block device")
        # The kernel limits disks, not their partitions.
        if (device / "partition").exists():
            device = device.resolve().parent
        self.device = (device / "dev").read_text().strip()
        v1, v2 = pathlib.Path("/sys/fs/cgroup/blkio"), pathlib.Path("/sys/fs/cgroup")
        self.is_v1 = v1.is_dir()
        root = v1 if self.is_v1 else v2
        if not self.is_v1 and "io" not in (root / "cgroup.controllers").read_text().split():
            raise OSError("the io controller is not there")
        if not self.is_v1:
            (root / "cgroup.subtree_control").write_text("+io")
        self.root, self.group = root, root / f"ringlog-slow-{os.getpid()}"
        self.group.mkdir()
        self.members = []
        if not (self.group / self._limit_file()).exists():
            self.close()
            raise OSError("the kernel does not limit writes here")

    def _limit_file(self):
        return "blkio.throttle.write_iops_device" if self.is_v1 else "io.max"

    def limit(self, writes_per_s=None):
        value = f"{writes_per_s or 0}" if self.is_v1 else f"wiops={writes_per_s or 'max'}"
        (self.group / self._limit_file()).write_text(f"{self.device} {value}")

    def add(self, pid):
        (self.group / "cgroup.procs").write_text(str(pid))
        self.members.append(pid)

    def measured_ms(self, path):
        """What durable writes take in this group."""
        home = self.root / "cgroup.procs"
        self.add(os.getpid())
        try:
            return durable_writes_ms(path)
        finally:
            home.write_text(str(os.getpid()))
            self.members.remove(os.getpid())

    def close(self):
        for pid in self.members:
            with contextlib.suppress(OSError):
                (self.root / "cgroup.procs").write_text(str(pid))
        self.group.rmdir()


def slow_down(disk, path, slower):
    """Sets the limit that makes writes so many times slower; what they took and take on average, in ms."""
    before = statistics.mean(durable_writes_ms(path))
    # A durable write may be one write to the device, or one and a flush.
    for writes_per_s in (int(2000 / before / slower), int(1000 / before / slower)):
        disk.limit(writes_per_s)
        slow = statistics.mean(disk.measured_ms(path))
        if slow >= slower * before:
            break
    return before, slow


class Cluster:
    """`ringlog dev-cluster`: three nodes."""

    def __init__(self, binary, directory, base_port):
        self.directory, self.base_port = pathlib.Path(directory), base_port
        command = [binary, "dev-cluster", "--base-port", str(base_port), "--data", str(self.directory / "nodes")]
        self.log = open(self.directory / "log.txt", "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def address(self, node_id):
        return f"127.0.0.1:{self.base_port + 10 * (node_id - 1)}"

    def pid(self, node_id):
        """The process that serves at the node's address."""
        me = self.process.pid
        for child in pathlib.Path(f"/proc/{me}/task/{me}/children").read_text().split():
            words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            if self.address(node_id) in words:
                return int(child)
        raise LookupError(f"node {node_id} does not run")

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


class Load:
    """Produce calls at a fixed rate, begun whether or not earlier ones have ended; a refused one is tried again, as clients do."""

    RETRY_S = 0.01

    def __init__(self, log, log_pb2):
        self.log = log
        self.request = log_pb2.ProduceRequest(topic="t", shard=0, records=[log_pb2.Record(value=b"v" * 1000)])
        self.taken, self.failed = [], []
        self._begun = 0
        self._again = collections.deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _call(self, due):
        self._begun += 1
        self.log.Produce.future(self.request, timeout=30).add_done_callback(lambda call: self._done(call, due))

    def _done(self, call, due):
        import grpc

        now = time.monotonic()
        self._begun -= 1
        if call.code() is grpc.StatusCode.OK:
            self.taken.append((due, 1000 * (now - due)))
        elif call.code() is grpc.StatusCode.UNAVAILABLE:
            self._again.append((now + self.RETRY_S, due))
        else:
            self.failed.append(call.details())

    def _run(self):
        due = time.monotonic()
        while not self._end.is_set():
            while self._again and self._again[0][0] <= time.monotonic():
                self._call(self._again.popleft()[1])
            if due <= time.monotonic():
                self._call(due)
                due += 1 / RATE
            time.sleep(max(0, min(due - time.monotonic(), self.RETRY_S)))

    def between(self, begin, end):
        """Milliseconds that the calls took that were due then."""
        return sorted(taken for due, taken in list(self.taken) if begin <= due < end)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
        wait_for("the last calls", lambda: self._begun == 0)


def p(share, taken):
    return taken[min(len(taken) - 1, int(share / 100 * len(taken)))] if taken else float("inf")


def shard_of(admin, admin_pb2):
    described = admin.DescribeTopic(admin_pb2.DescribeTopicRequest(name="t"), timeout=30)
    return described.shards[0]


def wait_for(what, is_so, patience_s=60):
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def cluster_under_load(binary, directory, base_port):
    """Three nodes, their disk, the node that leads the topic's shard, a load that enters at another one, and who leads by now."""
    import grpc
    from conftest import admin_pb2, admin_pb2_grpc, log_pb2, log_pb2_grpc

    disk = SlowDisk(directory)
    cluster = Cluster(binary, directory, base_port)
    try:
        with contextlib.ExitStack() as channels:
            nodes = [channels.enter_context(grpc.insecure_channel(cluster.address(node))) for node in (1, 2, 3)]
            admin = admin_pb2_grpc.AdminStub(nodes[0])

            def is_made():
                try:
                    admin.CreateTopic(admin_pb2.CreateTopicRequest(name="t", shards=1, replication_factor=3), timeout=30)
                except grpc.RpcError as error:
                    return error.code() is grpc.StatusCode.ALREADY_EXISTS
                return True

            def is_settled():
                shard = shard_of(admin, admin_pb2)
                return shard.leader_node_id == shard.replica_node_ids[0] and len(shard.replica_node_ids) == 3

            wait_for("a topic", is_made)
            wait_for("the leader that it is to have", is_settled)
            led_by = shard_of(admin, admin_pb2).leader_node_id
            # Whoever leads before and after, a call passes one other node as often as not.
            admin = admin_pb2_grpc.AdminStub(nodes[led_by % 3])
            with Load(log_pb2_grpc.LogStub(nodes[led_by % 3]), log_pb2) as load:
                yield cluster, disk, led_by, load, lambda: shard_of(admin, admin_pb2).leader_node_id
    finally:
        cluster.close()
        disk.close()


def main():
    os.environ["INTEROP_BIN"] = binary = sys.argv[1]
    slower = int(sys.argv[3]) if len(sys.argv) > 3 else SLOWER
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as directory:
        with cluster_under_load(binary, directory, 7600) as (cluster, disk, led_by, load, leader_now):
            before_ms, slow_ms = slow_down(disk, f"{directory}/probe", slower)
            print(f"durable write: {before_ms:.2f} ms, on the slow disk {slow_ms:.2f} ms ({slow_ms / before_ms:.0f} times)")
            measured = time.monotonic()
            time.sleep(20)
            slow = time.monotonic()
            normal = p(99, load.between(measured, slow))
            print(f"before: p50 {p(50, load.between(measured, slow)):.2f} ms, p99 {normal:.2f} ms, node {leader_now()} leads")
            disk.add(cluster.pid(led_by))
            print(f"the disk of node {led_by} is slow")
            led = show(load, leader_now, led_by, slow, 10, normal)
            print(f"node {led_by} led for {led:.1f} s; its disk is fast again")
            disk.limit(None)
            fast = time.monotonic()
            show(load, leader_now, led_by, fast, 30, normal)
        over = [slow + n * WINDOW_S for n in range(80)]
        late = [begin - slow for begin in over if begin - slow >= WITHIN_S and begin < fast]
        bad = [at for at in late if p(99, load.between(slow + at, slow + at + WINDOW_S)) > P99_MAX * normal]
        print(f"windows beyond {WITHIN_S} s with p99 above {P99_MAX} times normal: {bad}; failed calls: {load.failed}")


def show(load, leader_now, led_by, begin, seconds, normal):
    """Prints each window as it ends; for how long this node led, in s, as looked at every 20 ms."""
    led, window = 0.0, begin
    while time.monotonic() < begin + seconds:
        time.sleep(0.02)
        if leader_now() == led_by:
            led = time.monotonic() - begin
        # Slow calls of a window end later than it does.
        if time.monotonic() >= window + 2 * WINDOW_S:
            taken = load.between(window, window + WINDOW_S)
            print(f"  {window - begin:5.1f} s {len(taken):5} calls, p50 {p(50, taken):7.2f} ms, p99 {p(99, taken):8.2f} ms "
                  f"({p(99, taken) / normal:.1f} times), node {leader_now()} leads", flush=True)
            window += WINDOW_S
    return led


if __name__ == "__main__":
    main()
