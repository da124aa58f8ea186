"""TensorBoard, MLflow and Weights & Biases, for who has one of them open anyway. The run folder is the record.

Several trials may share one of Tune's, so Tune's callbacks do not fit: these are the libraries' own clients, on the
driver. A trial is logged when it has ended, from what it left in the run folder. No library comes with this project.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import importlib
import importlib.util
import itertools
import json
import netrc
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.errors import RequestError, gather
from search_spaces.grid import Planned

METRICS = ("train_loss", "train_acc", "test_loss", "test_acc", "lr")
OUTCOME = ("best_test_acc", "final_test_acc")
ANSWER_S = 3.0
MANY = 10  # trials that wait for a tracker at a sweep's end: a person should hear of it
PATIENCE = 3  # failures in a row, after which a tracker gets no more trials: each may be a minute of waiting


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch: when it was done, in seconds since 1970, and what came out."""

    epoch: int
    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial that has ended, as a tracker logs it."""

    trial_id: str
    params: Mapping[str, bool | int | float | str]
    points: Sequence[Point]
    outcome: Mapping[str, float]
    status: str

    @property
    def steps(self) -> int:
        return self.points[-1].epoch if self.points else 0

    @property
    def end(self) -> float:
        return self.points[-1].time if self.points else datetime.now(UTC).timestamp()

    @classmethod
    def of(cls, planned: Planned, result: Mapping[str, Any], run: RunFolder) -> Curve:
        """From the run folder, and what the trial's end was reported with."""
        where = {"trial_id": planned.trial.id}
        epochs = run.read_epochs(["epoch", *METRICS, "epoch_s"], where).sort_by("epoch").to_pylist()
        found = run.read_trials(["finished_at", *OUTCOME], where).to_pylist()
        ended = found[0] if found else {}
        end = (ended.get("finished_at") or datetime.now(UTC)).timestamp()
        after = [
            *itertools.accumulate(epoch["epoch_s"] or 0.0 for epoch in reversed(epochs))
        ]  # seconds, from its start
        starts = [end - seconds for seconds in reversed(after)]
        times = [*starts[1:], end]
        points = [
            Point(epoch["epoch"], time, {name: epoch[name] for name in METRICS if epoch[name] is not None})
            for epoch, time in zip(epochs, times, strict=False)
        ]
        outcome = {name: ended[name] for name in OUTCOME if ended.get(name) is not None}
        return cls(planned.trial.id, _params(planned), points, outcome, result["status"])


def _params(planned: Planned) -> dict[str, bool | int | float | str]:
    trial = planned.trial
    named = {
        "pool": trial.pool.label,
        **{f"pool.{name}": value for name, value in trial.pool.params},
        **({"revision": trial.pool.revision} if trial.pool.revision else {}),
        "arch": trial.arch,
        "dataset": trial.dataset,
        "seed": trial.seed,
        "role": planned.role,
        **dataclasses.asdict(trial.recipe),
    }
    plain = (bool, int, float, str)
    return {name: value if isinstance(value, plain) else json.dumps(value) for name, value in named.items()}


class Tracker(Protocol):
    """One library. Made by `Tracker(run, project)` when the first trial has ended."""

    @staticmethod
    def check(run: RunFolder) -> None:
        """Raises RequestError with what keeps it from logging trials of that run folder. Leaves nothing behind."""
        ...

    def log(self, curve: Curve) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard/<trial id>, by TensorBoard's own writer: the one in torch takes torch."""

    def __init__(self, run: RunFolder, project: str):  # noqa: ARG002 - as all of them
        self._folder = run.path / "tensorboard"

    @staticmethod
    def check(run: RunFolder) -> None:
        _on_disk(run, "take it out, or give an --out on a disk: the run folder has every epoch all the same")
        _library("tensorboard", "tensorboard.summary.writer.event_file_writer")

    def log(self, curve: Curve) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self._folder / curve.trial_id
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed: two curves of one name would be joined
        writer = EventFileWriter(str(folder))

        def add(summary: Summary, step: int, time: float) -> None:
            writer.add_event(Event(wall_time=time, step=step, summary=summary))

        def scalars(values: Mapping[str, float]) -> Summary:
            return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

        try:
            start = curve.points[0].time if curve.points else curve.end
            hparams = {**curve.params, "status": curve.status}
            add(summary_v2.hparams_pb(hparams, curve.trial_id, start), 0, start)
            for point in curve.points:
                add(scalars(point.metrics), point.epoch, point.time)
            add(scalars(curve.outcome), curve.steps, curve.end)
        finally:
            writer.close()


class MLflow:
    """A run of the experiment that is called as the space, at MLFLOW_TRACKING_URI or else in RUN/mlruns."""

    def __init__(self, run: RunFolder, project: str):
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = _mlflow_client(uri or (run.path / "mlruns").as_uri())
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)

    @staticmethod
    def check(run: RunFolder) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            _on_disk(run, "set MLFLOW_TRACKING_URI to a server, or give an --out on a disk")
        _library("mlflow", "mlflow")
        if uri and uri.startswith(("http://", "https://")):
            _answers(uri, "start the server, or unset MLFLOW_TRACKING_URI to log into the run folder")
        with tempfile.TemporaryDirectory() as local:
            try:
                _mlflow_client(uri or Path(local).as_uri()).search_experiments(max_results=1)
            except Exception as error:  # whatever a store may raise: nothing can be logged to it
                raise RequestError.of(
                    f"mlflow cannot log to {_public(uri or 'a local folder')}: {_first(error)}"
                ) from None

    def log(self, curve: Curve) -> None:
        from mlflow.entities import Metric, Param, RunTag

        start = curve.points[0].time if curve.points else curve.end
        run = self._client.create_run(self._experiment, round(start * 1000), run_name=curve.trial_id).info.run_id
        metrics = [
            (name, value, point.time, point.epoch) for point in curve.points for name, value in point.metrics.items()
        ]
        metrics += [(name, value, curve.end, curve.steps) for name, value in curve.outcome.items()]
        made = [Metric(name, value, round(time * 1000), step) for name, value, time, step in metrics]
        params = [Param(name, str(value)) for name, value in curve.params.items()]
        tags = [RunTag("status", curve.status), *(RunTag(name, f"{value}") for name, value in curve.outcome.items())]
        self._client.log_batch(run, params=params, tags=tags)
        for first in range(0, len(made), 1000):  # MLflow takes no more at once
            self._client.log_batch(run, metrics=made[first : first + 1000])
        good = curve.status == schema.COMPLETED
        self._client.set_terminated(run, "FINISHED" if good else "FAILED", round(curve.end * 1000))


def _mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    # By itself MLflow tries a server that is gone for a quarter of an hour.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if uri.startswith("file:"):
        # Files need no more than mlflow-skinny, and no database on a network's disk. MLflow 3 wants to be told so.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return MlflowClient(uri)


class WandB:
    """A run of the project that is called as the space; by wandb's own environment."""

    def __init__(self, run: RunFolder, project: str):
        self._folder = None if os.environ.get("WANDB_DIR") else str(run.path)
        self._project = re.sub(r"[/\\#?%:]", "-", project)  # what wandb takes in none

    @staticmethod
    def check(run: RunFolder) -> None:
        if not os.environ.get("WANDB_DIR"):
            _on_disk(run, "set WANDB_DIR to a folder of this machine, or give an --out on a disk")
        _library("wandb", "wandb")
        if os.environ.get("WANDB_MODE", "online") != "online":  # offline, disabled
            return
        address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if not (os.environ.get("WANDB_API_KEY") or _has_login(urllib.parse.urlsplit(address).hostname or "")):
            what = "wandb has no key: set WANDB_API_KEY or run `wandb login`, or log to disk with WANDB_MODE=offline"
            raise RequestError.of(what)
        _answers(address, "log to disk with WANDB_MODE=offline, and send it later with `wandb sync`")

    def log(self, curve: Curve) -> None:
        import wandb  # pyright: ignore

        run = wandb.init(
            project=self._project,
            name=curve.trial_id,
            config=dict(curve.params),
            tags=[curve.status],
            dir=self._folder,
            settings={"console": "off", "silent": True},
        )
        try:
            for point in curve.points:
                run.log(dict(point.metrics), step=point.epoch)
            run.summary.update({**curve.outcome, "status": curve.status})
        finally:
            run.finish(exit_code=0 if curve.status == schema.COMPLETED else 1)


KNOWN: Mapping[str, type[TensorBoard | MLflow | WandB]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def check(names: Sequence[str], run: RunFolder) -> None:
    """Whether every tracker can log trials of a run folder; asks the servers.

    Raises:
        RequestError: with what is wrong with each, at its place in the list.
    """
    gather(*((f"[{index}]", functools.partial(KNOWN[name].check, run)) for index, name in enumerate(names)))


class Trackers:
    """Logs trials with every tracker asked for, each in a thread of its own: the sweep waits for none before its end.

    What a tracker raises is said, once, and harms nothing.
    """

    def __init__(self, names: Sequence[str], run: RunFolder, project: str, say: Callable[[str], None]):
        self._lines = [_Line(name, functools.partial(KNOWN[name], run, project), run, say) for name in names]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for line in self._lines:
            line.finish()

    def ended(self, planned: Planned, result: Mapping[str, Any]) -> None:
        """A trial has ended, and its row and epochs are on record: `status`."""
        for line in self._lines:
            line.add(planned, result)


class _Line:
    """The trials that wait for one tracker."""

    def __init__(self, name: str, make: Callable[[], Tracker], run: RunFolder, say: Callable[[str], None]):
        self._name, self._make, self._run, self._say = name, make, run, say
        self._tracker: Tracker | None = None
        self._failures = 0  # in a row
        self._said = False
        self._added = self._done = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def add(self, planned: Planned, result: Mapping[str, Any]) -> None:
        self._added += 1
        self._thread.submit(self._log, planned, result)

    def finish(self) -> None:
        if (left := self._added - self._done) > MANY:
            self._say(f"tracker {self._name}: {left} trials are still to be logged ...")
        try:
            self._thread.shutdown()
        except BaseException:  # a second Ctrl-C
            self._thread.shutdown(wait=False, cancel_futures=True)
            raise

    def _log(self, planned: Planned, result: Mapping[str, Any]) -> None:
        try:
            if self._failures < PATIENCE:
                self._tracker = self._tracker or self._make()
                self._tracker.log(Curve.of(planned, result, self._run))
                self._failures = 0
        except Exception as error:  # a tracker may raise anything, and the sweep goes on
            self._failures += 1
            if not self._said:
                self._said = True
                self._say(f"tracker {self._name}: {_first(error)}; its trials are in the run folder all the same")
        finally:
            self._done += 1


def _on_disk(run: RunFolder, otherwise: str) -> None:
    if not run.on_disk:
        raise RequestError.of(f"it writes files, which {run} takes none of: it is in an object store; {otherwise}")


def _library(name: str, module: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # or a mere folder of that name, which wandb itself leaves
        raise RequestError.of(f"{name} is not installed here; pip install {name}")
    try:
        importlib.import_module(module)
    except Exception as error:  # what a library of another version raises on import
        raise RequestError.of(f"{name} cannot be imported: {_first(error)}") from None


def _answers(url: str, otherwise: str) -> None:
    try:
        with urllib.request.urlopen(_public(url), timeout=ANSWER_S):  # noqa: S310 - http or https, as the caller saw
            pass
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        what = f"{_public(url)} does not answer within {ANSWER_S:.0f} s ({reason or type(error).__name__}); {otherwise}"
        raise RequestError.of(what) from None


def _public(url: str) -> str:
    """Without a name and a password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def _has_login(host: str) -> bool:
    """Whether `wandb login` has left a key in ~/.netrc."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first(error: BaseException) -> str:
    """`RuntimeError: what it says`, on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
