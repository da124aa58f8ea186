"""Three hosts, each with a network and a Ray of its own: two are cut off in the middle of a sweep, one is added.

The hosts are network and mount namespaces on this machine, on one bridge. What joins them is the run folder alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import results
from orchestrator import cli
from tests.watching import trained_once, wait_until, written

ROOT = Path(__file__).parents[1]
PORT = 6399
SUBNET = "10.213.77"
EPOCHS, SEEDS = 12, 4
SPACE = f"""
name: hosts
recipe: {{epochs: {EPOCHS}, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 40}}
pairs: [{{arch: resnet20, dataset: digits}}]
pools: [{{name: gap, role: baseline}}, gem]
seeds: {list(range(SEEDS))}
max_failures: 0
checkpoint_every: 1
"""
# A host that is silent for five seconds is taken for dead; Ray's own patience is half a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


pytestmark = pytest.mark.soak


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """A network namespace on the bridge; what runs there has processes, a host name and a /tmp/ray of its own."""

    def __init__(self, bridge: str, number: int, folder: Path):
        self.name, self.address = f"{bridge}-{number}", f"{SUBNET}.{number}"
        self._link = f"{bridge}v{number}"
        self._folder = folder / self.name
        self._folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        ip("netns", "add", self.name)
        ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self._link, "master", bridge, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        ip("-n", self.name, "route", "add", "default", "dev", "eth0")  # Ray asks which way it would go out

    def start(self, command: list[str], hides: Path | None = None) -> None:
        """Starts a command on this host, where `hides` is an empty folder of its own."""
        steps = [
            f"echo {self.name} > /proc/sys/kernel/hostname",
            "mkdir -p /tmp/ray",
            f"mount --bind {self._folder} /tmp/ray",
            *([f"mount -t tmpfs tmpfs {hides}"] if hides else []),
            'exec "$@"',
        ]
        # All of it ends with the first process of the process namespace, and that one with this process.
        enter = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.name]
        enter += ["unshare", "--mount", "--mount-proc", "--uts", "--pid", "--fork", "--kill-child"]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*enter, "sh", "-c", " && ".join(steps), "sh", *command],
                cwd=ROOT,
                env={
                    **os.environ,
                    **HEALTH,
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": "0" * 64,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def lose(self) -> None:
        """As if its plug was pulled: nothing comes from it any more, not even that its connections are closed."""
        ip("link", "set", self._link, "down")
        self._kill()

    def end(self) -> None:
        self._kill()
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def _kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _said(self) -> Path:
        return self._folder / "said"


def why_not() -> str | None:
    """Why hosts cannot be made here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces, which root makes on Linux"
    if missing := [name for name in ("ip", "unshare", "mount", "setpriv") if not shutil.which(name)]:
        return f"not on the PATH: {', '.join(missing)}"
    name = f"probe{uuid.uuid4().hex[:6]}"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "b0", "type", "bridge")
        ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return None


@pytest.fixture
def make_host() -> Iterator[Callable[[], Host]]:
    """`make_host()`: one more on the bridge. All are gone afterwards, with what runs on them."""
    if reason := why_not():
        pytest.skip(reason)
    bridge, hosts = f"ps{uuid.uuid4().hex[:6]}", list[Host]()
    folder = Path(tempfile.mkdtemp(prefix=bridge, dir="/tmp"))  # short: Ray's sockets have 107 bytes for their paths
    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("link", "set", bridge, "up")

        def make() -> Host:
            hosts.append(Host(bridge, len(hosts) + 1, folder))
            return hosts[-1]

        yield make
    finally:
        for host in hosts:
            host.end()
        ip("link", "del", bridge)
        shutil.rmtree(folder, ignore_errors=True)


def command_for(head: Host, hosts: int, space: Path, run: Path) -> list[str]:
    """What every host is given, the head too, as by cluster/slurm.sbatch."""
    space.write_text(SPACE)
    address = f"{head.address}:{PORT}"
    ray = ["ray", "symmetric-run", "--address", address, "--min-nodes", str(hosts), "--num-cpus", "1"]
    sweep = [sys.executable, "run_sweep.py", "--space", str(space), "--out", str(run), "--address", address]
    return [*ray, "--", *sweep]


def wait_until_ended(head: Host, or_until: Callable[[], Any] = bool) -> None:
    wait_until(lambda: head.exit_code() is not None or or_until(), 240, head.said)


def test_hosts_are_lost_and_one_is_added(make_host: Callable[[], Host], tmp_path: Path) -> None:
    run = tmp_path / "run"
    head, first, second = (make_host() for _ in range(3))
    command = command_for(head, 3, tmp_path / "space.yaml", run)
    for host in (head, first, second):
        host.start(command)
    wait_until_ended(head, lambda: written(run))
    first.lose()
    added = make_host()
    added.start(command)
    so_far = len(written(run))
    wait_until_ended(head, lambda: len(written(run)) > so_far)
    second.lose()  # whether or not the other has come yet
    before = written(run)
    wait_until_ended(head)
    assert head.exit_code() in (cli.OK, cli.INCOMPLETE), head.said()

    # max_failures is 0: a machine that is lost is nobody's failure
    trials = trained_once(run, range(1, EPOCHS + 1), before)
    assert len(trials) == 2 * SEEDS
    assert set(trials["host"]) - {first.name} == {second.name, added.name}, "the head takes none"
    table = results.load(run).leaderboard()
    assert (table["n"] + table["collapsed"] == SEEDS).all()


def test_a_host_that_does_not_see_the_run_folder_is_named(make_host: Callable[[], Host], tmp_path: Path) -> None:
    run = tmp_path / "shared" / "run"
    run.parent.mkdir()
    head, blind = make_host(), make_host()
    command = command_for(head, 2, tmp_path / "space.yaml", run)
    head.start(command)
    blind.start(command, hides=run.parent)
    wait_until_ended(head)
    assert head.exit_code() == cli.REFUSED, head.said()
    assert f"{run} is another folder, or none, on {blind.name} ({blind.address}); give one that" in head.said()
    assert not written(run)
