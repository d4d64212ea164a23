"""`filestore bench`: how fast a server takes and gives on this hardware, and what limits it.

    command    the commands
    run        a plan, measured: a server, content, clients, and everything removed again
    processes  workers and servers, as they are started and ended
    worker     a process of a measurement: it makes content, finds ceilings, or is a client
    server     a server of its own
    content    what is moved
    ceilings   what this machine can do at most
    report     what is said of it: text, JSON
    plot       what is drawn of it

The process that runs a measurement makes and hashes nothing itself: what Linux tells of the memory of a process that was
started begins with that of whoever started it.
"""
