"""`python -m filestore_cli.bench.server serve ...` is `filestore serve ...`, which stops when whoever started it is gone.

Also where that one was killed, and could not stop it; on Linux only.
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
