"""The command `filestore`, which gives peers up later than it usually does: on a busy machine, each may need long for an answer.

`python -m tests.support.patient cache ...` is otherwise the same.
"""

from __future__ import annotations

import sys

from filestore.peers import origin_frames, repository, tickets
from filestore_cli.start import main

if __name__ == "__main__":
    repository.CONNECT_SECONDS = tickets.WAIT_SECONDS = origin_frames.WAIT_SECONDS = 90
    sys.argv[0] = "filestore"
    main()
