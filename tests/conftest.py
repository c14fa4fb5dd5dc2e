"""Fixtures own subprocesses, ports and paths; clients are opened in the test body."""

import signal

pytest_plugins = [
    "support.fixtures_letta",
    "support.fixtures_matrix",
    "support.fixtures_home",
]

# A shell starts what runs in its background deaf to Ctrl-C, and so are the children of that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
