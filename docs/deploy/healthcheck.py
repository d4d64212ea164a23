"""Ask the server in this container whether it works. Usage: python healthcheck.py [PATH]; exit status 0 means that it does.

The server may speak TLS, with a certificate for the name that its clients use, so the certificate is not checked: the question
stays on this machine, has no token, and its answer is not secret.
"""

import contextlib
import http.client
import os
import ssl
import sys

PORT = int(os.environ.get("FILESTORE_PORT") or 8080)
SECONDS = 8
"""Longer than the server itself waits for a disk that hangs."""


def status(connection: http.client.HTTPConnection, path: str) -> int:
    """Return the status of the answer."""
    connection.request("GET", path)
    return connection.getresponse().status


def works(path: str) -> bool:
    """Return whether the server answers that it works. Raises OSError if nothing answers."""
    with contextlib.suppress(http.client.HTTPException, ConnectionResetError):
        if status(http.client.HTTPConnection("127.0.0.1", PORT, timeout=SECONDS), path) == http.client.OK:
            return True
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return status(http.client.HTTPSConnection("127.0.0.1", PORT, timeout=SECONDS, context=context), path) == http.client.OK
    except ssl.SSLError as error:
        # It wants a certificate of the client. Then this is all that can be known.
        return "CERTIFICATE_REQUIRED" in (error.reason or "")


if __name__ == "__main__":
    sys.exit(0 if works(sys.argv[1] if len(sys.argv) > 1 else "/healthz") else "the server answers that it does not work")
