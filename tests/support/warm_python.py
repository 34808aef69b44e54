"""Start Python processes from an interpreter that has already imported the package.

Importing costs each process seconds. `WarmPython` starts one interpreter, which imports everything once and
then forks: every command still is a process of its own, with its own exit status, signals, memory and open
files. Variables that a package reads on import, such as HF_ENDPOINT, keep the value they had when the
interpreter started. Linux only. Run as a script, this module is that interpreter.
"""

import gc
import io
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

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "lora_hf.cli",
    "lora_hf.runs.run",
    "lora_hf.saved.predict",
    "lora_hf.saved.push",
    "lora_hf.serving.server",
    "lora_hf.doctor",
    "rouge_score.rouge_scorer",
    "aiohttp",
)
LONGEST = 2**18
"""The longest request, in bytes."""


class WarmPython:
    """Run `python WORDS...` as a fork; `sys.executable` before the words is allowed."""

    def __init__(self, **environment: str | None) -> None:
        """Start the interpreter with variables that differ from this process's; None removes one."""
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
        """End the interpreter; processes that it started keep running."""
        self._ours.close()
        self._process.wait()

    def ask(self, files: Sequence[int] = (), **request: Any) -> Any:
        """Send a request, with open files, and return the answer."""
        with self._turn:
            socket.send_fds(self._ours, [json.dumps(request).encode()], files)
            answer = self._ours.recv(LONGEST)
        assert answer, "it has ended"
        return json.loads(answer)

    def start(self, command: Sequence[Any], **options: Any) -> "Started":
        """Start a process; the options are those of `subprocess.Popen` that `Started` takes."""
        return Started(self, [str(word) for word in command], **options)

    def run(
        self, command: Sequence[Any], given: str = "", **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a process to its end and return its status and both outputs as text."""
        child = self.start(command, stdin=subprocess.PIPE, **options)
        out, err = child.communicate(given)
        return subprocess.CompletedProcess(child.args, child.wait(), out, err)


class Started:
    """The part of `subprocess.Popen` that the tests use, for a process whose parent is the interpreter."""

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
        """Return the exit status, or None while the process runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end and return its exit status."""
        if (status := self._status(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._handle], [], [], timeout)[0]:
            os.close(self._handle)
            self.returncode = self._python.ask(status=self.pid)
        return self.returncode

    def communicate(self, given: str = "") -> tuple[str, str]:
        """Send input, wait for the end, and return the rest of both outputs."""
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
    """Return our end of a stream; the other end is appended to the files that the process is given."""
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
    """Answer requests until the tests end; in a forked process, return its command."""
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
            # made anew: a stream keeps whether its first file could be searched, which a pipe cannot
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(
                    open(number, "wb", 0, closefd=False), old.encoding, old.errors, write_through=True
                )
                for number, old in ((1, sys.stdout), (2, sys.stderr))
            )
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            return request["start"]
        for file in files:
            os.close(file)
        connection.send(json.dumps(answer).encode())


def _become(words: list[str]) -> None:
    """Do what `python WORDS...` would do."""
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
    gc.disable()
    sys.modules |= dict.fromkeys(import_module("lora_hf.cli").HIDDEN)
    for name in IMPORTED:
        import_module(name)
    from lora_hf.distributed import leave

    gc.freeze()  # what is shared with forks stays shared
    gc.enable()
    status: Any = 0
    try:
        _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # it is printed
        status = end.code
    leave(status or 0)  # as a command ends: without taking all that is imported apart
