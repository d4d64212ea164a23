"""An index in PostgreSQL, which any number of processes on any number of hosts use."""
