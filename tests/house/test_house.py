"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "server").rglob("*.py")) + sorted((ROOT / "tools").rglob("*.py"))
BROAD_EXCEPTS = {
    "server/homeroom/mailbox.py",
    "server/homeroom/sync.py",
    "tools/homeroom_tools/toolkit.py",
}
"""The boundaries that may catch everything: around one item, one action, one tool call."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    said = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_module_is_over_500_lines_and_no_function_over_60(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_everything_is_caught_at_the_boundaries_alone() -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
            ):
                found.add(name_of(path))
    assert found == BROAD_EXCEPTS


def test_the_wheel_holds_the_two_packages_and_nothing_generic(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("homeroom-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"homeroom", "homeroom_tools", wheel.stem.rsplit("-", 3)[0] + ".dist-info"}
    assert "homeroom/py.typed" in names and "homeroom_tools/py.typed" in names


def test_the_constraints_name_versions_and_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all("==" in pin and "/" not in pin and "--" not in pin for pin in pins)
