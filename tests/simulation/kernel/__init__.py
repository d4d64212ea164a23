"""The kernel of the simulation: threads, clock, event loops, sockets, disks and SQLite connections under one seed."""
