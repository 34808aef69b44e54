"""Run a command on one input in a forked process, and judge how it ended.

The parent has imported everything, so that an input costs no start-up time and leaves no trace.
"""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.files import PARTIAL

SECONDS = 30
"""Limit of processor time, which does not depend on the load; the wall-clock limit is five times as long."""
MIB = 2048
OUT = "out"
"""Folder below the trial's that the command may write to."""
BESIDE = (PARTIAL + OUT, f"{PARTIAL}old.{OUT}")
"""Temporary places of files that replace others; they must be gone when the command ends."""
ALLOWED = {"config.yaml", "inputs.json"}
"""Files that a run writes once its data and model are checked; they are not results."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input; a negative status is the signal that ended the process."""

    status: int
    seconds: float
    mib: int
    output: str
    outside: tuple[str, ...]
    files: tuple[str, ...]

    def fault(self) -> str | None:
        """Return the rule that was broken, or None."""
        lines = self.output.splitlines()
        if self.outside:
            return f"wrote or started outside: {self.outside[:3]}"
        if self.status not in (0, 2):
            return f"status {self.status}: {lines[-1] if lines else ''}"[:300]
        if self.mib > MIB:
            return f"{self.mib} MiB of memory"
        if any(part.startswith(PARTIAL) for name in self.files for part in Path(name).parts):
            return f"left an unfinished file: {self.files}"
        if self.status == 0:
            return None
        if "Traceback (most recent" in self.output or sum(line.startswith("error: ") for line in lines) != 1:
            return f"not one clear error: {lines[-1:]}"
        return f"refused the input, but wrote {self.files}" if set(self.files) - ALLOWED else None


def attempt(task: Callable[[], int], folder: Path) -> Outcome:
    """Run a task in a forked process in `folder` and return its outcome."""
    out, log, events = folder / OUT, folder.parent / "log", folder.parent / "events"
    before = _files(folder)
    start = time.monotonic()
    if not (pid := os.fork()):
        _child(task, folder, log, events)
    usage = _wait(pid, start)
    output = log.read_text(encoding="utf-8", errors="replace")
    outside = {*events.read_text(errors="replace").splitlines()} | {
        name for name in _files(folder).items() ^ before.items() if not name[0].startswith(f"{OUT}/")
    }
    written = tuple(sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()))
    seconds = usage[1].ru_utime + usage[1].ru_stime
    status = os.waitstatus_to_exitcode(usage[0])
    return Outcome(status, seconds, usage[1].ru_maxrss // 1024, output, tuple(map(str, outside)), written)


def _wait(pid: int, start: float) -> tuple[int, Any]:
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - start > 5 * SECONDS:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that it started
    return status, usage


def _child(task: Callable[[], int], folder: Path, log: Path, events: Path) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in ((1, log), (2, log)):
            os.dup2(
                os.open(file, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if number == 1 else os.O_APPEND)), number
            )
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + (MIB << 20),) * 2)
        own = (*map(Path, (os.environ["HF_HOME"], os.environ["TMPDIR"], "/dev")),)
        _record(events, (*(folder / name for name in (OUT, *BESIDE)), *own))
        status = task()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _record(events: Path, allowed: tuple[Path, ...]) -> None:
    """Write a line for each change of a file outside the allowed folders, and for each process started."""
    stream = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    folders = [folder.resolve() for folder in allowed]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(given[2], int) and given[2] & WRITING
        if not is_write and event not in (*CHANGES, *STARTS):
            return
        where = given[0]
        if isinstance(where, int) or (event in STARTS and sys.executable in str(given)):
            return
        path = Path(os.path.realpath(os.fsdecode(where))) if event not in STARTS else Path("/")
        if event == "os.mkdir" and path.is_dir():  # changes nothing
            return
        if event in STARTS or not any(path.is_relative_to(folder) for folder in folders):
            os.write(stream, f"{event} {str(where)[:200]!r}\n".encode(errors="replace"))

    sys.addaudithook(hook)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            entry = file.lstat()
            found[str(file.relative_to(folder))] = entry.st_size, entry.st_mtime_ns
    return found


@contextmanager
def isolated(folder: Path) -> Iterator[None]:
    """Give the process its own Hugging Face cache and temporary folder, no network, and one thread."""
    own = {"HF_HOME": folder / "hf", "TMPDIR": folder / "tmp"}
    for path in own.values():
        path.mkdir(parents=True)
    os.environ.update({name: str(path) for name, path in own.items()})
    tempfile.tempdir = str(own["TMPDIR"])
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
    yield
