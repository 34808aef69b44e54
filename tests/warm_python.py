"""A Python that has imported everything once, and from which processes start without those seconds.

What it is asked for is a fork of it: a process of its own, with its own status, signals, memory and files,
that no other command has been in. What is read when a package is imported, HF_ENDPOINT among it, is as it was
when this Python started. Run as a script, this module is that Python.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
IMPORTED = ("cli", "runs.arm", "runs.saved", "runs.push", "serving.server", "doctor")
LONGEST = 2**18
"""Bytes of a request."""


class WarmPython:
    """Starts `python WORDS...`; commands that begin with `sys.executable` are understood too."""

    def __init__(self, **environment: str | None) -> None:
        """Start it in this environment and these changes of it; None takes a variable away."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        known = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={name: value for name, value in known.items() if value is not None},
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End it; what it started lives on."""
        self._ours.close()
        self._process.wait()

    def ask(self, files: Sequence[int] = (), **request: Any) -> Any:
        """Its answer to a request."""
        with self._turn:
            socket.send_fds(self._ours, [json.dumps(request).encode()], files)
            answer = self._ours.recv(LONGEST)
        assert answer, "it has ended"
        return json.loads(answer)

    def start(self, command: Sequence[Any], **options: Any) -> "Started":
        """A process, as `subprocess.Popen` gives it; the options are some of its own."""
        return Started(self, [str(word) for word in command], **options)

    def run(
        self, command: Sequence[Any], given: str = "", **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """What became of a process, with both outputs as text."""
        child = self.start(command, stdin=subprocess.PIPE, **options)
        out, err = child.communicate(given)
        return subprocess.CompletedProcess(child.args, child.wait(), out, err)


class Started:
    """What the tests ask of a `Popen`, of a process whose parent is another one."""

    def __init__(
        self,
        python: WarmPython,
        args: list[str],
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        text: bool = True,
    ) -> None:
        assert text
        self.args, self.returncode, self._python = args, None, python
        given: list[int] = []
        self.stdin, self.stdout, self.stderr = (
            _stream(wanted, given, mode) for wanted, mode in ((stdin, "w"), (stdout, "r"), (stderr, "r"))
        )
        words = args[1:] if args[0] == sys.executable else args
        self.pid: int = python.ask(given, start=words, cwd=str(cwd), env=env or {})
        for number, wanted in zip(given, (stdin, stdout, stderr), strict=True):
            if wanted in (subprocess.PIPE, subprocess.DEVNULL):
                os.close(number)
        self._handle = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit status, or None as long as it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended."""
        if (status := self._status(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._handle], [], [], timeout)[0]:
            os.close(self._handle)
            self.returncode = self._python.ask(status=self.pid)
        return self.returncode

    def communicate(self, given: str = "") -> tuple[str, str]:
        """All that it writes from now on to both outputs."""
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(_rest, stream) for stream in (self.stdout, self.stderr)]
            if self.stdin:
                with self.stdin:
                    self.stdin.write(given)
            out, err = (one.result() for one in reading)
        self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _stream(wanted: Any, given: list[int], mode: str) -> IO[str] | None:
    """This side of a stream; the other one is appended to what the process is given."""
    if wanted == subprocess.PIPE:
        reading, writing = os.pipe()
        ours, theirs = (reading, writing) if mode == "r" else (writing, reading)
        given.append(theirs)
        return os.fdopen(ours, mode, encoding="utf-8", errors="replace")
    if wanted == subprocess.DEVNULL:
        given.append(os.open(os.devnull, os.O_RDWR))
    else:
        given.append(given[1] if wanted == subprocess.STDOUT else wanted.fileno())
    return None


def _rest(stream: IO[str] | None) -> str:
    if stream is None:
        return ""
    with stream:
        return stream.read()


def _serve(connection: socket.socket) -> list[str]:
    """Answer until the tests end; in a process that was asked for, return its words."""
    while True:
        message, files, *_ = socket.recv_fds(connection, LONGEST, 3)
        if not message:
            sys.exit()
        request = json.loads(message)
        if "status" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["status"], 0)[1])
        elif (answer := os.fork()) == 0:
            connection.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            return request["start"]
        for file in files:
            os.close(file)
        connection.send(json.dumps(answer).encode())


def _become(words: list[str]) -> None:
    """Do what `python WORDS...` does."""
    how, *rest = words
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(how).resolve().parent)
        runpy.run_path(str(Path(how).resolve()), run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(f"lora_hf.{name}")
    gc.freeze()  # what is shared with forks stays shared
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
