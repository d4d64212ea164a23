"""`python -m filestore_cli` is `filestore`, for whoever knows the interpreter and not where its scripts are."""

from filestore_cli.main import main

main()
