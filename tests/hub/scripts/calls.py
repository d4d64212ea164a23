"""Call methods of `HfApi` one after another, and print their results as JSON. Usage: calls.py FILE.

The file has JSON: [[METHOD, {ARGUMENTS}], ...]. The result of a call that raises an exception says which one.
Runs in an environment with a client of the Hub.
"""

import base64
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import huggingface_hub

OPERATIONS = ("CommitOperationAdd", "CommitOperationDelete", "CommitOperationCopy")


def given(value: object) -> object:
    """Make objects of what stands for them: {"base64": TEXT}, and {"CommitOperation...": {ARGUMENTS}}."""
    if isinstance(value, list):
        return [given(item) for item in value]
    if isinstance(value, dict):
        for name in OPERATIONS:
            if name in value:
                return getattr(huggingface_hub, name)(**{key: given(item) for key, item in value[name].items()})
        if "base64" in value:
            return base64.b64decode(value["base64"])
    return value


def shown(value: object) -> object:
    """Make what `json` can write."""
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, Iterator)):
        return [shown(item) for item in value]
    if isinstance(value, (str, datetime, Path)):
        return str(value)  # a URL of a repository is a kind of text
    if hasattr(value, "__dict__"):
        return {key: shown(item) for key, item in vars(value).items()}
    return value


def main() -> None:
    """Call and print."""
    results = []
    api = huggingface_hub.HfApi()
    for method, arguments in json.loads(Path(sys.argv[1]).read_text()):
        try:
            results.append(shown(getattr(api, method)(**{key: given(value) for key, value in arguments.items()})))
        except Exception as error:  # noqa: BLE001  # the test says which one is right
            results.append({"raised": [base.__name__ for base in type(error).__mro__], "message": str(error)})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
