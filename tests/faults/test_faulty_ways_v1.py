"""Every fault of the wire on the way of a message to Letta V1: each is answered once, in order, and
nothing is given up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from homeroom.local.scripted_model import ScriptedModel
from support.faulty import LETTA, V1_TURN, Stand, faulty_stand, run_fault
from support.fixtures_letta import LettaServer
from support.synapse import Homeserver


@pytest.fixture(scope="module")
def on_v1(
    synapse: Homeserver,
    letta_v1: LettaServer,
    scripted_model: ScriptedModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stand]:
    """One for all faults."""
    letta_v1.lose_agents()
    directory = tmp_path_factory.mktemp("faulty-rest")
    with faulty_stand(letta_v1, "rest", synapse, scripted_model, directory) as stand:
        yield stand


@pytest.mark.parametrize("name", LETTA)
async def test_a_message_to_letta_v1_is_answered_once_whatever_befalls_its_way(
    on_v1: Stand, name: str
) -> None:
    fault, times = LETTA[name]
    await run_fault(on_v1, on_v1.letta, V1_TURN, fault, times=times)
