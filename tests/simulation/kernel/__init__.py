"""The kernel of the simulation: threads, clock, event loops, sockets, disks and SQLite connections under one seed.

What runs is the product's own code, in one process of the operating system. These parts are replaced:

- Threads (`scheduler`, `primitives`): greenlets. Locks, events, pools and objects of each thread are made of them.
- Clocks (`hooks`, `process`): virtual. The wall clock belongs to a machine, and can jump.
- Event loops (`loops`): asyncio's own, with a selector for simulated sockets.
- Sockets (`network`, `sockets`): memory. A buffer is small or large by the seed, so that sends are partial. There are no names
  and no TLS, so a client uses `http://` and an address. Only TLS does not run.
- Files (`files`, `descriptors`, `listing`): the functions of `os` and `open` act on real files, and `disk` knows what a power cut
  would lose. `fsync` only tells the model. Files that are mapped into memory, extended attributes and `sync_file_range` are left
  out: the store uses none of them.
- SQLite (`databases`): SQLite itself, without waits inside. Its own files survive a power cut with all that was committed.
- Randomness: `os.urandom`, `random`, `secrets` and `uuid`. SQLite's `randomblob` stays random, and nothing depends on its value.

Not a step, because nobody else can see it: hashing, compression, and other work in memory. The libraries in C for that start no
Python code.

A seed gives the same steps only with the same PYTHONHASHSEED, since that decides the order of a set of bytes or texts.
"""
