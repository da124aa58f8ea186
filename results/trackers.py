"""TensorBoard, MLflow and Weights & Biases: how each is told of a trial, by the library's own client.

No library comes with this project. `results.track` follows a run folder and calls them; the run folder is the record.
A tracker that is opened again goes on behind what it has, which it finds out itself: nobody remembers it for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import importlib
import json
import netrc
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.errors import RequestError, first_line
from search_spaces.grid import Planned

METRICS = ("train_loss", "train_acc", "test_loss", "test_acc", "lr")
OUTCOME = ("best_test_acc", "final_test_acc")
ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch: when it was done, in seconds since 1970, and what came out."""

    epoch: int
    time: float
    metrics: Mapping[str, float]


class Tracker(ABC):
    """One library, for the trials of one run folder. A trial's run is what `open` returns, the library's own."""

    module: str  # what is imported of it
    variable: str  # of the environment: where it writes, if not into the run folder

    def __init__(self, run: RunFolder, project: str):
        self._run = run
        self._project = project

    @classmethod
    def check(cls, run: RunFolder) -> None:
        """Raise a RequestError with what keeps it from logging trials of that run folder. Leave nothing behind."""
        if not (run.on_disk or os.environ.get(cls.variable)):
            otherwise = "give an --out on a disk" + (f", or set {cls.variable}" if cls.variable else "")
            raise RequestError.of(f"it writes files, which {run} takes none of: it is in an object store; {otherwise}")
        try:
            importlib.import_module(cls.module)
        except Exception as error:  # what a library of another version raises on import
            name = cls.module.partition(".")[0]
            raise RequestError.of(f"{name} cannot be imported: {first_line(error)}; pip install {name}") from None

    @classmethod
    def place(cls) -> str:
        """Return the server that it logs to, without secrets; empty for the run folder."""
        return ""

    @abstractmethod
    def open(self, planned: Planned, start: float) -> tuple[Any, int]:
        """Open the run of a trial, which may be there; return it, and the last epoch that it has.

        `start` is when its first epoch began, in seconds since 1970.
        """

    @abstractmethod
    def log(self, opened: Any, points: Sequence[Point]) -> None:
        """Log epochs; they are there when it returns."""

    @abstractmethod
    def end(self, opened: Any, status: str, outcome: Point) -> None:
        """Log how the trial ended, after its last epoch or at epoch 0 without one, and close the run."""

    @abstractmethod
    def close(self, opened: Any) -> None:
        """Leave the run as it is: the trial may go on."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard/<trial id>, by TensorBoard's own writer: the one in torch takes torch.

    Nobody can ask them what they have, so a run that is opened is written anew from its first epoch. A TensorBoard that
    reads them meanwhile drops what it has at a session start. It looks for the old files still: empty ones stay behind.
    """

    module = "tensorboard.summary.writer.event_file_writer"
    variable = ""

    def open(self, planned: Planned, start: float) -> tuple[Any, int]:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self._run.path / "tensorboard" / planned.trial.id
        if folder.resolve().is_relative_to(self._run.path.resolve()):  # a link may lead anywhere
            for old in folder.glob("events.*"):
                old.unlink()
                old.touch()
        opened = EventFileWriter(str(folder))
        opened.add_event(Event(wall_time=start, session_log=SessionLog(status=SessionLog.START)))
        _add(opened, 0, start, summary_v2.hparams_pb(_params(planned), planned.trial.id, start))
        opened.flush()
        return opened, 0

    def log(self, opened: Any, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        for point in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.metrics.items()]
            _add(opened, point.epoch, point.time, Summary(value=values))
        opened.flush()

    def end(self, opened: Any, status: str, outcome: Point) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS  # pyright: ignore
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo  # pyright: ignore
        from tensorboard.plugins.text.summary_v2 import text_pb

        success = STATUS_SUCCESS if status == schema.COMPLETED else STATUS_FAILURE
        info = HParamsPluginData(session_end_info=SessionEndInfo(status=success, end_time_secs=outcome.time))
        what = metadata.create_summary_metadata(info)
        end = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=what, tensor=metadata.NULL_TENSOR)
        self.log(opened, [outcome])
        for summary in (text_pb("status", status), Summary(value=[end])):
            _add(opened, outcome.epoch, outcome.time, summary)
        self.close(opened)

    def close(self, opened: Any) -> None:
        opened.close()


def _add(writer: Any, step: int, time: float, summary: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

    writer.add_event(Event(wall_time=time, step=step, summary=summary))


class MLflow(Tracker):
    """A run for each trial, of the experiment that is called as the space.

    It is at MLFLOW_TRACKING_URI or else in RUN/mlruns. Two run folders may have one trial: each has a run of its own,
    with the folder as the tag `run_folder`.
    """

    module = "mlflow.entities"
    variable = "MLFLOW_TRACKING_URI"

    def __init__(self, run: RunFolder, project: str):
        super().__init__(run, project)
        self._client = _mlflow_client(os.environ.get(self.variable) or (run.path / "mlruns").as_uri())
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)
        self._tags = {"run_folder": _folder(run)}
        self._runs: dict[str, str] = {}
        page = None
        while page != "":
            runs = self._client.search_runs([self._experiment], max_results=1000, page_token=page)
            mine = [run.info for run in runs if self._tags.items() <= run.data.tags.items()]
            self._runs |= {info.run_name: info.run_id for info in mine}
            page = runs.token or ""

    @classmethod
    def check(cls, run: RunFolder) -> None:
        super().check(run)
        if uri := os.environ.get(cls.variable):
            try:
                _mlflow_client(uri).search_experiments(max_results=1)
            except Exception as error:  # whatever a store may raise: nothing can be logged to it
                what = f"it cannot log to {_public(uri)}: {_public(first_line(error))}"
                raise RequestError.of(f"{what}; without MLFLOW_TRACKING_URI it logs into the run folder") from None

    @classmethod
    def place(cls) -> str:
        return _public(os.environ.get(cls.variable, ""))

    def open(self, planned: Planned, start: float) -> tuple[Any, int]:
        from mlflow.entities import Param, RunTag

        trial_id = planned.trial.id
        if trial_id not in self._runs:
            made = self._client.create_run(self._experiment, _ms(start), self._tags, run_name=trial_id)
            self._runs[trial_id] = made.info.run_id
        opened = self._runs[trial_id]
        there = self._client.get_run(opened).data.params
        params = [Param(name, str(value)) for name, value in _params(planned).items() if name not in there]
        self._client.log_batch(opened, params=params, tags=[RunTag("status", "running")])
        self._client.update_run(opened, "RUNNING")
        last = self._client.get_metric_history(opened, METRICS[-1])  # which an epoch has if it has all
        return opened, max((one.step for one in last), default=0)

    def log(self, opened: Any, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, _ms(point.time), point.epoch)
            for point in points
            for name, value in point.metrics.items()
        ]
        for start in range(0, len(metrics), 1000):  # MLflow takes no more at once
            self._client.log_batch(opened, metrics=metrics[start : start + 1000])

    def end(self, opened: Any, status: str, outcome: Point) -> None:
        there = self._client.get_run(opened).data.metrics  # the outcome too, if the follower was killed behind it
        new = {name: value for name, value in outcome.metrics.items() if there.get(name) != value}
        self.log(opened, [dataclasses.replace(outcome, metrics=new)])
        self._client.set_tag(opened, "status", status)
        good = status == schema.COMPLETED
        self._client.set_terminated(opened, "FINISHED" if good else "FAILED", _ms(outcome.time))

    def close(self, opened: Any) -> None:
        """It stays RUNNING."""


def _mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    # By itself MLflow tries a server that is gone for a quarter of an hour.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if uri.startswith("file:"):
        # Files need no more than mlflow-skinny, and no database on a network's disk. MLflow 3 wants to be told so.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return MlflowClient(uri)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class WandB(Tracker):
    """A run for each trial, of the project that is called as the space; by wandb's own environment.

    Online a run that is resumed says what it has. Offline none is resumed: each is another folder with the same id, and
    `wandb sync` puts the later one in the place of the earlier, so that each has every epoch.
    """

    module = "wandb.sdk"  # `wandb` may be the mere folder that it leaves where it ran
    variable = "WANDB_DIR"

    @classmethod
    def check(cls, run: RunFolder) -> None:
        super().check(run)
        address, offline = cls.place(), "log to disk with WANDB_MODE=offline, and send it later with `wandb sync`"
        if os.environ.get("WANDB_MODE", "online") != "online":
            return
        if not (os.environ.get("WANDB_API_KEY") or _has_login(urllib.parse.urlsplit(address).hostname or "")):
            raise RequestError.of(f"wandb has no key: set WANDB_API_KEY, run `wandb login`, or {offline}")
        try:
            urllib.request.urlopen(address, timeout=ANSWER_S).close()  # noqa: S310 - as the environment has it
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except (OSError, ValueError, http.client.HTTPException) as error:
            what = f"{address} does not answer within {ANSWER_S:.0f} s ({first_line(error)})"
            raise RequestError.of(f"{what}; {offline}") from None

    @classmethod
    def place(cls) -> str:
        return _public(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))

    def open(self, planned: Planned, start: float) -> tuple[Any, int]:  # noqa: ARG002 - wandb takes no times
        import wandb  # pyright: ignore

        folder = hashlib.sha256(_folder(self._run).encode()).hexdigest()[:6]
        opened = wandb.init(
            project=re.sub(r"[/\\#?%:]", "-", self._project),  # none of which it takes
            name=planned.trial.id,
            id=f"{planned.trial.id}-{folder}",  # the same trial in another run folder is another run
            resume="allow",
            reinit="create_new",  # several are open at once
            config=_params(planned),
            tags=[planned.role],
            dir=None if os.environ.get("WANDB_DIR") else str(self._run.path),
            settings={"console": "off", "silent": True},
        )
        return opened, max(opened.step - 1, 0)  # it stands at the step after its last one

    def log(self, opened: Any, points: Sequence[Point]) -> None:
        for point in points:
            opened.log(dict(point.metrics), step=point.epoch, commit=True)  # else a step is sent with the next one

    def end(self, opened: Any, status: str, outcome: Point) -> None:
        opened.summary.update({**outcome.metrics, "status": status})
        opened.tags = (*opened.tags, status)
        opened.finish(exit_code=0 if status == schema.COMPLETED else 1)

    def close(self, opened: Any) -> None:
        opened.mark_preempting()  # so it is shown as one that goes on, neither finished nor crashed
        opened.finish(exit_code=1)


KNOWN: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def _folder(run: RunFolder) -> str:
    """Return which run folder it is, from anywhere on this machine, without secrets."""
    return run.where if run.on_disk else str(run)


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


def _public(text: str) -> str:
    """Without the names, passwords and queries of URLs."""
    return re.sub(r"(?<=//)[^/\s]*@|\?\S*", "", text)


def _has_login(host: str) -> bool:
    """Whether `wandb login` has left a key in ~/.netrc."""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
