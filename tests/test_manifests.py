"""`cluster/`: what can be known of these files without a cluster."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli

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
    """`batch(code, on)`: the script as SLURM would start it, with a driver that ends so; and what it called."""
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

    def run(code: int, on: str) -> tuple[subprocess.Popen[str], Path]:
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
        return process, calls

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (130, True)])
def test_a_job_is_queued_again_when_its_sweep_was_interrupted_only(batch: Any, code: int, requeued: bool) -> None:
    process, calls = batch(code, "now")
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert ("scontrol requeue 4711" in calls.read_text()) is requeued


def warn_once(process: subprocess.Popen[str], calls: Path, who: str) -> None:
    """Sends the script the warning, and no other process, as --signal=B: does, once `who` has been called."""
    deadline = time.monotonic() + 30
    while not any(line.startswith(f"{who} ") for line in calls.read_text().splitlines()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # polls another process
    process.send_signal(signal.SIGUSR1)


def test_the_warning_reaches_the_driver_and_the_job_waits_for_it(batch: Any) -> None:
    process, calls = batch(130, "USR1")
    warn_once(process, calls, "driver")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    srun, driver, requeue = (line for line in calls.read_text().splitlines() if "show" not in line)
    assert requeue == "scontrol requeue 4711"
    assert driver == f"driver run_sweep.py --address 10.0.0.5:{20000 + 4711} --space mine.yaml"
    assert sweep_arguments(driver).space == "mine.yaml"
    assert f"symmetric-run --address 10.0.0.5:{20000 + 4711} --min-nodes 2 --num-cpus 32 " in srun


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_sweep_that_ends_by_itself_after_the_warning_is_not_queued_again(batch: Any, code: int) -> None:
    process, calls = batch(code, "USR1")
    warn_once(process, calls, "driver")
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert "requeue" not in calls.read_text()


@pytest.mark.parametrize(("on", "who"), [("never", "srun"), ("deaf", "driver")])
def test_a_warning_that_comes_before_the_driver_listens_ends_the_step_and_queues_the_job_again(
    batch: Any, on: str, who: str
) -> None:
    process, calls = batch(0, on)
    warn_once(process, calls, who)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "scontrol requeue 4711" in calls.read_text()


def test_symmetric_run_takes_the_options_it_is_given(batch: Any) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    process, calls = batch(0, "now")
    process.communicate(timeout=30)
    words = shlex.split(next(line for line in calls.read_text().splitlines() if line.startswith("srun")))
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

_ANY: dict[str, Any] = {}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    named = {name.replace("_", "-"): schema for name, schema in properties.items()}
    return {"type": "object", "properties": named, "required": required.split(), "additionalProperties": False}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


_TEXTS = {
    "type": "object",
    "additionalProperties": _TEXT,
}  # 4 for "4" is refused by the API
_CONTAINER = _object(
    "name image resources",
    name=_TEXT,
    image=_TEXT,
    envFrom=_list(_object("secretRef", secretRef=_object("name", name=_TEXT))),
    resources=_object("requests limits", requests=_TEXTS, limits=_TEXTS),
    volumeMounts=_list(_object("name mountPath", name=_TEXT, mountPath=_TEXT)),
)
_POD = _object(
    "spec",
    spec=_object(
        "containers",
        containers=_list(_CONTAINER),
        nodeSelector=_TEXTS,
        terminationGracePeriodSeconds=_COUNT,
        tolerations=_list(
            _object(
                "key operator effect",
                key=_TEXT,
                operator={"enum": ["Exists", "Equal"]},
                value=_TEXT,
                effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            )
        ),
        volumes=_list(
            _object("name", name=_TEXT, persistentVolumeClaim=_object("claimName", claimName=_TEXT)),
        ),
    ),
)
_WORKERS = _object(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    rayStartParams=_TEXTS,
    template=_POD,
)
# The part of KubeRay's CRD (ray.io_rayjobs.yaml, v1) that is in use here. The API server drops fields that it does not
# know without a word, so none is allowed.
RAY_JOB = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object("name", name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=_object(
        "entrypoint rayClusterSpec",
        entrypoint=_TEXT,
        backoffLimit=_COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=_COUNT,
        rayClusterSpec=_object(
            "headGroupSpec workerGroupSpecs",
            rayVersion=_TEXT,
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=_object(idleTimeoutSeconds=_COUNT),
            headGroupSpec=_object("rayStartParams template", rayStartParams=_TEXTS, template=_POD),
            workerGroupSpecs=_list(_WORKERS),
        ),
    ),
)


@pytest.fixture(scope="module")
def ray_job() -> Mapping[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())


def test_the_ray_job_is_one(ray_job: Mapping[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(ray_job, RAY_JOB)
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == locked()["ray"]


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
