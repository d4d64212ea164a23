"""Indexes keep records, rows of chunks, and tokens. The module `protocol` says what every index must do."""
