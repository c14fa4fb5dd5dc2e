"""The real servers that all is measured on: a Synapse, a Letta App Server, a scripted model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from homeroom.local.scripted_model import ScriptedModel
from support.app_server import AppServerHarness
from support.synapse import PASSWORD, Homeserver, prepare_homeserver

PERSON = "ann"


@dataclass(frozen=True)
class Stand:
    """Servers that are running, and a directory for everybody's state."""

    directory: Path
    letta: AppServerHarness
    homeserver: Homeserver
    person_id: str
    password: str = PASSWORD

    def environ(self, name: str, *, matrix_port: int = 0, letta_port: int = 0) -> dict[str, str]:
        """The whole environment of a Homeroom with a data directory called ``name``; with ports
        it takes its way to the servers through the taps that listen there."""
        matrix_url = f"http://127.0.0.1:{matrix_port}" if matrix_port else self.homeserver.url
        letta_url = f"ws://127.0.0.1:{letta_port}" if letta_port else self.letta.url
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOMEROOM_")}
        return inherited | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HOMEROOM_LETTA_URL": letta_url,
            "HOMEROOM_LETTA_TOKEN": self.letta.token,
            "HOMEROOM_LETTA_BACKEND": "app-server",
            "HOMEROOM_MATRIX_URL": matrix_url,
            "HOMEROOM_MATRIX_SERVER_NAME": self.homeserver.server_name,
            "HOMEROOM_MATRIX_REGISTRATION": str(self.homeserver.registration_path),
            "HOMEROOM_INVITE": self.person_id,
            "HOMEROOM_DATA_DIR": str(self.directory / name),
            "HOMEROOM_LOG_LEVEL": "WARNING",
        }


@contextmanager
def stand(directory: Path) -> Iterator[Stand]:
    """Starts the servers and stops them. Enter it outside of any event loop: children live as long
    as the thread that started them."""
    with ExitStack() as stack:
        model = ScriptedModel(directory / "model")
        stack.callback(model.stop)
        letta = AppServerHarness(directory / "letta", model.start())
        stack.callback(letta.stop)
        letta.start()
        homeserver = prepare_homeserver(directory / "homeserver")
        stack.callback(homeserver.synapse.stop)
        homeserver.synapse.start()
        yield Stand(directory, letta, homeserver, homeserver.person(PERSON))
