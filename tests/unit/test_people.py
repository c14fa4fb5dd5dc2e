"""Whose invitations agents accept, and who may ask to be invited again."""

from __future__ import annotations

import pytest

from homeroom.config import Config
from homeroom.errors import Misuse
from homeroom.model import GhostId, RoomId
from homeroom.people import askable, check_askable, guest_policy_of, why_declined
from homeroom.residence import Invitation

GHOST, ROOM = GhostId("@agent_1:hs.test"), RoomId("!r")
YOU, NEAR, FAR = "@you:far.test", "@near:hs.test", "@far:far.test:8448"


def config(**how: str) -> Config:
    return Config(
        letta_url="http://127.0.0.1:1", matrix_server_name="hs.test", invite=(YOU,), **how
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "accepted"),
    [
        ("invited-people", {YOU}),
        ("local", {NEAR}),
        ("nobody", set()),
        ("invited-people,local", {YOU, NEAR}),
        (f"{FAR}", {FAR}),
        ("far.test", {YOU}),
        ("far.test:8448", {FAR}),
        ("test", ...),
        ("", {YOU}),
    ],
)
def test_the_setting_says_whose_invitations_are_accepted(setting: str, accepted: object) -> None:
    if accepted is ...:
        with pytest.raises(ValueError, match="is none of invited-people"):
            config(accept_invites=setting)
        return
    policy = guest_policy_of(config(**({"accept_invites": setting} if setting else {})))
    found = {
        who
        for who in (YOU, NEAR, FAR, "@nearby:hs.test.evil", "@x:nobody", "@x:local")
        if not why_declined(
            Invitation(ROOM, GHOST, who), policy, inviter_is_ghost=False, is_retired=False
        )
    }
    assert found == accepted


@pytest.mark.parametrize(
    ("invitation", "how", "why"),
    [
        (Invitation(ROOM, GHOST, YOU), {"inviter_is_ghost": True}, "do not invite each other"),
        (Invitation(ROOM, GHOST, YOU), {"is_retired": True}, "gone from Letta"),
        (Invitation(ROOM, GHOST, YOU, is_space=True), {}, "a space holds rooms"),
        (Invitation(ROOM, GHOST, NEAR), {}, "HOMEROOM_ACCEPT_INVITES (invited-people)"),
        (Invitation(ROOM, GHOST, YOU, is_direct=True), {}, ""),
    ],
)
def test_an_invitation_that_is_declined_has_a_reason(
    invitation: Invitation, how: dict[str, bool], why: str
) -> None:
    how = {"inviter_is_ghost": False, "is_retired": False} | how
    said = why_declined(invitation, guest_policy_of(config()), **how)
    assert (why in said) if why else said == ""


def test_only_those_on_the_list_may_ask_and_nobody_while_invitations_are_switched_off() -> None:
    check_askable(YOU, config())
    with pytest.raises(Misuse, match="not in HOMEROOM_INVITE"):
        check_askable(NEAR, config())
    with pytest.raises(Misuse, match="HOMEROOM_SWITCH_OFF"):
        check_askable(YOU, config(switch_off="invites"))
    assert askable(config()) == (YOU,) and askable(config(switch_off="invites")) == ()
