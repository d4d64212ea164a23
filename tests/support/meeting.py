"""Make a pipeline whose runs meet: `python tests/support/meeting.py FOLDER FILE_ID` pickles it into a file there.

For an environment with the Pipeline SDK. There are no lazy annotations, because the SDK takes them for types.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import cloudpickle
from pipeline import File, Pipeline, Variable, pipe


def meet(port: int, static: File) -> Any:
    """Connect to a port of this machine, and return when that closes the connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)
    return [os.getpid(), str(static.path)]


if __name__ == "__main__":
    with Pipeline() as builder:
        port = Variable(int)
        static = File(path="weights", remote_id=sys.argv[2])
        builder.get_pipeline().variables.append(static)
        builder.output(pipe(meet)(port, static))
    Path(sys.argv[1], "meet").write_bytes(cloudpickle.dumps(builder.get_pipeline()))
