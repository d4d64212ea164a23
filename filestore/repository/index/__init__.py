"""Indexes keep names, records, known chunks with their last-seen times, and tokens. `protocol` holds the contract."""
