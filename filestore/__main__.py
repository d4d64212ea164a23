"""`python -m filestore` runs the command `filestore`. This is the only module of the library that imports the command line."""

from __future__ import annotations

from filestore_cli.start import main

if __name__ == "__main__":
    main()
