"""Execute the Python examples of the Pipeline SDK's page "Files and directories", by the SDK of this environment.

Usage: `python documentation_page.py SITE OWN FILE_ID DIRECTORY_ID`, in a folder with `my_file.txt`, `my_dir` and
`my_dir.zip`. SITE is the URL of a file of a third party, OWN that of a stored file. The ids are those of a stored file
and of a stored directory. The result of each example is printed as JSON. There are no lazy annotations, because the SDK
takes them for types.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, List  # noqa: UP035  # as the page has it
from urllib.request import urlopen

from pipeline import File, Pipeline, Variable, pipe
from pipeline.cloud import pipelines
from pipeline.cloud.pipelines import run_pipeline

SITE, OWN, FILE_ID, DIRECTORY_ID = sys.argv[1:]


def _directory() -> Any:
    from pipeline.objects import Directory

    return Directory


def _file_url(url: str) -> Any:
    try:
        from pipeline.objects import FileURL
    except ImportError:
        return File(url=url)
    return FileURL(url)


def _outputs(run: Any) -> Any:
    """Return the outputs of a run as JSON. The run must have completed."""
    _expect(None, run.error)
    return json.loads((run.result if hasattr(run, "result") else run).json())["outputs"]


def _value(run: Any) -> Any:
    (output,) = _outputs(run)
    return output["value"]


def _expect(expected: object, actual: object) -> None:
    if expected != actual:
        raise AssertionError(f"{actual!r} is not {expected!r}")


def _upload(name: str, function: Callable[..., Any], *declared: Any, static: Any = None) -> None:
    """Upload a pipeline of one pipe, whose last argument is a static file. The SDK must print its first pointer."""
    upload_pipeline = pipelines.upload_pipeline
    with Pipeline() as builder:
        variables = [Variable(each) for each in declared]
        if static is not None:
            variables.append(static())
        builder.output(pipe(function)(*variables))
    printed = StringIO()
    with redirect_stdout(printed):
        upload_pipeline(builder.get_pipeline(), name, environment_id_or_name="default")
    _expect([f"{name}:v1"], re.findall(r"Uploaded pipeline '(.+)' with ID", printed.getvalue()))


def _read(my_file: File) -> str:
    return str(my_file.path.read_text())


def _read_static(what: str, my_file: File) -> str:
    return f"{what} {my_file.path.read_text()}"


def _read_tree(what: str, my_dir: Any) -> str:
    return f"{what} {(my_dir.path / 'my_file.txt').read_text()}"


def _answer(text: str, options: dict[str, Any]) -> str:
    return f"{text} {options['max_new_tokens']}"


def _one_file() -> File:
    Path("image-0.jpg").write_text("image 0")
    return File(path="image-0.jpg", allow_out_of_context_creation=True)


def _two_files() -> List[File]:  # noqa: UP006  # as the page has it
    for number in range(2):
        Path(f"image-{number}.jpg").write_text(f"image {number}")
    return [File(path=f"image-{number}.jpg", allow_out_of_context_creation=True) for number in range(2)]


def _make_with_position() -> None:
    File("my_file.txt")


def _make_file() -> None:
    _expect(Path("my_file.txt"), File(path="my_file.txt").path)


def _make_directory() -> None:
    _expect(Path("my_dir"), _directory()(path="my_dir").path)


def _make_url() -> None:
    from pipeline.objects import FileURL

    _expect(SITE, FileURL(SITE).url)


def _static(name: str, function: Callable[..., Any], static: Callable[[], Any]) -> Callable[[], None]:
    def example() -> None:
        _upload(name, function, str, static=static)
        _expect("it has what is in my file", _value(run_pipeline(f"{name}:v1", "it has")))

    return example


def _upload_input() -> None:
    _upload("paulh/read-my-file", _read, File)


def _run_input() -> None:
    _expect("what is in my file", _value(run_pipeline("paulh/read-my-file:v1", File(path="my_file.txt"))))


def _run_url() -> None:
    _expect("what is in my file", _value(run_pipeline("paulh/read-my-file:latest", _file_url(SITE))))


def _upload_tree() -> None:
    _upload("paulh/read-my-dir", _read_tree, str, _directory())


def _run_directory() -> None:
    _expect("it has what is in my file", _value(run_pipeline("paulh/read-my-dir", "it has", _directory()(path="my_dir"))))


def _run_zip() -> None:
    _expect("it has what is in my file", _value(run_pipeline("paulh/read-my-dir", "it has", _directory()(path="my_dir.zip"))))


def _upload_llama() -> None:
    _upload("meta/llama-2-70B", _answer, str, dict)


def _upload_outputs() -> None:
    _upload("paulh/one-file", _one_file)
    _upload("paulh/two-files", _two_files)


def _check_output(output: Any, number: int) -> None:
    _expect("file", output["type"])
    file = output["file"]
    _expect((f"image-{number}.jpg", 7), (file["name"], file["size"]))
    _expect("run_files/", file["path"][:10])
    with urlopen(file["url"]) as answer:
        _expect(f"image {number}", answer.read().decode())


def _run_one_file() -> None:
    (output,) = _outputs(run_pipeline("paulh/one-file:v1"))
    _check_output(output, 0)


def _run_two_files() -> None:
    (output,) = _outputs(run_pipeline("paulh/two-files:v1"))
    _expect("array", output["type"])
    for number, file in enumerate(output["value"]):
        _check_output(file, number)


EXAMPLES: dict[str, Callable[[], None]] = {
    "position": _make_with_position,
    "file": _make_file,
    "directory": _make_directory,
    "url": _make_url,
    "static file": _static("paulh/file_test", _read_static, lambda: File(path="my_file.txt")),
    "static directory": _static("paulh/directory_test", _read_tree, lambda: _directory()(path="my_dir")),
    "static url": _static("paulh/url_test", _read_static, lambda: _file_url(SITE)),
    "static own url": _static("paulh/own_url_test", _read_static, lambda: _file_url(OWN)),
    "remote file": _static("paulh/remote_test", _read_static, lambda: File.from_remote(id=FILE_ID)),
    "remote directory": _static("paulh/remote_dir", _read_tree, lambda: _directory().from_remote(id=DIRECTORY_ID)),
    "remote id": _static("paulh/remote_id", _read_static, lambda: File(path="my_file.txt", remote_id=FILE_ID)),
    "upload input": _upload_input,
    "run input": _run_input,
    "run url": _run_url,
    "upload tree": _upload_tree,
    "run directory": _run_directory,
    "run zip": _run_zip,
    "upload llama": _upload_llama,
    "upload outputs": _upload_outputs,
    "one file": _run_one_file,
    "two files": _run_two_files,
}


def _result(example: Callable[[], None]) -> str:
    try:
        example()
    except Exception as error:  # noqa: BLE001  # the result is the error
        line = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {line}"
    return "works"


if __name__ == "__main__":
    results = {name: _result(example) for name, example in EXAMPLES.items()}
    print(json.dumps(results))  # noqa: T201  # what the test reads
