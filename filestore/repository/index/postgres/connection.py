"""The type of a connection, which asyncpg itself does not describe."""

from __future__ import annotations

from typing import TypeAlias

import asyncpg

Connection: TypeAlias = asyncpg.Connection
"""A connection, or what the pool lends instead of one. Its functions are those of asyncpg."""
