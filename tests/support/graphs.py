"""Make pipelines that a real runtime runs: `python tests/support/graphs.py FOLDER` pickles each into a file there.

For an environment with the Pipeline SDK. There are no lazy annotations, because the SDK takes them for types.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import cloudpickle
from pipeline import File, Pipeline, Variable, pipe
from pipeline.objects import Directory, Graph
from pipeline.objects.graph import InputField, InputSchema

try:
    from pipeline.objects import FileURL
except ImportError:  # later versions of the SDK have none, and a File takes its place
    FileURL = File


def said() -> str:
    """Print text that looks like an answer, and text that would break one."""
    print('{"outputs": []}' * 1000)  # noqa: T201  # what is tested
    os.write(1, b"\x00" * 1000)
    return "printed"


def said_lines() -> str:
    """Print lines in each way in which a program may."""
    print("by print")  # noqa: T201  # what is tested
    print("to standard error", file=sys.stderr)  # noqa: T201
    os.write(1, b"binary \xff\x00\x1b[2J\n")
    subprocess.run(["echo", "by another program"], check=True)
    print("without an end", end="")  # noqa: T201
    return "said"


def said_and_raised() -> None:
    """Print, and fail."""
    print("before the failure")  # noqa: T201
    raise ValueError("what a pity")


def said_and_hung() -> None:
    """Print, and never return."""
    print("before it hangs")  # noqa: T201
    hung()


def flooded() -> str:
    """Print much, and let a thread print without end."""
    for _ in range(8):
        os.write(1, b"much\n" * 200_000)

    def print_on() -> None:
        while True:
            os.write(1, b"on and on\n" * 1000)

    threading.Thread(target=print_on, daemon=True).start()
    return "flooded"


def hung() -> None:
    """Never return."""
    while True:
        time.sleep(3600)


def raised() -> None:
    """Raise an error."""
    raise ValueError("what a pity")


def nested() -> list[Any]:
    """Return JSON that is nested too deep for any parser."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def piped() -> File:
    """Return a pipe to which nobody ever writes."""
    os.mkfifo("pipe")
    return File(path="pipe")


def half() -> list[File]:
    """Return two files, of which only the first exists."""
    Path("first.bin").write_bytes(b"the first of two")
    return [File(path="first.bin"), File(path="nothing-is-here.bin")]


def large() -> File:
    """Return a file on another disk than the runtime's."""
    path = Path.home() / "large.bin"
    path.write_bytes(os.urandom(32 << 20))
    return File(path=path)


def garbled() -> str:
    """Write to every open descriptor."""
    for descriptor in range(3, 64):
        with suppress(OSError):
            os.write(descriptor, b"\xff" * 64)
    return "garbled"


def left(how: str) -> list[int]:
    """Leave processes in sessions of their own. Return their process ids."""
    if how == "keeper":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    if how == "stopped keeper":
        os.kill(os.getppid(), signal.SIGSTOP)
    if how == "session":
        return [subprocess.Popen(["sleep", "1000"], start_new_session=True).pid]
    # A daemon: its parent ends, and it prints nothing.
    program = "import os, time; pid = os.fork(); pid or os.close(1); pid or os.setsid(); print(pid) if pid else time.sleep(1000)"
    return [int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)]


def raised_with_escapes() -> None:
    """Print and raise what would control a terminal that shows it."""
    print("\x1b[2J\x1b]0;title\x07\x1b[1;1Hforged\r\x9b2J")  # noqa: T201  # what is tested
    raise ValueError("a\x1b[2Jb\x07c\x9bd\u202ee\nf")


WAYS: dict[str, Callable[[], Any]] = {
    "pid": os.getpid,
    "threads": lambda: "OPENBLAS_NUM_THREADS" in os.environ,
    "secrets": lambda: [name for name in os.environ if "TOKEN" in name],
    "sdk": lambda: version("pipeline-ai"),
    "filestore": lambda: find_spec("filestore") is not None,
    "print": said,
    "lines": said_lines,
    "lines and raise": said_and_raised,
    "lines and hang": said_and_hung,
    "flood": flooded,
    "exit": lambda: sys.exit("bye"),
    "end": lambda: os._exit(3),
    "crash": lambda: ctypes.string_at(0),
    "eat": lambda: [bytearray(1 << 20) for _ in range(1 << 20)],
    "hang": hung,
    "raise": raised,
    "object": object,
    "nan": lambda: float("nan"),
    "deep": nested,
    "large": lambda: "x" * (17 << 20),
    "large file": large,
    "absent": lambda: File(path="nothing-is-here.bin"),
    "absent folder": lambda: Directory(path="nothing-is-here.zip"),
    "pipe": piped,
    "half": half,
    "children": lambda: subprocess.Popen(["sleep", "1000"]).pid,  # any program
    "garble": garbled,
    "session": lambda: left("session"),
    "daemon": lambda: left("daemon"),
    "stopped keeper": lambda: left("stopped keeper"),
    "killed keeper": lambda: left("keeper"),
    "escapes": raised_with_escapes,
}


def misbehave(how: str) -> Any:
    """Do what the input asks for."""
    return WAYS[how]()


def returned(how: str) -> Any:
    """Return files, in each form in which a pipe may return one."""
    path = Path(f"{how}.txt")
    path.write_text("content")
    if how == "directory":
        folder = Path("tree")
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a.txt").write_text("a")
        (folder / "a.txt").write_text("another a")
        (folder / "run.sh").touch(mode=0o755)
        return Directory(path=folder)
    if how == "handle":
        return path.open("rb")
    if how == "written":
        handle = path.open("r+b")
        handle.write(b"CON")
        return handle
    if how == "kept":
        # The file is not in the folder of this run, so the next run finds it too.
        kept = Path(tempfile.gettempdir(), "kept.txt")
        if not kept.exists():
            kept.write_text("kept content")
        return kept.open("r+b")
    if how in ("memory", "memory twice"):
        content = [BytesIO(b"content"), BytesIO(b"content"), BytesIO(b"other")]
        return content[0] if how == "memory" else content
    return File(path=path)


def entered(directory: Directory, handle: Any) -> Any:
    """Return the input: the paths of a tree, and the content of an open file."""
    tree = sorted(str(path.relative_to(directory.path)) for path in directory.path.rglob("*"))
    return [tree, os.access(directory.path / "run.sh", os.X_OK), handle.path.read_text()]


def opened(url: FileURL, handle: BufferedReader) -> Any:
    """Return the input: a URL and its file, and an open file, which cannot be written to."""
    return [url.url, url.path.read_text(), handle.read().decode(), handle.mode]


def yielded(how: str) -> Any:
    """Yield values of each kind."""
    if how == "files":
        for number in range(3):
            # The same file each time.
            Path("image.txt").write_text(f"image {number}")
            yield File(path="image.txt")
    elif how == "many":
        yield from range(100_000)
    elif how == "raise":
        yield "the first"
        raise ValueError("what a pity")
    elif how == "object":
        yield object()
    elif how == "process":
        yield os.getpid()
    elif how == "cwd":
        Path("made").touch()
        yield Path.cwd().name
        yield Path("made").exists()
    elif how.startswith("endless"):
        # The test hears of the end of the generator by that of its connection.
        with socket.create_connection(("127.0.0.1", int(how.split()[1]))):
            while True:
                yield "x" * (1 << 16)
    else:
        yield from ["one", 2, None, {"three": [3]}]


def generated(how: str) -> Any:
    """Return a value that is a generator, or an iterator, or looks like one."""
    ways: dict[str, Callable[[], Any]] = {"map": lambda: map(str, range(3)), "empty": lambda: iter(()), "async": awaited}
    return ways[how]() if how in ways else yielded(how)


async def awaited() -> Any:
    """Yield in a way that the SDK does not support."""
    yield 1


def generated_twice(how: str) -> tuple[Any, str, Any]:
    """Return two generators, of which one is longer, and a text between them."""
    return iter(range(3)), how, iter("ab")


class Schema(InputSchema):  # type: ignore[misc]  # types are checked without the SDK
    """An input that is a dictionary, with a file in it."""

    title: str = InputField()
    image: File = InputField()


def described(schema: Schema) -> Any:
    """Return the input: a text and the content of a file."""
    return f"{schema.title}: {schema.image.path.read_text()}"


class Slow:
    """Take too long, or end the process, when it is unpickled."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, (self.statement,)


def graph_of(function: Callable[..., Any], *declared: Any, static: File | None = None) -> Graph:
    """Return a pipeline of one pipe. A static file is the pipe's last argument."""
    piped = pipe(function)
    with Pipeline() as builder:
        variables = [Variable(each, is_input=True) for each in declared]
        files = [] if static is None else [static]
        if static is not None:
            builder.get_pipeline().variables.append(static)
        outputs = piped(*variables, *files)
        builder.output(*(outputs if isinstance(outputs, tuple) else [outputs]))
    return builder.get_pipeline()


def read(static: Any) -> Any:
    """Return the content of a static file."""
    return static.path.read_text()


def write_all(folder: Path) -> None:
    """Pickle all pipelines."""
    for name, graph in {
        "misbehave": graph_of(misbehave, str),
        "returned": graph_of(returned, str),
        "generated": graph_of(generated, str),
        "generated-twice": graph_of(generated_twice, str),
        "entered": graph_of(entered, Directory, File),
        "opened": graph_of(opened, FileURL, BufferedReader),
        "described": graph_of(described, Schema),
        "unknown-file": graph_of(read, static=File(path="a", remote_id="file_" + "0" * 32)),
        "local-file": graph_of(read, static=File(path="/etc/hostname")),
        "no-graph": 42,
        "never-loads": Slow("import time; time.sleep(3600)"),
        "ends-when-loaded": Slow("import os; os._exit(7)"),
    }.items():
        (folder / name).write_bytes(cloudpickle.dumps(graph))
    (folder / "garbage").write_bytes(b"\x80\x05no pickle")
    (folder / "empty").write_bytes(b"")
    (folder / "python.json").write_text(json.dumps(sys.version_info[:3]))


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
