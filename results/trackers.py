"""TensorBoard, MLflow and Weights & Biases: what each is told of a trial, and what it has of it already.

These are the libraries' own clients, and no library comes with this project. `results.track` follows a run folder and
calls them; the run folder is the record.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import importlib.util
import netrc
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.errors import RequestError

METRICS = ("train_loss", "train_acc", "test_loss", "test_acc", "lr")
OUTCOME = ("best_test_acc", "final_test_acc")
ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A trial that a tracker opens a run for.

    Attributes:
        start: when its first epoch began, in seconds since 1970.
    """

    trial_id: str
    role: str
    params: Mapping[str, bool | int | float | str]
    start: float


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch: when it was done, in seconds since 1970, and what came out."""

    epoch: int
    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended: after its last epoch, or at epoch 0 without one."""

    status: str
    at: Point


@dataclass(frozen=True, slots=True)
class Logged:
    """What a tracker was told of a trial, as far as that is remembered.

    Attributes:
        run: the tracker's own id of its run.
        epoch: the last one.
        ended: when the trial ended, in ISO 8601, where its outcome was logged; None while it runs.
    """

    run: str
    epoch: int = 0
    ended: str | None = None


class Session(Protocol):
    """A tracker's run of one trial, open for more.

    Attributes:
        run: the tracker's own id of it.
        epoch: the last one that the tracker has, as far as it was asked.
    """

    run: str
    epoch: int

    def log(self, points: Sequence[Point]) -> None:
        """Log epochs; they are there when it returns."""
        ...

    def end(self, outcome: Outcome) -> None:
        """Log the outcome, and close the run."""
        ...

    def close(self) -> None:
        """Leave the run as it is: the trial may go on."""
        ...


class Tracker(Protocol):
    """One library, for the trials of one run folder; made by `Tracker(run, project)`.

    Attributes:
        where: to what place it logs, without secrets. What is remembered of another place means nothing.
    """

    where: str

    @staticmethod
    def check(run: RunFolder) -> None:
        """Raise a RequestError with what keeps it from logging trials of that run folder. Leaves nothing behind."""
        ...

    def open(self, trial: Begun, known: Logged | None) -> Session:
        """Open the run of a trial: anew, or where it was left.

        Args:
            known: what is remembered. It may be less than the tracker was told, by a follower that was killed.
        """
        ...


class TensorBoard:
    """Event files in RUN/tensorboard/<trial id>, by TensorBoard's own writer: the one in torch takes torch."""

    def __init__(self, run: RunFolder, project: str):  # noqa: ARG002 - as all of them
        self._folder = run.path / "tensorboard"
        self.where = "tensorboard"

    @staticmethod
    def check(run: RunFolder) -> None:
        _on_disk(run, "take it out, or give an --out on a disk: the run folder has every epoch all the same")
        _library("tensorboard", "tensorboard.summary.writer.event_file_writer")

    def open(self, trial: Begun, known: Logged | None) -> Session:
        return _Events(self._folder / trial.trial_id, trial, known)


class _Events:
    """The event files of a trial.

    Nobody can ask them what they have. So the last epoch that is remembered is logged once more, after a session start,
    at which readers drop that step and all behind it. A trial that goes on after it had ended starts anew, since
    readers keep the first end that they are told.
    """

    def __init__(self, folder: Path, trial: Begun, known: Logged | None):
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        goes_on = known and known.epoch and known.ended is None and folder.is_dir()
        self.run = trial.trial_id
        self.epoch = known.epoch - 1 if known and goes_on else 0
        if not goes_on:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = EventFileWriter(str(folder))
        self._add(self.epoch + 1, trial.start, session_log=SessionLog(status=SessionLog.START))
        if not goes_on:
            self._add(0, trial.start, summary=summary_v2.hparams_pb(dict(trial.params), trial.trial_id, trial.start))
        self._writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._scalars(point)
            self.epoch = point.epoch
        self._writer.flush()

    def end(self, outcome: Outcome) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS  # pyright: ignore
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo  # pyright: ignore
        from tensorboard.plugins.text.summary_v2 import text_pb

        status = STATUS_SUCCESS if outcome.status == schema.COMPLETED else STATUS_FAILURE
        info = SessionEndInfo(status=status, end_time_secs=outcome.at.time)
        what = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
        end = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=what, tensor=metadata.NULL_TENSOR)
        self._scalars(outcome.at)
        self._add(outcome.at.epoch, outcome.at.time, summary=text_pb("status", outcome.status))
        self._add(outcome.at.epoch, outcome.at.time, summary=Summary(value=[end]))
        self.close()

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, point: Point) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.metrics.items()]
        self._add(point.epoch, point.time, summary=Summary(value=values))

    def _add(self, step: int, time: float, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

        self._writer.add_event(Event(wall_time=time, step=step, **what))


class MLflow:
    """A run for each trial, of the experiment that is called as the space.

    It is at MLFLOW_TRACKING_URI or else in RUN/mlruns. Two run folders may have one trial: each has a run of its own,
    with the folder as the tag `run_folder`.
    """

    def __init__(self, run: RunFolder, project: str):
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = _mlflow_client(uri or (run.path / "mlruns").as_uri())
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)
        self._run_folder = _place(run)
        self._found: dict[str, str] | None = None
        self.where = f"{_public(uri).partition('?')[0] if uri else 'mlruns'} {self._experiment}"

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
                    f"mlflow cannot log to {_public(uri or 'a local folder')}: {first(error)}"
                ) from None

    def open(self, trial: Begun, known: Logged | None) -> Session:
        run = known.run if known else self._runs().get(trial.trial_id)
        if run is None:
            tags = {"run_folder": self._run_folder}
            made = self._client.create_run(self._experiment, _ms(trial.start), tags, run_name=trial.trial_id)
            run = self._runs()[trial.trial_id] = made.info.run_id
        return _MLflowRun(self._client, run, trial)

    def _runs(self) -> dict[str, str]:
        """Return {trial id: run} of this run folder's: a follower that was killed may not have remembered all."""
        if self._found is None:
            self._found, page = {}, None
            while page != "":
                runs = self._client.search_runs([self._experiment], max_results=1000, page_token=page)
                mine = (run.info for run in runs if run.data.tags.get("run_folder") == self._run_folder)
                self._found |= {info.run_name: info.run_id for info in mine}
                page = runs.token or ""
        return self._found


class _MLflowRun:
    """A run in MLflow, which takes what it has as new: so it is asked for what it has when the run is opened."""

    def __init__(self, client: Any, run: str, trial: Begun):
        from mlflow.entities import Param, RunTag

        self._client = client
        self.run, self.epoch = run, 0
        found = client.get_run(run)
        there = [name for name in (*METRICS, *OUTCOME) if name in found.data.metrics]
        self._has = {(name, one.step) for name in there for one in client.get_metric_history(run, name)}
        params = [Param(name, str(value)) for name, value in trial.params.items() if name not in found.data.params]
        client.log_batch(run, params=params, tags=[RunTag("status", "running")])
        if found.info.status != "RUNNING":
            client.update_run(run, "RUNNING")

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        new = [
            Metric(name, value, _ms(point.time), point.epoch)
            for point in points
            for name, value in point.metrics.items()
            if (name, point.epoch) not in self._has
        ]
        for start in range(0, len(new), 1000):  # MLflow takes no more at once
            self._client.log_batch(self.run, metrics=new[start : start + 1000])
        self._has |= {(one.key, one.step) for one in new}
        self.epoch = points[-1].epoch if points else self.epoch

    def end(self, outcome: Outcome) -> None:
        from mlflow.entities import RunTag

        self.log([outcome.at])
        tags = [RunTag("status", outcome.status), *(RunTag(*one) for one in _texts(outcome.at.metrics))]
        self._client.log_batch(self.run, tags=tags)
        good = outcome.status == schema.COMPLETED
        self._client.set_terminated(self.run, "FINISHED" if good else "FAILED", _ms(outcome.at.time))

    def close(self) -> None:
        """It stays RUNNING."""


def _texts(values: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in values.items()]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


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
    """A run for each trial, of the project that is called as the space; by wandb's own environment."""

    def __init__(self, run: RunFolder, project: str):
        self._folder = None if os.environ.get("WANDB_DIR") else str(run.path)
        self._project = re.sub(r"[/\\#?%:]", "-", project)  # what wandb takes in none
        self._suffix = hashlib.sha256(_place(run).encode()).hexdigest()[:6]
        self.where = f"{_public(_wandb_server())} {self._project}"

    @staticmethod
    def check(run: RunFolder) -> None:
        if not os.environ.get("WANDB_DIR"):
            _on_disk(run, "set WANDB_DIR to a folder of this machine, or give an --out on a disk")
        _library("wandb", "wandb")
        if not _wandb_is_online():
            return
        address = _wandb_server()
        if not (os.environ.get("WANDB_API_KEY") or _has_login(urllib.parse.urlsplit(address).hostname or "")):
            what = "wandb has no key: set WANDB_API_KEY or run `wandb login`, or log to disk with WANDB_MODE=offline"
            raise RequestError.of(what)
        _answers(address, "log to disk with WANDB_MODE=offline, and send it later with `wandb sync`")

    def open(self, trial: Begun, known: Logged | None) -> Session:
        import wandb  # pyright: ignore

        run = wandb.init(
            project=self._project,
            name=trial.trial_id,
            # The same trial in another run folder is another run: one that is resumed drops the steps that it has.
            id=known.run if known else f"{trial.trial_id}-{self._suffix}",
            resume="allow",
            reinit="create_new",  # several are open at once
            config=dict(trial.params),
            tags=[trial.role],
            dir=self._folder,
            settings={"console": "off", "silent": True},
        )
        # One that is resumed stands at the step after its last one. Offline nobody knows of it.
        known_epoch = known.epoch if known else 0
        return _WandBRun(run, trial.role, max(run.step - 1, 0) if _wandb_is_online() else known_epoch)


class _WandBRun:
    def __init__(self, run: Any, role: str, epoch: int):
        self._run, self._role = run, role
        self.run, self.epoch = run.id, epoch

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            # Else a step is sent with the next one.
            self._run.log(dict(point.metrics), step=point.epoch, commit=True)
            self.epoch = point.epoch

    def end(self, outcome: Outcome) -> None:
        self._run.summary.update({**outcome.at.metrics, "status": outcome.status})
        self._run.tags = (self._role, outcome.status)
        self._run.finish(exit_code=0 if outcome.status == schema.COMPLETED else 1)

    def close(self) -> None:
        self._run.mark_preempting()  # so it is shown as one that goes on, neither finished nor crashed
        self._run.finish(exit_code=1)


def _wandb_server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _wandb_is_online() -> bool:
    return os.environ.get("WANDB_MODE", "online") == "online"  # and not offline or disabled


KNOWN: Mapping[str, type[TensorBoard | MLflow | WandB]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def first(error: BaseException) -> str:
    """Return `RuntimeError: what it says`, on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# What keeps a library from logging


def _place(run: RunFolder) -> str:
    """Return which run folder it is, from anywhere on this machine, without secrets."""
    return run.where if run.on_disk else str(run)


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
        raise RequestError.of(f"{name} cannot be imported: {first(error)}") from None


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
