"""A process for each code: what it answers, how it ends, and what it leaves behind in no other."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from trainer import isolation
from trainer.isolation import Child, ChildDiedError, child

ROOT = Path(__file__).parents[1]


def echo(requests: Connection) -> None:
    while (asked := requests.recv()) is not None:
        for part in asked:
            requests.send((os.getpid(), part))
        requests.send(None)


def obeys(requests: Connection) -> None:
    """Does what it is told."""
    while (order := requests.recv()) is not None:
        if order == "exit":
            os._exit(7)
        if order == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise ValueError("mine")
        if order == "change":
            torch.set_default_dtype(torch.float64)
            os.environ["CHANGED"] = "1"
        requests.send((torch.get_default_dtype(), os.environ.get("CHANGED")))
        requests.send(None)


def test_answers_come_in_order_from_another_process() -> None:
    process = Child(echo)
    assert list(process.ask("abc")) == [(process.pid, part) for part in "abc"]
    assert list(process.ask(())) == []
    assert process.pid != os.getpid()
    assert process.close() == process.ended == "exit code 0"
    assert process.close() == "exit code 0"


@pytest.mark.parametrize(("order", "ended"), [("exit", "exit code 7"), ("kill", "SIGKILL"), ("raise", "exit code 1")])
def test_how_it_ended_is_said(order: str, ended: str) -> None:
    process = Child(obeys)
    with pytest.raises(ChildDiedError, match=f"has ended: {ended}"):
        list(process.ask(order))
    assert process.ended == ended


def test_one_that_is_left_in_the_middle_is_ended() -> None:
    process = Child(echo)
    answers = process.ask("abc")
    next(answers)
    del answers
    assert process.ended == "SIGKILL"


def test_one_code_has_one_process_and_another_a_fresh_one() -> None:
    mine = child("mine", obeys)
    assert list(mine.ask("change")) == [(torch.float64, "1")]
    assert child("mine", obeys) is mine
    assert list(mine.ask("look")) == [(torch.float64, "1")]
    theirs = child("theirs", obeys)
    assert mine.ended == "exit code 0"
    assert list(theirs.ask("look")) == [(torch.float32, None)]
    with pytest.raises(ChildDiedError):
        list(theirs.ask("exit"))
    again = child("theirs", obeys)
    assert again is not theirs
    assert list(again.ask("look")) == [(torch.float32, None)]
    child("", obeys).close()
    assert torch.get_default_dtype() == torch.float32


def test_what_it_has_started_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PATIENCE_S", 0.2)

    def stubborn(requests: Connection) -> None:
        requests.recv()
        requests.send(None)
        threading.Event().wait()

    process = Child(stubborn)
    list(process.ask(1))
    assert process.close() == "SIGKILL"


def test_it_ends_with_its_parent_whatever_it_is_doing() -> None:
    """In a regular expression that holds Python's lock for longer than anybody waits."""
    code = (
        "import os, re, sys, threading\nfrom trainer.isolation import Child\n"
        "def serve(requests):\n    print(os.getpid(), flush=True)\n    re.fullmatch('(a+)+b', 'a' * 60)\n"
        "process = Child(serve)\nsys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    assert select.select([handle], [], [], 10)[0], "it outlived its parent by ten seconds"


def test_what_it_has_started_ends_with_it_and_holds_nobody() -> None:
    """A process that it forked has its end of the pipe too."""

    def forks(requests: Connection) -> None:
        requests.recv()
        if (pid := os.fork()) == 0:
            threading.Event().wait()
        requests.send(pid)
        os.kill(os.getpid(), signal.SIGKILL)

    process = Child(forks)
    answers = process.ask(1)
    handle = os.pidfd_open(next(answers))
    with pytest.raises(ChildDiedError, match="SIGKILL"):
        next(answers)
    assert select.select([handle], [], [], 10)[0], "it was left behind"


def test_a_file_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at the end of a process, nor, once another comes, of one that was killed."""
    text = "from torch import nn\nclass CustomPool(nn.Module): ...\n"
    code = (
        "import os, sys\nfrom trainer.user_module import load_class\nfrom trainer.isolation import Child\n"
        "from search_spaces.user_code import Source\ndef serve(requests):\n    requests.recv()\n"
        f"    load_class(Source({text!r}))\n    requests.send(None)\n    requests.recv()\n"
        "process = Child(serve)\nlist(process.ask(1))\nprint(len(os.listdir(os.environ['TMPDIR'])))\n"
        "process.kill() if 'kill' in sys.argv else process.close()\nprint(len(os.listdir(os.environ['TMPDIR'])))\n"
    )

    def counts(*arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, check=True, stdout=-1)
        return done.stdout.decode().replace("\n", " ")

    assert counts("kill") == "1 1 "
    assert counts() == "1 0 ", "nor is that of the one before left"


def test_it_computes_what_its_parent_would() -> None:
    """With two threads, which a fork of a process that has used them would wait for for ever."""
    code = (
        "import torch\nfrom trainer.isolation import Child\ntorch.set_num_threads(2)\n"
        "def compute():\n    torch.manual_seed(0)\n    a = torch.randn(700, 700, requires_grad=True)\n"
        "    (a @ a).relu().sum().backward()\n    return a.grad.double().sum().item()\n"
        "def serve(requests):\n    requests.recv()\n    requests.send(compute())\n    requests.send(None)\n"
        "(theirs,) = Child(serve).ask(1)\nassert theirs == compute(), theirs\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
