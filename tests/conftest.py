"""Fixtures own subprocesses, ports and paths; clients are opened in the test body."""

from __future__ import annotations

import pytest

pytest_plugins = [
    "support.fixtures_letta",
    "support.fixtures_matrix",
    "support.fixtures_home",
]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the shared Letta V1 stay on one worker: it takes ten seconds to start one."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        callspec = getattr(item, "callspec", None)
        is_rest = callspec is not None and callspec.params.get("backend") == "rest"
        if "letta_v1" in names or is_rest:
            item.add_marker(pytest.mark.xdist_group("letta-v1"))
