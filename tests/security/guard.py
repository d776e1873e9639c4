"""Runs command lines under an audit hook and says what they did that no stranger's file may make them do.

A process of its own, because an audit hook stays: ``python guard.py < request.json > answers.json``. The
request names the folders that may be written (``writable``), those that must not be opened (``forbidden``),
those that no code may come from (``foreign``), and the command lines (``cases``).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PROCESSES = {
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("os.startfile", "pty.spawn"),
}
_NETWORK = {
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *(
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "http.client.connect",
        "urllib.Request",
        "smtplib.connect",
    ),
    *("ftplib.connect",),
}
# Events that change what stands at a path, and where in their arguments the paths are.
_CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown"), (0,)),
    **dict.fromkeys(("os.utime", "os.setxattr", "shutil.rmtree"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), (0, 1)),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# No case takes a hundredth of it; a decoder that hangs takes for ever.
_PATIENCE = 300


class Guard:
    """Collects what happens while a case runs."""

    def __init__(self, writable: list[str], forbidden: list[str], foreign: list[str]):
        self.writable = [os.path.realpath(path) for path in writable]
        self.forbidden = [os.path.realpath(path) for path in forbidden]
        self.foreign = [os.path.realpath(path) for path in foreign]
        self.watching = False
        self.found: list[str] = []
        self.seen: set[str] = set()
        """Kinds of events that came at all: a hook that sees nothing proves nothing."""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        self.watching = False
        try:
            self.seen.add(event)
            self._look(event, arguments)
        except Exception:
            self.found.append(f"the guard failed on {event}: {traceback.format_exc(limit=3)}")
        finally:
            self.watching = True

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROCESSES:
            self._note("starts a process", event, arguments)
        elif event in _NETWORK:
            self._note("reaches for the network", event, arguments)
        elif event == "pickle.find_class":
            self._note("unpickles without restriction", event, arguments)
        elif event == "open":
            path, _, flags = arguments
            self._opened(path, flags or 0)
        elif event in _CHANGES:
            for place in _CHANGES[event]:
                self._changed(event, arguments[place])
        elif event == "exec":
            self._code(getattr(arguments[0], "co_filename", ""))
        elif event in ("ctypes.dlopen", "import"):
            name = arguments[1] if event == "import" else arguments[0]
            # A library's bare name is looked for where the system keeps its own.
            if event == "import" or "/" in str(name):
                self._code(name)

    def _opened(self, path: Any, flags: int) -> None:
        if isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        if _inside(real, self.forbidden):
            self._note("opens what it was not given", "open", (path,))
        if flags & _WRITING and real != os.devnull:
            # A file without a name is gone with its descriptor.
            if flags & getattr(os, "O_TMPFILE", 0) == getattr(os, "O_TMPFILE", -1):
                return
            self._changed("open", path)

    def _changed(self, event: str, path: Any) -> None:
        # Names that `shutil` gives relative to a descriptor come after the whole path was seen.
        if isinstance(path, int) or (
            event != "open" and not Path(os.fsdecode(path)).is_absolute() and _in_rmtree()
        ):
            return
        place = Path(os.fsdecode(path))
        real = str(place.resolve() if event == "open" else place.parent.resolve() / place.name)
        if not _inside(real, self.writable):
            self._note("changes what is not its own", event, (path,))

    def _code(self, path: Any) -> None:
        if not isinstance(path, (str, bytes)) or not path or path[:1] in ("<", b"<"):
            return  # code that was made here, such as a traced network
        if _inside(os.path.realpath(os.fsdecode(path)), self.foreign):
            self._note("takes code from a stranger", "code", (path,))

    def _note(self, what: str, event: str, arguments: tuple[Any, ...]) -> None:
        frame = next(
            (
                f"{Path(item.filename).name}:{item.lineno}"
                for item in reversed(traceback.extract_stack())
                if "tlrecipe" in item.filename
            ),
            "?",
        )
        self.found.append(f"{what}: {event}{tuple(map(repr, arguments))[:3]} from {frame}")


def _inside(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def _in_rmtree() -> bool:
    return any(item.name.startswith("_rmtree") for item in traceback.extract_stack())


@contextlib.contextmanager
def _patience(guard: Guard) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError("the case hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def carried_out(guard: Guard, case: dict[str, Any]) -> dict[str, Any]:
    """One command line, as if it were typed."""
    from tlrecipe.cli.app import cli

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
    guard.found, before, started = [], set(sys.modules), time.process_time()
    if folder := case.get("folder"):
        os.chdir(folder)
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _patience(guard):
        guard.watching = True
        try:
            cli(case["arguments"], prog_name="tlrecipe")
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        finally:
            guard.watching = False
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and _inside(os.path.realpath(file), guard.foreign):
            guard.found.append(f"imports {name} from {file}")
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
    return {
        "code": code,
        "found": sorted(set(guard.found)),
        "stdout": texts[0],
        "stderr": texts[1],
        "seconds": time.process_time() - started,
    }


def main() -> None:
    # Libraries look for others when they are imported, with programs and temporary files, whatever a
    # recipe says. What they do afterwards is watched.
    import tlrecipe.artifacts.bundle
    import tlrecipe.models.timm_source
    import tlrecipe.training.interpreter  # noqa: F401

    request = json.load(sys.stdin)
    guard = Guard(request["writable"], request["forbidden"], request["foreign"])
    sys.addaudithook(guard)
    answers = {case["name"]: carried_out(guard, case) for case in request["cases"]}
    json.dump({"answers": answers, "seen": sorted(guard.seen)}, sys.stdout)


if __name__ == "__main__":
    main()
