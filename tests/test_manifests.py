"""`cluster/`: what can be known of these files without a cluster."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from tests.watching import wait_until

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"


def sweep_arguments(command: str) -> Any:
    """The arguments of the run_sweep.py in a shell command, parsed as it parses them."""
    words = shlex.split(command)
    at = next(index for index, word in enumerate(words) if word.endswith("run_sweep.py"))
    return cli._parser().parse_args(words[at + 1 :])


# SLURM

FAKES = {
    # Runs what srun is to run, in one process, without Ray, or never comes to it.
    "srun": 'echo "srun $*" >> "$CALLS"; if [ "$ON" = never ]; then exec sleep 60; fi\n'
    'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; if [ "$1" = show ]; then echo node-a; echo node-b; fi',
    "getent": 'echo "10.0.0.5 STREAM node-a"',
    # A driver that leaves with the given code: on USR1, or at once. Or it does not listen yet.
    "driver": 'if [ "$ON" != deaf ]; then trap "exit $CODE" USR1; fi; echo "driver $*" >> "$CALLS"\n'
    'if [ "$ON" = now ]; then exit "$CODE"; fi; while :; do sleep 0.05; done',
}


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Any]:
    """`batch(code, on, warned)`: the script as SLURM would start it, with a driver that ends so, and sent the warning
    once `warned` was called, as --signal=B: does: no other process gets it. Its exit code, and what it called."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash here")
    calls = tmp_path / "calls"
    calls.touch()
    started = []
    for name, body in FAKES.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def run(code: int, on: str, warned: str = "") -> tuple[int, list[str]]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "CODE": str(code),
            "ON": on,
            "PYTHON": "driver",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_SUBMIT_DIR": str(ROOT),
        }
        command = ["bash", str(CLUSTER / "slurm.sbatch"), "--space", "mine.yaml"]
        process = subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True)
        started.append(process)
        if warned:
            called = re.compile(f"^{warned} ", re.MULTILINE)
            wait_until(lambda: process.poll() is not None or called.search(calls.read_text()), 30)
            process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=30)
        return process.returncode, calls.read_text().splitlines()

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("code", "on", "warned", "ends"),
    [
        *((code, "now", "", code) for code in (0, 1, 2, 130)),
        *((code, "USR1", "driver", code) for code in (0, 1, 2, 130)),  # it leaves by itself after the warning
        (0, "never", "srun", 130),  # there is no driver yet
        (0, "deaf", "driver", 130),  # it does not listen yet
    ],
)
def test_a_job_is_queued_again_when_its_sweep_was_interrupted_only(
    batch: Any, code: int, on: str, warned: str, ends: int
) -> None:
    ended, calls = batch(code, on, warned)
    assert ended == ends
    assert ("scontrol requeue 4711" in calls) is (ends == cli.INTERRUPTED)


def test_ray_and_the_sweep_are_given_their_options(batch: Any) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    _, calls = batch(0, "now")
    srun, driver = (line for line in calls if not line.startswith("scontrol"))
    address = f"10.0.0.5:{20000 + 4711}"
    assert driver == f"driver run_sweep.py --address {address} --space mine.yaml"
    assert sweep_arguments(driver).space == "mine.yaml"
    assert f"symmetric-run --address {address} --min-nodes 2 --num-cpus 32 " in srun
    words = shlex.split(srun)
    arguments = words[words.index("symmetric-run") + 1 : words.index("--")]
    given = curate_and_validate_ray_start_args(arguments)  # raises click's own errors
    assert "--num-cpus" in " ".join(given)
    assert not {"--address", "--min-nodes"} & set(given)


def test_the_script_asks_for_the_signal_that_it_traps() -> None:
    text = (CLUSTER / "slurm.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", text, re.MULTILINE))
    assert asked["signal"] == "B:USR1@120"
    assert "requeue" in asked
    assert "trap leave USR1 TERM" in text
    assert f"INTERRUPTED={cli.INTERRUPTED} " in text


def test_shellcheck() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("there is no shellcheck here")
    found = subprocess.run([program, CLUSTER / "slurm.sbatch"], capture_output=True, text=True, check=False)
    assert not found.stdout
    assert found.returncode == 0


# Kubernetes

# The part of KubeRay's CRD (ray.io_rayjobs.yaml, v1) that is in use here. The API server drops fields that it does not
# know without a word, and refuses 4 for "4".
POD = {
    str: """nodeSelector.* containers.name containers.image containers.envFrom.secretRef.name
        containers.resources.requests.* containers.resources.limits.* containers.volumeMounts.name
        containers.volumeMounts.mountPath tolerations.key tolerations.operator tolerations.value tolerations.effect
        volumes.name volumes.persistentVolumeClaim.claimName""",
    int: "terminationGracePeriodSeconds",
}
GROUP = {str: "groupName rayStartParams.*", int: "replicas minReplicas maxReplicas"}
RAY_CLUSTER = {str: "rayVersion", int: "autoscalerOptions.idleTimeoutSeconds", bool: "enableInTreeAutoscaling"}
RAY_JOB = {
    str: "apiVersion kind metadata.name spec.entrypoint spec.submissionMode",
    int: "spec.backoffLimit spec.ttlSecondsAfterFinished",
    bool: "spec.shutdownAfterJobFinishes",
}
GROUPS = [f"spec.rayClusterSpec.{name}." for name in ("headGroupSpec", "workerGroupSpecs")]
KNOWN = [("", RAY_JOB), ("spec.rayClusterSpec.", RAY_CLUSTER), *((group, GROUP) for group in GROUPS)]
KNOWN += [(f"{group}template.spec.", POD) for group in GROUPS]


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The path and the value of every leaf; an item of a list has the list's path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from fields(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for each in value:
            yield from fields(each, path)
    else:
        yield path, value


@pytest.fixture(scope="module")
def ray_job() -> Mapping[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())


def test_the_ray_job_is_one(ray_job: Mapping[str, Any]) -> None:
    known = [(prefix + name, kind) for prefix, of in KNOWN for kind, names in of.items() for name in names.split()]
    for path, value in fields(ray_job):
        kinds = {kind for pattern, kind in known if fnmatch.fnmatchcase(path, pattern)}
        assert kinds == {type(value)}, path
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch("[a-z0-9-]{1,47}", ray_job["metadata"]["name"])
    assert ray_job["spec"]["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == locked()["ray"]
    given = {path for path, _ in fields(ray_job)}
    cluster = "spec.rayClusterSpec"
    for group in (f"{cluster}.headGroupSpec", f"{cluster}.workerGroupSpecs"):
        for needed in ("template.spec.containers.name", "template.spec.containers.image"):
            assert any(path.startswith(f"{group}.{needed}") for path in given), (group, needed)
        for amount in ("requests", "limits"):
            assert any(path.startswith(f"{group}.template.spec.containers.resources.{amount}.") for path in given)
    for path, value in fields(ray_job):
        assert value in {"Exists", "Equal"} if path.endswith("tolerations.operator") else True
        assert value in {"NoSchedule", "PreferNoSchedule", "NoExecute"} if path.endswith("tolerations.effect") else True
        assert value >= 0 if type(value) is int else True


def test_the_ray_job_starts_over_and_loses_nothing(ray_job: Mapping[str, Any]) -> None:
    spec = ray_job["spec"]
    arguments = sweep_arguments(spec["entrypoint"])
    assert arguments.address == "auto"
    assert str(arguments.out).startswith("s3:"), "a pod's own disk goes with it"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]


def test_trials_run_on_spot_machines_and_the_head_on_none(ray_job: Mapping[str, Any]) -> None:
    cluster = ray_job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert cluster["enableInTreeAutoscaling"]
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pod = workers["template"]["spec"]
    (label, spot), (_, on_demand) = (
        next(iter(each["nodeSelector"].items())) for each in (pod, head["template"]["spec"])
    )
    assert spot == "spot"
    assert on_demand != "spot"
    assert {"key": label, "operator": "Equal", "value": "spot", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["terminationGracePeriodSeconds"] < 30, "a spot machine's notice"
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"], "guaranteed: not evicted for memory before others"


# ray up


def test_ray_up_takes_the_file(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    asked = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    config = prepare_config(asked)
    validate_config(config)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for workers in types.values():
        assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert workers["min_workers"] >= 1
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[key] == [], "the image has all of it; Ray's default is a nightly build of its own"


# The image


def locked() -> dict[str, str]:
    """{name of a distribution: its version in the lock}."""
    lines = re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return dict(lines)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (CLUSTER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_image_has_what_a_sweep_needs() -> None:
    said = instructions()
    copied = [word for name, rest in said if name == "COPY" for word in rest.split()[:-1] if not word.startswith("--")]
    assert all((ROOT / path).exists() for path in copied)
    from search_spaces.machine import PACKAGES

    assert {*PACKAGES, "run_sweep.py", "requirements.lock"} <= set(copied)
    (base,) = [rest for name, rest in said if name == "FROM"]
    assert re.fullmatch(r"python:3\.\d+-slim", base), "by its plain name"
    assert ("USER", "ray") in said
    assert said[-1] == ("ENTRYPOINT", '["python", "/opt/poolsweep/run_sweep.py"]')
    installs = next(rest for name, rest in said if name == "RUN" and "requirements.lock" in rest)
    wanted = "--require-hashes -r requirements.lock"
    assert wanted in installs
    assert wanted in (ROOT / "Makefile").read_text()


def test_the_lock_has_what_clusters_need() -> None:
    """A RayJob is handed to a server, and machines are started by an autoscaler, that plain Ray comes without."""
    have = {re.sub(r"[-_.]+", "-", name) for name in locked()}
    needs = [item for item in importlib.metadata.requires("ray") or () if 'extra == "default"' in item]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", item)[0]) for item in needs}
    assert {"aiohttp", "py-spy"} <= names
    assert names | {"boto3"} <= have


# What is said of them


def test_every_file_is_explained_and_every_command_is_one() -> None:
    text = (CLUSTER / "README.md").read_text()
    for file in CLUSTER.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text
    commands = re.findall(r"sbatch cluster/slurm.sbatch ([^`]*)`", text)
    assert commands
    for command in commands:
        assert sweep_arguments(f"run_sweep.py {command}").space
    for command in re.findall(r'"(python [^"]*run_sweep\.py[^"]*)"', text):
        assert sweep_arguments(command).address == "auto"
