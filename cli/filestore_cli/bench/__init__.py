"""`filestore bench`: how fast a server takes and sends content on this hardware, and what limits it.

    command    the commands
    run        carries out a plan: starts a server, makes content, starts clients, and removes everything again
    processes  starts and ends workers and servers
    worker     a process of a measurement: it makes content, measures ceilings, or is a client
    link       what a link carries, and what a plain HTTP client reaches
    remote     the measurement of a server of the user, and of the link to it
    remote_report  its result
    server     a server that is started for the measurement
    content    makes the content that is moved
    ceilings   measures the highest rates of this machine
    limits     what limits a transfer
    report     the result as text and JSON
    plot       the result as a plot

The process that runs a measurement makes and hashes no content itself. On Linux, the peak memory of a new process
begins with that of its parent, so a large parent would make that of each client wrong.
"""
