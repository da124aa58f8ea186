"""Ray for the length of a sweep, its own on this machine or a cluster that runs already; and where in it trials run."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import socket
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a worker died of: a node that is lost is known as such after up to 15 s, and Ray waits for 1 s before it says
    # of the worker no more than that it cannot be reached. Of a worker that dies alone it knows at once.
    "RAY_timeout_ms_task_wait_for_death_info": "60000",
}

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import compat, shutdown
from orchestrator.resources import Node, Share
from results.store.disk import TEMPORARY
from results.store.folder import RunFolder
from search_spaces import kernels, machine
from search_spaces.errors import RequestError
from search_spaces.messages import log

# A trial trains in a thread, whose own heap glibc gives back to the system and faults in again, 2,000 to 5,000 pages a
# step of mobilenetv2_s32, whatever trainer.device.cpu.keep_memory says; with one heap for all threads it is none.
WORKER_ENV = {"MALLOC_ARENA_MAX": "1"}

ANSWER_S = 5.0  # for an address; Ray itself waits for two minutes, and then ends the process
JOIN_S = 600.0  # for a first node that takes trials, while an autoscaler starts it
SEEN_S = 120.0  # for every node to look at the run folder: its first process has to start, and the code to arrive
SETTLE_S = 5.0  # a file that another machine has just written may appear late: NFS remembers what was not there

# Behind the folder that it is given, with microseconds and a process's number of seven digits; see unix(7).
LONGEST_SOCKET = len("/session_2026-01-31_23-59-59_000000_4194304/sockets/plasma_store")
MOST_OF_AN_ADDRESS = 107 if sys.platform == "linux" else 103
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", ""))  # noqa: S108

LOOPBACK = ("127.", "localhost", "[::1]")
HEAD = "node:__internal_head__"
ACCELERATOR = "accelerator_type:"
HOW_TO_JOIN = (
    "whoever schedules has to be a node of the cluster: give the command to one (`ray exec`, `ray job submit`, "
    "`kubectl exec`, `srun`), with --address auto"
)
HOW_TO_START = "start one with `ray start --head`, and `ray start --address HOST:PORT` on the other machines"


@contextlib.contextmanager
def connected(address: str, here: Node, ray_log: TextIO) -> Iterator[list[Node]]:
    """Run Ray for the length of the block, in which stdout and stderr are its log's; yield its nodes.

    Args:
        address: `local` starts Ray on this machine alone, with what `here` has, and ends it; `auto` or HOST:PORT joins
            a running cluster, to which the code travels.

    Raises:
        RequestError: there is no such cluster, or none that this process can join.
    """
    own = _folder() if address == "local" else contextlib.nullcontext()
    with contextlib.redirect_stdout(ray_log), contextlib.redirect_stderr(ray_log), _logging_to(ray_log), own as folder:
        try:
            with _said_in_a_line(address):
                if address == "local":
                    _start(here, folder)
                else:
                    _join(address)
                nodes = _nodes_with_cpus()
            for lost in compat.missing():
                log.warning(f"note: Ray {ray.__version__} has no {lost}")
            yield nodes
        finally:
            ray.shutdown()
            shutdown.reinstate()


def unseen_by(nodes: Sequence[Node], run: RunFolder) -> list[str]:
    """Return the names of the nodes that do not see the run folder as this process does: trials would be lost there."""
    name, content = f"{TEMPORARY}{uuid.uuid4().hex}", uuid.uuid4().bytes
    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    asked = {}
    run.files.write(name, content)
    try:
        for node in nodes:
            if node.id != here:
                there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
                asked[there.remote(run.where, name, content)] = node.name
        answers, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SEEN_S) if asked else ([], [])
        blind = [asked[one] for one in silent]
        for answer in answers:
            with contextlib.suppress(RayError):  # its node has left meanwhile, or cannot run anything: not our question
                if not ray.get(answer):
                    blind.append(asked[answer])
        return sorted(blind)
    finally:
        run.files.remove(name)


def can_write(run: RunFolder) -> bool:
    """Return whether this process can write the run folder."""
    name = f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        run.files.write(name, b"")
        run.files.remove(name)
    except OSError:
        return False
    return True


def options(share: Share) -> dict[str, Any]:
    """Return what `ray.remote` is to reserve for a share of a machine, and where."""
    return {
        "num_cpus": share.cpus,
        "num_gpus": share.gpus,
        "resources": _accelerator(share),
        "label_selector": _where(share),
    }


def request(share: Share) -> Any:
    """Return the same for `tune.with_resources`."""
    from ray.tune import PlacementGroupFactory

    bundle = {"CPU": share.cpus, "GPU": share.gpus, **_accelerator(share)}
    return PlacementGroupFactory([bundle], bundle_label_selector=[_where(share)])


def _accelerator(share: Share) -> dict[str, float]:
    # Every node of the type has one of it, which is to last for all of its trials.
    return {f"{ACCELERATOR}{share.accelerator_type}": 0.001} if share.accelerator_type else {}


def _where(share: Share) -> dict[str, str]:
    return {"ray.io/node-id": f"!{share.avoids}"} if share.avoids else {}


def _start(here: Node, folder: str | None) -> None:
    # Workers inherit the environment: no upload, and no runtime environment to be made before the first one starts.
    os.environ |= WORKER_ENV | {"PYTHONPATH": machine.python_path(), "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    _init(address="local", include_dashboard=False, num_cpus=here.cpus, num_gpus=here.gpus, _temp_dir=folder)
    if not (at := ray.get_runtime_context().gcs_address).startswith(LOOPBACK):
        log.warning(f"warning: Ray listens at {at}, where other machines reach it")


def _join(address: str) -> None:
    found = _find(address)
    if not compat.is_node():
        raise _refusal(address, f"this machine is no node of the cluster, and {HOW_TO_JOIN}")
    others = [path.name for path in machine.ROOT.iterdir() if path.name not in machine.PACKAGES]
    switches = {name: os.environ[name] for name in (kernels.SWITCH,) if name in os.environ}
    env = WORKER_ENV | switches
    _init(address=found, runtime_env={"working_dir": str(machine.ROOT), "excludes": others, "env_vars": env})


@contextlib.contextmanager
def _folder() -> Iterator[str | None]:
    """A folder for Ray's sockets and logs; None where its own is short enough for a socket's address."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    default = os.path.join(os.environ.get(name) or tempfile.gettempdir(), "ray")  # noqa: PTH118
    if len(os.fsencode(default)) + LONGEST_SOCKET <= MOST_OF_AN_ADDRESS:
        yield None
        return
    for place in filter(os.path.isdir, SHORT_PLACES):
        with contextlib.suppress(OSError):
            own = tempfile.TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True)
            break
    else:
        most = MOST_OF_AN_ADDRESS - LONGEST_SOCKET - len("/ray")
        what = f"expected {most} bytes at most, as a socket's address has no more, got {os.environ.get(name)}"
        raise RequestError.of(f"{what}; set RAY_TMPDIR, which is for Ray alone, to a shorter folder", f"${name}")
    with own as folder:
        yield os.path.join(folder, "r")  # noqa: PTH118 - Ray lets everybody into its own; into the one above nobody


def _init(**arguments: Any) -> None:
    try:
        # From the project's own folder: Ray has workers import from where its driver stands, its random.py before
        # Python's.
        with compat.sigterm_left_alone(), contextlib.chdir(machine.ROOT):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    finally:
        shutdown.reinstate()


@contextlib.contextmanager
def _said_in_a_line(address: str) -> Iterator[None]:
    """Whatever Ray raises within the block, up to SystemExit, as a refusal."""
    try:
        yield
    except RequestError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # into ray.log
        said = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())[:500]]))
        if "Version mismatch" in said:
            said += "; both must be the same on every machine: install the versions of requirements.lock"
        what = f"Ray cannot be reached or started: {said}; more stands in the run folder's ray.log"
        raise _refusal(address, what) from None


# Addresses


def _find(address: str) -> str:
    """The HOST:PORT of the one running cluster that is meant."""
    if address != "auto":
        return _answering(address, address)
    named = os.environ.get("RAY_ADDRESS") or address
    if named != "auto":
        return _answering(named, f"auto, and $RAY_ADDRESS {named}")
    left = compat.last_started()
    # Ray's own `auto` would join any: the private Ray of another sweep, too, but for those that listen on loopback.
    running = [found for found in compat.running() if not found.startswith(LOOPBACK)]
    alive = [found for found in dict.fromkeys([*filter(None, [left]), *running]) if _answers(found) is None]
    if len(alive) > 1:
        raise _refusal(address, f"several clusters run here; give the address of one: {', '.join(sorted(alive))}")
    if alive:
        return alive[0]
    stale = f"; that at {left} has ended without a word (`ray stop` forgets it)" if left else ""
    raise _refusal(address, f"no Ray cluster runs on this machine{stale}; {HOW_TO_START}, or leave --address out")


def _answering(address: str, given: str) -> str:
    if "://" in address:
        raise _refusal(given, f"a client's or a job server's address, and {HOW_TO_JOIN}")
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise _refusal(given, "expected local, inline, auto or HOST:PORT, such as 10.0.0.5:6379")
    if why := _answers(address):
        raise _refusal(given, f"no Ray cluster answers there: {why}; {HOW_TO_START}")
    return address


def _answers(address: str) -> str | None:
    """None if whatever listens at HOST:PORT speaks gRPC, as a Ray head does; else why not, within `ANSWER_S`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            answer = connection.recv(16)
    except (OSError, OverflowError, UnicodeError) as error:
        return f"{getattr(error, 'strerror', None) or error}".lower()
    is_settings_frame, is_tls = answer[3:4] == b"\x04", answer[:1] == b"\x15"
    return None if is_settings_frame or is_tls else "something else listens there"


def _refusal(address: str, what: str) -> RequestError:
    return RequestError.of(what, f"--address {address}")


# Nodes


def _nodes_with_cpus() -> list[Node]:
    """The nodes, as soon as there is one with CPUs: in a cluster that grows on demand the head alone may have none."""
    nodes, deadline = _nodes(), time.monotonic() + JOIN_S
    if not any(node.cpus for node in nodes):
        log.info(f"no node with CPUs is there yet; waiting up to {JOIN_S / 60:.0f} minutes for one ...")
    while not any(node.cpus for node in nodes) and time.monotonic() < deadline:
        time.sleep(1)
        nodes = _nodes()
    return nodes  # if there is none, what is asked for is compared with that, and refused


def _nodes() -> list[Node]:
    nodes = []
    for found in filter(operator.itemgetter("Alive"), ray.nodes()):
        has, name = found["Resources"], f"{found['NodeManagerHostname']} ({found['NodeManagerAddress']})"
        gpu_type = next((key.removeprefix(ACCELERATOR) for key in has if key.startswith(ACCELERATOR)), "")
        nodes.append(Node(int(has.get("CPU", 0)), int(has.get("GPU", 0)), gpu_type, name, found["NodeID"], HEAD in has))
    return nodes


def _sees(where: str, name: str, content: bytes) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while True:
        with contextlib.suppress(OSError):
            if RunFolder(where).files.read(name) == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


# Its messages


@contextlib.contextmanager
def _logging_to(file: TextIO) -> Iterator[None]:
    """Ray's own log handlers, which took hold of stderr when Ray was imported, write there instead.

    Not by setStream, which flushes the stream before: that one may be closed by now.
    """
    handlers = [h for h in logging.getLogger("ray").handlers if type(h).__module__.startswith("ray.")]
    for handler in handlers:
        handler.stream = file  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for handler in handlers:
            handler.stream = sys.__stderr__  # type: ignore[attr-defined]
