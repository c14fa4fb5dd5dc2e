"""``python bundle/build.py [--mcpb COMMAND] [OUT]``: the bundle that Claude Desktop installs.

A bundle is the sources and a manifest. The host's uv installs what they depend on for its own
platform, so one bundle does for all. Packed by the official tool, which also checks the manifest.

Source: https://github.com/modelcontextprotocol/mcpb
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MCPB = "npx --yes @anthropic-ai/mcpb@2.1.2"
CONTENTS = ("server", "tools", "pyproject.toml", "README.md", "LICENSE")


def stage(directory: Path) -> str:
    """Lays out what goes into the bundle, and returns the version it has."""
    for name in CONTENTS:
        source = ROOT / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, directory / name, ignore=unwanted)
        else:
            shutil.copy(source, directory / name)
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    manifest = json.loads((ROOT / "bundle" / "manifest.json").read_text()) | {"version": version}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return version


def main() -> int:
    """The exit code of the tool that packs."""
    parser = argparse.ArgumentParser(prog="python bundle/build.py")
    parser.add_argument("--mcpb", default=MCPB, metavar="COMMAND", help="how to run the packer")
    parser.add_argument("out", nargs="?", type=Path, help="the file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="homeroom-bundle-") as name:
        version = stage(Path(name))
        out: Path = options.out or ROOT / "dist" / f"homeroom-{version}.mcpb"
        out = out.resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [*shlex.split(options.mcpb), "pack", name, str(out)], check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
