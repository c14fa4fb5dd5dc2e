"""Fixtures own subprocesses, ports and paths; clients are opened in the test body."""

pytest_plugins = [
    "support.fixtures_letta",
    "support.fixtures_matrix",
    "support.fixtures_home",
]
