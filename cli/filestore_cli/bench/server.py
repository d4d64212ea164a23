"""`python -m filestore_cli.bench.server serve ...` is `filestore serve ...`, and stops when its parent process ends.

On Linux, it also stops if its parent was killed.
"""

from __future__ import annotations

import ctypes
import signal
import sys

from filestore_cli.start import main

# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    main()
