"""Ray on one machine and on several nodes: who may be joined, where trials run, and nodes that leave and join."""

from __future__ import annotations

import functools
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, cluster, compat
from orchestrator.resources import Node, Share, share
from results.store.folder import RunFolder
from search_spaces.errors import RequestError
from search_spaces.space import Resources
from tests.watching import trained_once, wait_until, written

ROOT = Path(__file__).parents[1]
SPACE = """
name: small
recipe: {epochs: 15, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 40}
pairs: [{arch: resnet20, dataset: digits}]
pools: [{name: gap, role: baseline}, gem]
seeds: [1, 2, 3, 4]
max_failures: 0
checkpoint_every: 1
"""

# Where trials may run

HEAD, WORKER = Node(8, 0, "", "head", "a1", head=True), Node(8, 0, "", "worker", "b2")
H100, L4 = Node(8, 4, "H100", "h100", "c3"), Node(8, 1, "L4", "l4", "d4")


@pytest.mark.parametrize(
    ("asked", "nodes", "gets"),
    [
        ({}, [HEAD, WORKER], Share(1, 0, avoids="a1")),
        ({"on_head": True}, [HEAD, WORKER], Share(1, 0)),
        ({}, [HEAD], Share(1, 0)),
        ({"cpus_per_trial": 8}, [HEAD, Node(2, 0, "", "small", "e5")], Share(8, 0)),
        ({}, [HEAD, H100], Share(1, 1)),
        ({"gpus_per_trial": 0}, [HEAD, H100], Share(1, 0, avoids="a1")),
        ({"accelerator_type": "H100"}, [HEAD, H100, L4], Share(1, 1, "H100")),
        ({"accelerator_type": "H100"}, [Node(8, 1)], Share(1, 1)),  # before Ray was asked
    ],
)
def test_where_a_trial_may_run(asked: dict[str, Any], nodes: list[Node], gets: Share) -> None:
    assert share(Resources(**asked), nodes) == gets


@pytest.mark.parametrize(
    ("asked", "nodes", "says"),
    [
        ({"accelerator_type": "H10"}, [HEAD, H100, L4], r"type H10, and .* did you mean 'H100'\? known: H100, L4"),
        ({"accelerator_type": "H100"}, [HEAD, WORKER], "type H100, got a node without any; without this key"),
        ({"accelerator_type": "H100"}, [Node(8, 0)], "type H100, got a node without any; without this key"),
        ({"accelerator_type": "H100"}, [Node(8, 1, "")], "none, as far as Ray can tell"),
        (
            {"accelerator_type": "L4", "gpus_per_trial": 0},
            [L4],
            "beside gpus_per_trial 0, which asks for no GPU, got L4",
        ),
        ({"accelerator_type": "L4", "gpus_per_trial": 4}, [H100, L4], "no node has 4 L4 GPUs and 1 CPUs at once"),
    ],
)
def test_gpus_of_a_type_that_no_node_has(asked: dict[str, Any], nodes: list[Node], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        share(Resources(**asked), nodes)


def test_a_share_fits_the_nodes_that_may_take_it() -> None:
    nodes = [HEAD, WORKER, H100, L4]
    assert [node.name for node in nodes if Share(1, 1, "H100").fits(node)] == ["h100"]
    assert [node.name for node in nodes if Share(8, 0, avoids="a1").fits(node)] == ["worker", "h100", "l4"]
    assert not any(Share(9, 0).fits(node) for node in nodes)


# Who may be joined


def connect(address: str) -> None:
    with cluster.connected(address, Node(1, 0), io.StringIO()):
        raise AssertionError("joined")


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """HOST:PORT of a server that is no Ray: it says one thing, or nothing, and keeps the line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            connection, _ = server.accept()
            held.append(connection)
            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)
        held[0].close()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere.invalid:6379", "no Ray cluster answers there: .*; start one with `ray start --head`"),
        ("ray://127.0.0.1:10001", "whoever schedules has to be a node of the cluster: give the command to one"),
        ("http://127.0.0.1:8265", "whoever schedules has to be a node of the cluster: give the command to one"),
        ("127.0.0.1", "expected local, inline, auto or HOST:PORT"),
        ("head:ray", "expected local, inline, auto or HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
    ],
)
def test_an_address_that_is_none(address: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        connect(address)


def test_nobody_or_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    nobody, before = free_address(), time.monotonic()
    with pytest.raises(RequestError, match="no Ray cluster answers there: connection refused"):
        connect(nobody)
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"):
        with listener(answer) as address, pytest.raises(RequestError, match="something else listens there"):
            connect(address)
    with listener(b"") as address, pytest.raises(RequestError, match="no Ray cluster answers there: timed out"):
        connect(address)
    assert time.monotonic() - before < 15
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(RequestError, match=rf"auto, and \$RAY_ADDRESS {nobody}: no Ray cluster answers there"):
        connect("auto")


def test_auto_joins_the_one_cluster_that_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    dead, private = free_address(), "127.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alive: set[str] = set()
    monkeypatch.setattr(cluster, "_answers", lambda address: None if address in alive else "connection refused")
    monkeypatch.setattr(compat, "running", lambda: [private, "10.0.0.5:6379"])
    monkeypatch.setattr(compat, "last_started", lambda: dead)
    with pytest.raises(RequestError, match=rf"no Ray cluster runs on this machine; that at {dead} has ended"):
        connect("auto")
    alive |= {private}  # another sweep's own, which it ends when it is done
    with pytest.raises(RequestError, match="no Ray cluster runs on this machine"):
        connect("auto")
    alive |= {"10.0.0.5:6379"}
    assert cluster._find("auto") == "10.0.0.5:6379"
    alive |= {dead}
    with pytest.raises(RequestError, match="several clusters run here; give the address of one"):
        connect("auto")


@pytest.mark.soak
def test_a_cluster_of_another_version_is_one_line_and_one_of_others_another(
    ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.ray, "__version__", "2.59.0")
    with pytest.raises(RequestError) as refused:
        connect(ray_address)
    message = str(refused.value)
    monkeypatch.setattr(compat, "is_node", lambda: False)
    with pytest.raises(RequestError, match="this machine is no node of the cluster"):
        connect(ray_address)
    assert re.search(r"Version mismatch.* Ray: 2\.[0-9.]+ .* Ray: 2\.59\.0 .*requirements\.lock", message), message
    assert "\n" not in message


# This machine alone

LOCAL = """
import os, sys
from orchestrator import environment
environment.prepare("local")
import ray
from orchestrator import cluster
from orchestrator.resources import this_machine

with cluster.connected("local", this_machine(0), sys.stderr) as nodes:
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    print(ray.get_runtime_context().gcs_address, len(nodes), worker, file=sys.__stdout__, flush=True)
    sys.stdin.read()
"""


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(after_name[1]), []).append(int(entry.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def listening(pids: list[int]) -> dict[str, str]:
    """{an address that one of these processes listens at, as the kernel writes it: the process's name}."""
    inodes: dict[str, str] = {}
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes[os.readlink(fd)] = Path(f"/proc/{pid}/comm").read_text().strip()  # noqa: PTH115
            except OSError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {
        fields[1]: inodes[f"socket:[{fields[9]}]"]
        for fields in lines
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    }


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's own account of sockets: Linux")
def test_a_local_ray_is_its_own_and_listens_on_loopback_only(ray_address: str) -> None:
    # Somebody else's cluster runs here, and the environment names it.
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL],
        cwd=ROOT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        mine, nodes, worker = process.stdout.readline().split()
        assert mine != ray_address
        assert nodes == "1"
        pids = descendants(process.pid)
        assert int(worker) in pids
        found = listening(pids)
        loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
        assert {"gcs_server", "raylet"} <= set(found.values()), found
        assert {where: who for where, who in found.items() if not where.startswith(loopback)} == {}
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0


# Several nodes


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head with a CPU, and no worker yet; a node that is silent for five seconds is taken for dead."""
    from ray.cluster_utils import Cluster  # type: ignore

    health = {"initial_delay_ms": 0, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 5}
    patience = {f"health_check_{name}": value for name, value in health.items()}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": patience}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.mark.soak
def test_trials_stay_off_the_head_and_find_their_gpus(nodes: Any, tmp_path: Path) -> None:
    import ray
    from ray import tune

    plain = nodes.add_node(num_cpus=1)
    fast = nodes.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1})
    nodes.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:L4": 1})

    def where_it_runs() -> str:
        return ray.get_runtime_context().get_node_id()

    def tuned(each: Share, trials: int) -> set[str]:
        run_config = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
        trainable = tune.with_resources(lambda _: tune.report({"node": where_it_runs()}), cluster.request(each))
        found = tune.Tuner(trainable, tune_config=tune.TuneConfig(num_samples=trials), run_config=run_config).fit()
        assert not found.errors
        return {result.metrics["node"] for result in found}  # type: ignore[index]

    run = RunFolder(tmp_path / "run")
    run.create()
    with cluster.connected(nodes.address, Node(1, 0), io.StringIO()) as found:
        assert sorted(node.accelerator_type or "" for node in found) == ["", "", "H100", "L4"]
        assert [node.head for node in found].count(True) == 1
        h100 = share(Resources(accelerator_type="H100"), found)
        assert ray.get(ray.remote(**cluster.options(h100))(where_it_runs).remote()) == fast.node_id
        assert tuned(h100, 1) == {fast.node_id}
        on_cpu = share(Resources(gpus_per_trial=0), found)
        head = next(node.id for node in found if node.head)
        assert on_cpu == Share(1, 0, avoids=head)
        placed = [ray.remote(**cluster.options(on_cpu))(where_it_runs).remote() for _ in range(8)]
        assert head not in ray.get(placed)
        assert head not in tuned(on_cpu, 2)
        assert plain.node_id in {node.id for node in found if on_cpu.fits(node)}

        assert cluster.unseen_by(found, run) == []
        assert not [path for path in (tmp_path / "run").iterdir() if path.is_file()]


@pytest.mark.soak
def test_nodes_leave_and_join_in_the_middle(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run = tmp_path / "run"
    leaver = nodes.add_node(num_cpus=1)
    command = ["run_sweep.py", "--space", tmp_path / "space.yaml", "--out", run, "--address", nodes.address]
    with subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            running = functools.partial(Path.glob, run / "checkpoints", "[!.]*")
            wait_until(lambda: process.poll() is not None or (written(run) and list(running())))
            nodes.remove_node(leaver, allow_graceful=False)
            before = written(run)
            nodes.add_node(num_cpus=1)
            said, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode in (cli.OK, cli.INCOMPLETE), said
    trials = trained_once(run, range(1, 16), before)  # max_failures is 0: a node that is taken away fails nothing
    assert 1 <= len(before) < len(trials) == 8
    assert (trials["attempt"] > 1).any(), "the node that left had a trial on it"
