"""Start Python processes from an interpreter that has already imported the package.

Importing costs each process seconds. `WarmPython` starts one interpreter, which imports everything once and
then forks: every command still is a process of its own, with its own exit status, signals, memory and open
files. A Python process that a command starts, such as a run of a comparison or a worker of torchrun, is a
fork of that command (`Forked`). Variables that a package reads on import, such as HF_ENDPOINT, keep the value
they had when the interpreter started. Linux only. Run as a script, this module is that interpreter.
"""

import gc
import inspect
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
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

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

    def __init__(self, first: str = "", **environment: str | None) -> None:
        """Start the interpreter.

        Args:
            first: Python code that it runs before it imports the package.
            environment: variables that differ from this process's; None removes one.
        """
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        known = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), first],
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
            _renew_streams()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            return request["start"]
        for file in files:
            os.close(file)
        connection.send(json.dumps(answer).encode())


def _renew_streams() -> None:
    """Make the streams anew: one keeps whether its first file could be searched, which a pipe cannot."""
    sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, "wb", 0, closefd=False), old.encoding, old.errors, write_through=True)
        for number, old in ((1, sys.stdout), (2, sys.stderr))
    )


def _become(words: list[str]) -> NoReturn:
    """Do what `python WORDS...` would do, and end."""
    how, *rest = words
    status: Any = 0
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in folders if folder and folder not in sys.path]
    try:
        if how == "-m":
            sys.argv, sys.path[0] = rest, os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif how == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = words, str(Path(how).resolve().parent)
            runpy.run_path(str(Path(how).resolve()), run_name="__main__")
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        status = 1
    from lora_hf.distributed import leave

    leave(status or 0)  # as a command ends: without taking all that is imported apart


_EXECUTE = subprocess.Popen._execute_child  # type: ignore[attr-defined]


class Forked(subprocess.Popen):
    """`subprocess.Popen` in a forked process: where it would start this interpreter, it forks."""

    def _execute_child(self, *given: Any) -> None:
        names = inspect.signature(_EXECUTE).parameters
        asked = SimpleNamespace(**dict(zip(names, (self, *given), strict=True)))
        program, *words = map(str, asked.args)
        if words[:1] == ["-u"]:  # streams are unbuffered here anyway
            del words[0]
        if program != sys.executable or (words[0][0] == "-" and words[0] not in ("-m", "-c")):
            _EXECUTE(self, *given)
            return
        sys.audit("subprocess.Popen", program, asked.args, asked.cwd, asked.env)
        self.pid = os.fork()
        self._child_created = True
        if self.pid:
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(getattr(asked, name) for name in pipes))  # type: ignore[attr-defined]
            return
        try:
            _prepare(asked)
            _become(words)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(255)


def _prepare(asked: SimpleNamespace) -> None:
    """Do in a new fork what `subprocess.Popen` does before it starts a program."""
    for handled in signal.valid_signals():
        if callable(signal.getsignal(handled)):
            signal.signal(handled, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate((asked.p2cread, asked.c2pwrite, asked.errwrite)):
        if file >= 0:
            os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _renew_streams()
    if asked.process_group >= 0:
        os.setpgid(0, asked.process_group)
    if asked.start_new_session:
        os.setsid()
    if asked.preexec_fn:
        asked.preexec_fn()
    if asked.env is not None:
        os.environ.clear()
        os.environ.update(asked.env)
    if asked.cwd is not None:
        os.chdir(asked.cwd)


if __name__ == "__main__":
    gc.disable()
    subprocess.Popen = Forked  # type: ignore[misc]
    sys.modules |= dict.fromkeys(import_module("lora_hf.cli").HIDDEN)
    exec(sys.argv[2])
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # what is shared with forks stays shared
    gc.enable()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
