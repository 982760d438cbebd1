"""The processes of a run find each other, or say why not, and fall together."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from parity_tests.tools.checkout import ROOT
from train.errors import TrainError, TrainingFailed
from train.machines import processes

FLAGS = {"steps": 120, "warmup_steps": (1, 2), "process_id": 0, "data": None}


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def meet(*others: dict, count: int, knock=()) -> list[Any]:
    """Has process 0 and others meet; returns what became of each."""
    server = processes.listen("127.0.0.1:0")
    address = address_of(server)
    for text in knock:
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as other:
            other.sendall(text)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(processes.receive_all, server, FLAGS, count)
        joined = [
            pool.submit(processes.join, address, flags, flags["process_id"])
            for flags in others
        ]
        return [each.exception() or each.result() for each in (first, *joined)]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(processes, "MEETING_SECONDS", 0.3)


def close(*lines: processes.Line) -> None:
    for line in lines:
        line.close()


def test_processes_meet_and_can_be_heard():
    others = [FLAGS | {"process_id": process} for process in (1, 2)]
    lines, *theirs = meet(*others, count=3)
    assert sorted(lines) == [1, 2]
    lines[2].send("hello")
    assert theirs[1].receive() == "hello"
    close(*lines.values(), *theirs)


def test_what_is_a_processs_own_may_differ():
    other = FLAGS | {"process_id": 1, "data": "/elsewhere"}
    lines, line = meet(other, count=2)
    assert list(lines) == [1]
    close(*lines.values(), line)


STRAY = [
    *(b"GET / HTTP/1.1\n", b"5\n", b"[1, 2]\n", b"[[1], {}]\n", b"[true, {}]\n"),
    b"\x16\x03\x01\xff\xff\n",  # as TLS begins
]


def test_who_knocks_by_mistake_is_sent_away():
    lines, line = meet(
        FLAGS | {"process_id": 1},
        count=2,
        knock=STRAY,
    )
    assert list(lines) == [1]
    close(*lines.values(), line)


def test_differing_flags_are_named(impatient):
    missed, refused = meet(FLAGS | {"process_id": 1, "steps": 200}, count=2)
    assert isinstance(refused, TrainError)
    assert str(refused) == "--steps (=200) is 120 in process 0"
    assert isinstance(missed, TrainingFailed)


def test_missing_process_is_named_to_all(impatient):
    for error in meet(FLAGS | {"process_id": 1}, count=3):
        assert "process 2 of 3 did not come within 0 s" in str(error)


def test_two_processes_of_one_number_are_refused(impatient):
    other = FLAGS | {"process_id": 1}
    _, *errors = meet(other, other, count=3)
    said = {str(error).split(" did")[0] for error in errors}
    assert said == {
        "--process-id (=1) is taken by another process",
        "process 2 of 3",
    }


def test_process_that_died_while_it_waited_may_come_again():
    server = processes.listen("127.0.0.1:0")
    others = [FLAGS | {"process_id": process} for process in (1, 2)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(processes.receive_all, server, FLAGS, 3)
        dies = processes.Line(socket.create_connection(server.getsockname()[:2]))
        dies.send(json.dumps([1, FLAGS | {"process_id": 1}]))
        dies.close()
        joined = [
            pool.submit(processes.join, address_of(server), each, each["process_id"])
            for each in others
        ]
        lines, theirs = first.result(), [each.result() for each in joined]
    lines[1].send("hello")
    assert theirs[0].receive() == "hello"
    close(*lines.values(), *theirs)


def test_taken_port_is_named():
    with processes.listen("127.0.0.1:0") as server:
        address = address_of(server)
        message = f"--coordinator \\(={address}\\) cannot be had: .*, or give another"
        with pytest.raises(TrainError, match=message):
            processes.listen(address)


def test_missing_process_0_is_named(impatient):
    with processes.listen("127.0.0.1:0") as server:
        address = address_of(server)
    message = f"process 0 does not answer at --coordinator \\(={address}\\)"
    with pytest.raises(TrainingFailed, match=message):
        processes.join(address, FLAGS, 1)


# A process that meets the others, says so, and does as its first line of input asks.
MEMBER = """
import sys, time
from train.machines import processes
from train.errors import TrainingFailed, TrainingStopped
address, process, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if process == 0:
    server = processes.listen(address)
    print(server.getsockname()[1], flush=True)
    lines = processes.receive_all(server, {}, count)
else:
    lines = {0: processes.join(address, {}, process)}
try:
    with processes.Watch(lines, process, count):
        print("there", flush=True)
        match sys.stdin.readline().strip():
            case "fail": raise TrainingFailed("train: the disk is full")
            case "break": raise KeyError("a bug")
            case "stop": raise TrainingStopped("stopped")
            case "done": print("done", flush=True)
except TrainingStopped:
    print("stopped by itself")
    sys.exit(75)
"""
LOST = (
    "train: error: process {} of 3 has ended before the run did; start all of them "
    "again, and they go on from the last checkpoint\n"
)


class Run:
    """Three processes that watch each other, and what is told them."""

    def __init__(self):
        self.members = [self._start("127.0.0.1:0", 0)]
        port = self.said(0)
        self.members += [self._start(f"127.0.0.1:{port}", each) for each in (1, 2)]
        for process in range(3):
            assert self.said(process) == "there"

    def _start(self, address: str, process: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", MEMBER, address, str(process), "3"],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            text=True,
            cwd=ROOT,
        )

    def said(self, process: int) -> str:
        """Waits for the next line of a process."""
        output = self.members[process].stdout
        assert output is not None
        return output.readline().strip()

    def tell(self, process: int, word: str) -> None:
        channel = self.members[process].stdin
        assert channel is not None
        channel.write(f"{word}\n")
        channel.flush()

    def ends(self) -> list[tuple[int, str]]:
        """Waits for all; returns the exit status and the errors of each."""
        results = []
        for member in self.members:
            # Not communicate(), which would close the input and so tell them to go on.
            status = member.wait(timeout=30)
            assert member.stderr is not None
            results.append((status, member.stderr.read()))
        for member in self.members:
            for channel in (member.stdin, member.stdout, member.stderr):
                assert channel is not None
                channel.close()
        return results


def test_killed_process_is_named_by_all_others():
    run = Run()
    os.kill(run.members[2].pid, signal.SIGKILL)
    assert run.ends() == [(1, LOST.format(2)), (1, LOST.format(2)), (-9, "")]


def test_killed_process_0_is_named_by_all_others():
    run = Run()
    os.kill(run.members[0].pid, signal.SIGKILL)
    assert run.ends() == [(-9, ""), (1, LOST.format(0)), (1, LOST.format(0))]


def test_killed_process_is_named_by_those_who_are_done():
    run = Run()
    for process in (1, 2):
        run.tell(process, "done")
        assert run.said(process) == "done"
    os.kill(run.members[0].pid, signal.SIGKILL)
    assert run.ends() == [(-9, ""), (1, LOST.format(0)), (1, LOST.format(0))]


def test_process_that_is_done_and_killed_is_named_by_the_others():
    run = Run()
    run.tell(1, "done")
    assert run.said(1) == "done"
    os.kill(run.members[1].pid, signal.SIGKILL)
    assert run.ends() == [(1, LOST.format(1)), (-9, ""), (1, LOST.format(1))]


def test_failed_process_says_why_and_the_others_who():
    run = Run()
    run.tell(1, "fail")
    failed = (1, "train: error: train: the disk is full\n")
    assert run.ends() == [(1, LOST.format(1)), failed, (1, LOST.format(1))]


def test_bug_shows_where_it_is_and_takes_the_others_down():
    run = Run()
    run.tell(0, "break")
    (status, trace), *others = run.ends()
    assert status == 1
    assert trace.endswith("KeyError: 'a bug'\n")
    assert others == [(1, LOST.format(0))] * 2


def test_processes_that_finish_or_stop_leave_in_peace():
    run = Run()
    run.tell(0, "stop")
    run.tell(1, "stop")
    run.tell(2, "finish")
    assert run.ends() == [(75, ""), (75, ""), (0, "")]
