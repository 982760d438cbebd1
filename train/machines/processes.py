"""The processes of one run: they meet, watch each other, and fall together.

JAX's runtime notices a dead process too, but says so in a page of C++, and an address
that nobody answers aborts it. So each process holds a line to process 0: it is where
they meet, and it breaks at the moment when one of them dies.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from train.errors import TrainError, TrainingFailed
from train.flags.checks import flag_of
from train.printable import printable

MEETING_SECONDS = 120.0
RETRY_SECONDS = 0.1
# For a line over which nothing comes: a machine that fell silent is dead after 20 s.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# How long a process that falls waits for the others to fall, and for those who know
# better why.
PARTING_SECONDS = 0.5
# What processes may be told differently.
OWN_FLAGS = ("coordinator", "process_id", "data", "workers")

WELCOME = "welcome"
DONE = "done"


class Line:
    """A connection over which short texts go, one a line."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        # Whoever knocks by mistake may speak anything.
        self._texts = connection.makefile("r", encoding="utf-8", errors="replace")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux has them all
                option = getattr(socket, name)
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, text: str) -> None:
        """Sends a text; to a process that is gone, nothing."""
        with contextlib.suppress(OSError):
            self._connection.sendall(f"{text}\n".encode())

    def receive(self, seconds: float | None = None) -> str | None:
        """Returns the next text, or None if none comes: in time, or any more."""
        self._connection.settimeout(seconds)
        try:
            return self._texts.readline().rstrip("\n") or None
        except OSError:
            return None

    def is_broken(self) -> bool:
        """Tells whether the other side is gone, if it has nothing left to say."""
        self._connection.settimeout(0)
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the connection."""
        self._texts.close()
        self._connection.close()


def listen(address: str) -> socket.socket:
    """Returns the socket on which process 0 waits for the others.

    Args:
        address: HOST:PORT; the port 0 is any that is free.

    Raises:
        TrainError: If the port cannot be had.
    """
    port = int(address.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", port))
    except OSError as error:
        raise TrainError(
            f"--coordinator (={address}) cannot be had: {error.strerror}; end the run "
            "that has this port, or give another"
        ) from error


def receive_all(
    server: socket.socket, flags: Mapping[str, Any], count: int
) -> dict[int, Line]:
    """Waits, as process 0, for all others; refuses those of another run.

    Args:
        server: The result of `listen`; closed afterwards.
        flags: The flags of this process, which those of the others must equal.
        count: How many processes there are.

    Returns:
        The lines to the others, by process.

    Raises:
        TrainingFailed: If one does not come in time.
    """
    flags = json.loads(json.dumps(flags))  # as those of the others arrive
    lines: dict[int, Line] = {}
    deadline = time.monotonic() + MEETING_SECONDS
    with server:
        while len(lines) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), RETRY_SECONDS))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, count)) - lines.keys())
                message = (
                    f"process {', '.join(map(str, missing))} of {count} did not come "
                    f"within {MEETING_SECONDS:.0f} s; start it with the same flags"
                )
                for each in lines.values():
                    each.send(message)
                    each.close()
                raise TrainingFailed(message) from None
            process, objection = _examine(line.receive(RETRY_SECONDS * 50), flags)
            for other in [each for each in lines if lines[each].is_broken()]:
                lines.pop(other).close()  # it may be started again
            if process in lines:
                objection = f"--process-id (={process}) is taken by another process"
            if process is not None and not 0 < process < count:
                objection = f"--process-id (={process}) is none of 1 to {count - 1}"
            if process is None or objection:
                line.send(objection or "this is no process of the run")
                line.close()
            else:
                lines[process] = line
    for line in lines.values():
        line.send(WELCOME)
    return lines


def _examine(text: str | None, flags: Mapping[str, Any]) -> tuple[int | None, str]:
    """Returns who introduces itself so, and what speaks against it."""
    try:
        process, theirs = json.loads(text or "")
        differing = [name for name in flags if theirs.get(name) != flags[name]]
        if not isinstance(process, int):
            return None, ""
    except (ValueError, TypeError, AttributeError):  # not one of ours that knocked
        return None, ""
    differences = [
        f"{flag_of(name)} (={theirs.get(name)}) is {flags[name]} in process 0"
        for name in differing
        if name not in OWN_FLAGS
    ]
    return process, "; ".join(differences)


def join(address: str, flags: Mapping[str, Any], process: int) -> Line:
    """Goes, as any other process, to process 0 and waits for the rest.

    Args:
        address: HOST:PORT of process 0.
        flags: The flags of this process.
        process: Which one it is.

    Returns:
        The line to process 0.

    Raises:
        TrainError: If process 0 refuses this one.
        TrainingFailed: If it is not there in time, or not all of them are.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + MEETING_SECONDS
    while True:
        try:
            target = host.strip("[]"), int(port)
            line = Line(socket.create_connection(target, MEETING_SECONDS))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TrainingFailed(
                    f"process 0 does not answer at --coordinator (={address}): "
                    f"{error.strerror or error}; start it, or mend the address"
                ) from error
            time.sleep(RETRY_SECONDS)
    line.send(json.dumps([process, flags]))
    answer = line.receive(2 * MEETING_SECONDS)
    if answer == WELCOME:
        return line
    line.close()
    if answer is None:
        raise TrainingFailed(
            f"--coordinator (={address}) went away before all processes were there; "
            "see what process 0 says"
        )
    raise TrainError(answer)


class Watch:
    """Ends this process, with a clear line, as soon as another one has ended.

    Leaving it as a context manager without an error, or with one that all raise, waits
    until the others leave too: who has nothing left to do is still needed, and hears of
    a death. With an error of its own, it ends the process on the spot: to unwind any
    further would wait for processes that wait for this one.

    Args:
        lines: To the other processes: in process 0 to all, else to process 0.
        process: Which process this is.
        count: How many there are.
    """

    def __init__(self, lines: Mapping[int, Line], process: int, count: int):
        self._lines = lines
        self._process = process
        self._count = count
        self._is_leaving = threading.Lock()
        self._is_done = False
        self._others_done = {other: threading.Event() for other in lines}
        for other in lines:
            threading.Thread(target=self._listen, args=[other], daemon=True).start()

    def __enter__(self) -> "Watch":
        """Returns itself; the watch has begun before."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Leaves the run, and if by an error the process."""
        if error is None or (isinstance(error, TrainError) and error.is_agreed):
            self._is_done = True
            self._tell(DONE)
            for each in self._others_done.values():
                each.wait()
            self._is_leaving.acquire()
            return
        if not isinstance(error, TrainError | KeyboardInterrupt):
            # It may be what the death of another looks like from here; then the watch
            # hears of it about now, and knows better.
            time.sleep(PARTING_SECONDS)
        self._is_leaving.acquire()
        self._tell(str(self._process))
        if isinstance(error, TrainError):
            self._end(f"train: error: {printable(error)}", error.exit_status)
        if isinstance(error, KeyboardInterrupt):
            self._end("train: interrupted", 130)
        self._end("".join(traceback.format_exception(error)).rstrip(), 1)

    def _listen(self, other: int) -> None:
        heard = self._lines[other].receive()
        if heard == DONE:
            self._others_done[other].set()
            heard = self._lines[other].receive()
            if self._is_done:
                return  # Both are, so it may go.
        self._is_leaving.acquire()  # and for good: one reason is enough
        lost = other if heard is None else int(heard)
        self._tell(str(lost))
        self._end(
            f"train: error: process {lost} of {self._count} has ended before the run "
            "did; start all of them again, and they go on from the last checkpoint",
            TrainingFailed.exit_status,
        )

    def _tell(self, text: str) -> None:
        for line in self._lines.values():
            line.send(text)

    def _end(self, message: str, status: int) -> NoReturn:
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
        print(f"{shown}{message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # With process 0 ends the service of JAX's runtime, which would abort those who
        # have not gone yet.
        time.sleep(PARTING_SECONDS if self._process == 0 else 0)
        os._exit(status)
