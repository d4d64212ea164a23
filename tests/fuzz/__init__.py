"""Coverage-guided fuzzing of every parser of bytes from outside: see `docs/fuzzing.md`."""
