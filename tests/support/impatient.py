"""The command `filestore`, which learns a few seconds after a host was cut off that it is, and not after a minute.

`python -m tests.support.impatient serve ...` is otherwise the same. So are its sessions at PostgreSQL.
"""

from __future__ import annotations

import socket
import sys

from filestore.repository.index.postgres import connections
from filestore_cli.start import main

if __name__ == "__main__":
    connections._SETTINGS.update(
        tcp_keepalives_idle="2", tcp_keepalives_interval="1", tcp_keepalives_count="3", tcp_user_timeout="5000"
    )
    connections._KEEPALIVES.update({socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1})
    sys.argv[0] = "filestore"
    main()
