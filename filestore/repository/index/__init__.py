"""Indexes: names, records, chunks known and when last seen, tokens. The contract is in `protocol`."""
