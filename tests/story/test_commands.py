"""The commands as a person types them."""

from __future__ import annotations

import stat
from pathlib import Path

import yaml
from mcp import Client

from support.admin import admin_of
from support.home import Home, on_v1
from support.talk import REPLY_S, answers, ask


async def test_sync_shows_its_plan_does_it_and_then_finds_nothing_to_do(home: Home) -> None:
    await home.letta.create_agent("Ada")
    never = home.run("sync", "--status")
    assert never.returncode == 2 and "none yet" in never.stdout
    plan = home.run("sync", "--dry-run")
    assert plan.returncode == 2, plan.stderr
    assert "create_room" in plan.stdout and "to do" in plan.stdout
    done = home.run("sync")
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    status = home.run("sync", "--status")
    assert status.returncode == 0, status.stdout + status.stderr
    assert "in step" in status.stdout and " actions in " in status.stdout
    again = home.run("sync")
    assert again.returncode == 0 and "0 actions planned" in again.stdout


@on_v1  # which tells of no new agent: nobody has made the home before it is asked
async def test_sync_beside_a_running_bridge_is_done_by_the_bridge(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service(HOMEROOM_SYNC_INTERVAL_S="3600") as service:
        await service.wait_in_step()
        await home.letta.create_agent("Brook")
        done = home.run("sync")
        assert done.returncode == 0, done.stderr
        assert "Brook" in done.stdout


async def test_explain_tells_a_persons_message_from_its_event_to_its_answer(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_TOOLSETS="operate") as service:
            room = await alice.join(await alice.wait_invite())
            asked = await alice.say(room, "!say the answer")
            answer = await alice.wait_event(answers(asked), REPLY_S)
            async with Client(f"{service.url}/mcp") as client:
                told = await client.call_tool("explain_delivery", {"id": asked})
    story = home.run("explain", asked)  # with no process running
    assert story.returncode == 0, story.stderr
    for part in (
        f"Received from {alice.id} in {room}",
        "attempt 1",
        answer["event_id"],
        "answered",
    ):
        assert part in story.stdout
    assert "the answer" not in story.stdout.lower().replace("the answer was posted", "")
    assert told.structured_content and told.structured_content["reply_id"] in story.stdout
    unknown = home.run("explain", "$nothing")
    assert unknown.returncode == 1 and "begins with $" in unknown.stderr
    assert unknown.stdout == "" and "Traceback" not in unknown.stderr


async def test_a_message_that_was_given_up_is_replayed_and_then_dropped(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            assert home.run("parked").stdout == "0 parked\n"
            asked = await alice.say(room, "!status 401 bad key")
            notice = await alice.wait_event(answers(asked), REPLY_S)
            assert "was not delivered" in notice["content"]["body"]
            listed = home.run("parked").stdout
            item_id = listed.split()[0]
            assert f"message of {alice.id}, {room}, was not delivered" in listed
            assert "!status" not in listed
            replayed = home.run("parked", "replay", item_id)
            assert replayed.returncode == 0, replayed.stderr
            await alice.wait_event(
                lambda e: "taken up again. It is delivered now" in e["content"].get("body", "")
            )
            await alice.wait_event(  # refused once more, and said once more
                lambda e: (
                    answers(asked)(e)
                    and "was not delivered" in e["content"]["body"]
                    and e["event_id"] != notice["event_id"]
                )
            )
            assert (await ask(alice, room, "!say next"))["content"]["body"] == "next"
            shown = home.run("parked", "show", item_id).stdout
            assert shown.count("Given up: ") == 2 and "a person had it replayed" in shown
            assert home.run("parked", "drop", item_id).stdout == f"{item_id} is dropped\n"
            dropped = await alice.wait_event(
                lambda e: answers(asked)(e) and "was dropped" in e["content"]["body"], REPLY_S
            )
            assert "It was not delivered" in dropped["content"]["body"]
            await ask(alice, room, "!say last")
            told = [body for body in await alice.bodies(room) if "was dropped" in body]
            assert len(told) == 1
        again = home.run("parked", "replay", item_id)
        assert again.returncode == 1 and "is cancelled, not parked" in again.stderr
        unknown = home.run("parked", "drop", "nope")
        assert unknown.returncode == 1 and "no parked item 'nope'" in unknown.stderr


async def test_doctor_passes_on_a_sound_installation_and_names_the_sick_part(home: Home) -> None:
    empty = home.run("doctor")
    assert empty.returncode == 0, empty.stdout
    assert "0 agents; make one in Letta" in empty.stdout
    await home.letta.create_agent("Ada")
    well = home.run("doctor")
    assert well.returncode == 0, well.stdout
    assert "1 agent\n" in well.stdout and "acts as @agent_hub:hs.test" in well.stdout
    home.letta.stop()
    sick = home.run("doctor")
    assert sick.returncode == 1
    assert "✗ Letta" in sick.stdout and "HOMEROOM_LETTA_URL" in sick.stdout
    assert "✓ homeserver" in sick.stdout, "one sick part does not hide the others"


async def test_doctor_finds_nothing_left_after_a_sync_and_sees_a_space_that_was_purged(
    own_home: Home,
) -> None:
    home = own_home
    for name in ("Ada", "Brook"):
        await home.letta.create_agent(name)
    async with home.login() as alice, admin_of(home.homeserver, "root") as admin:
        assert home.run("sync").returncode == 0
        well = home.run("doctor")
        assert well.returncode == 0, well.stdout
        assert "2 looked at, all as they should be" in well.stdout
        await admin.delete_room(await alice.join(await alice.wait_space_invite()))
        lost = home.run("doctor")
        assert lost.returncode == 0 and "all as they should be" not in lost.stdout
        assert "2 looked at, 5 actions left for the next sync" in lost.stdout, lost.stdout
        planned = home.run("sync", "--audit", "--dry-run")
        assert "5 actions planned" in planned.stdout, planned.stdout


async def test_a_token_the_homeserver_does_not_know_is_diagnosed(home: Home) -> None:
    home.run("registration", "--server-name", "hs.test", "--out", "other.yaml")
    path = home.directory / "other.yaml"
    sick = home.run("doctor", HOMEROOM_MATRIX_REGISTRATION=str(path))
    assert sick.returncode == 1 and "✗ homeserver" in sick.stdout
    tokens = yaml.safe_load(path.read_text())
    for secret in (tokens["as_token"], tokens["hs_token"]):
        assert secret not in sick.stdout + sick.stderr


def test_a_registration_is_written_once_and_for_its_owner(home: Home) -> None:
    made = home.run("registration", "--out", "new.yaml", "--url", "http://127.0.0.1:1")
    assert made.returncode == 0, made.stderr
    path: Path = home.directory / "new.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    registration = yaml.safe_load(path.read_text())
    assert registration["url"] == "http://127.0.0.1:1"
    assert registration["as_token"] not in made.stdout
    again = home.run("registration", "--out", "new.yaml")
    assert again.returncode == 78 and "exists" in again.stderr


def test_a_wrong_setting_stops_the_start_with_one_sentence_and_78(home: Home) -> None:
    for name, value, says in (
        ("HOMEROOM_LETTA_URL", "", "is missing"),
        ("HOMEROOM_LETTA_URL", "localhost", "must be a URL"),
        ("HOMEROOM_SYNC_INTERVAL_S", "often", "valid number"),
        ("HOMEROOM_MATRIX_REGISTRATION", "none.yaml", "cannot be read"),
        ("HOMEROOM_LETTA_BACKEND", "cloud", "app-server"),
    ):
        for command in (["serve"], ["serve", "--http", "0"], ["sync"]):
            stopped = home.run(*command, **{name: value})
            assert stopped.returncode == 78, (name, stopped.stderr)
            (line,) = stopped.stderr.splitlines()
            assert name in line and says in line
            assert stopped.stdout == ""


def test_an_open_address_without_a_token_is_refused(home: Home) -> None:
    stopped = home.run("serve", "--http", "0.0.0.0:0")
    assert stopped.returncode == 78 and "HOMEROOM_HTTP_TOKEN" in stopped.stderr


def test_a_misspelt_variable_is_pointed_out(home: Home) -> None:
    said = home.run("sync", "--dry-run", HOMEROOM_INVITES="@x:y.z")
    assert "HOMEROOM_INVITES is no setting" in said.stderr and "HOMEROOM_INVITE " in said.stderr


def test_the_help_names_every_command(home: Home) -> None:
    said = home.run("--help").stdout
    for command in ("serve", "sync", "registration", "doctor", "explain", "parked", "up", "demo"):
        assert command in said


async def test_only_selected_agents_move_in_and_what_is_switched_off_is_left_to_people(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada", tags=("team",))
    await home.letta.create_agent("Brook")
    settings = {"HOMEROOM_SELECT_TAGS": "team", "HOMEROOM_SWITCH_OFF": "rename,invites"}
    done = home.run("sync", **settings)
    assert done.returncode == 0, done.stderr
    assert "Ada" in done.stdout and "Brook" not in done.stdout
    async with home.login() as alice:
        assert alice.invites() == []
        await home.letta.rename_agent(ada.id, "Adele")
        again = home.run("sync", **settings)
        assert again.returncode == 0 and "0 actions planned" in again.stdout
        everything = home.run("sync")
        assert everything.returncode == 0, everything.stdout
        assert "set_room_name" in everything.stdout and "Brook" in everything.stdout
        names: set[str] = set()
        while len(names) < 2:
            names.add(await alice.room_name(await alice.join(await alice.wait_invite())))
        assert names == {"Adele - Letta Agent Chat", "Brook - Letta Agent Chat"}
