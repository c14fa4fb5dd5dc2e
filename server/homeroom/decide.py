"""What becomes of what is said: room event -> items, or the rule by which it is left. Pure.

Owns the rules of what is relayed and the items of a message that a tool sends. Knows no clock, no
store and no wire. Invariants: an event becomes at most one turn; what we caused ourselves is never
relayed; whoever is not answered is told why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from homeroom.addressing import addressed, how_to_address
from homeroom.items import (
    Decision,
    Item,
    ItemKind,
    NewItem,
    Origin,
    Priority,
    StopWish,
    lane_of_turns,
)
from homeroom.model import AgentId, EventId, Json, Mapping, RoomEvent, Unread
from homeroom.pauses import asker, resumed_items
from homeroom.posts import notice_item, plain_label, text_items
from homeroom.residence import Guest
from homeroom.room_commands import (
    CATCH_UP,
    HELP_TEXT,
    STOP,
    STOP_ALL,
    Command,
    answer_invite,
    parse_command,
)
from homeroom.times import utc_text

__all__ = [
    "CATCH_UP", "PRIVATE_SCOPE", "chat_items", "decide", "held_notices", "lane_of_turns",
    "presence_items", "replay_notices", "unread_notice",
]  # fmt: skip

PRIVATE_SCOPE = "private"
"""The conversation of chats that no room sees."""
NOT_TEXT = frozenset({"m.image", "m.file", "m.audio", "m.video", "m.location"})
_RETIRED = (
    "I am retired: this agent is gone from Letta, so nobody reads what is written here. When the"
    " agent is there again, so am I."
)
_RETURNED = "I am back: this agent is in Letta again."


def decide(
    event: RoomEvent, mapping: Mapping, people_count: int, *, is_ghost: Callable[[str], bool],
    catch_up_ms: float = math.inf, keep_ms: float = math.inf, quiet_ms: int = 0,
    people: Collection[str] = (),
) -> Decision:  # fmt: skip
    """What becomes of an event in a room of the agent's. Pure.

    ``people`` are those who are invited to every agent's room, and may ask for that.

    What would be answered and is more than ``catch_up_ms`` late is held until somebody asks. What
    is more than ``keep_ms`` late may have been answered and forgotten, so it is left alone. Several
    messages of one person become one turn if ``quiet_ms`` pass after the last.

    Of our own ghosts only those are seen here that were none when they spoke: users of an older
    bridge which the registration has come to cover since.

    The homeserver accepts an event only from a member of the room, so whoever is heard is one.
    Source: https://spec.matrix.org/v1.16/rooms/v11/#authorization-rules (rule 5).
    """
    if is_ghost(event.sender):
        return Decision("echo: one of our own ghosts sent it")
    if event.late_ms > keep_ms:
        return Decision("too old: what was answered then is not known any more")
    decision = _decide_on_time(event, mapping, people_count, people)
    # A command is not caught up on, and of the retired nobody is there to.
    orders = decision.releases_held or decision.resumes or decision.stops
    at_once = orders or mapping.retired
    if decision.items and event.late_ms > catch_up_ms and not at_once:
        late = f"it had been there for {_duration(event.late_ms)} when it was first seen"
        return Decision(f"too late: {late}", held=True)
    if quiet_ms:
        items = [replace(i, quiet_ms=quiet_ms) for i in decision.items if i.kind is ItemKind.TURN]
        return replace(decision, items=tuple(items) or decision.items)
    return decision


def held_notices(mapping: Mapping, oldest: EventId, count: int, since_ms: int) -> Sequence[NewItem]:
    """What a room is told of messages that came late and are not answered by themselves. Pure."""
    what = "1 message was" if count == 1 else f"{count} messages were"
    text = (
        f"⏸️ {what} written here while I was away, the first at {utc_text(since_ms)}. That is"
        " long ago, or more than I can take at once, so I do not answer by myself: write"
        f" {CATCH_UP} and I do, in order."
    )
    assert mapping.room_id
    return (notice_item(mapping.ghost, mapping.room_id, None, text, dedupe_key=f"held:{oldest}"),)


def unread_notice(mapping: Mapping, unread: Unread) -> Sequence[NewItem]:
    """What a room is told of a time in which none of ours could read it. Pure."""
    text = (
        f"⚠️ What was written here between {utc_text(unread.from_ms)} and"
        f" {utc_text(unread.to_ms)} could not be read: neither I nor the hub was in the room then,"
        " and it shows its members nothing of before. Write it again if it still matters."
    )
    assert mapping.room_id
    key = f"unread:{unread.room_id}:{unread.from_ms}"
    return (notice_item(mapping.ghost, mapping.room_id, None, text, dedupe_key=key),)


def _duration(ms: int) -> str:
    minutes = ms // 60_000
    if minutes < 120:
        return f"{minutes} min" if minutes else f"{ms // 1000} s"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def _decide_on_time(
    event: RoomEvent, mapping: Mapping, people_count: int, people: Collection[str]
) -> Decision:
    if event.origin_server_ts_ms < mapping.heard_from_ms:
        return Decision("too old: it was there before Homeroom took the room over")
    if event.type == "m.room.encrypted":
        return _refuse_encrypted(event, mapping)
    kind = event.content.get("msgtype")
    kind = kind if isinstance(kind, str) else ""
    relation = event.content.get("m.relates_to")
    relation = relation if isinstance(relation, dict) else {}
    if kind == "m.notice":
        return Decision("notice: programs speak so, and programs are not answered")
    if relation.get("rel_type") == "m.replace":
        return Decision("edit: only the first version of a message is delivered")
    text = _text_of(event.content)
    command = parse_command(text, event.sender) if kind == "m.text" else None
    if isinstance(mapping, Guest) and mapping.others:
        if command and not mapping.is_first:
            return Decision("command: another agent in the room answers it")
        if not command and (passed := _pass_over(event, mapping, text)):
            return passed
    if kind in NOT_TEXT:
        return _refuse_not_text(event, mapping, kind)
    if kind not in ("m.text", "m.emote") or not text.strip():
        return Decision("empty: it has no text")
    thread = relation.get("event_id") if relation.get("rel_type") == "m.thread" else None
    thread = thread if isinstance(thread, str) else None
    if mapping.retired:  # also what asks for old messages: they wait until the agent is back
        return _refuse_retired(event, mapping, thread)
    if command:
        return _obey(command, event, mapping, people)
    turn = _turn(event, mapping, f"* {text}" if kind == "m.emote" else text, thread, people_count)
    full = _full_notice(mapping, event, "This one was not taken; write it again later.")
    return Decision("relayed", (turn,), if_full=(full,))


def _turn(
    event: RoomEvent, mapping: Mapping, text: str, thread: str | None, people_count: int
) -> NewItem:
    return NewItem(
        lane=lane_of_turns(mapping.agent_id, event.room_id),
        kind=ItemKind.TURN,
        payload={
            "agent_id": mapping.agent_id,
            "ghost": mapping.ghost,
            "scope": event.room_id,
            "text": text,
            "sender": event.sender,
            "name_sender": people_count > 1,
            "room_id": event.room_id,
            "event_id": event.id,
            "thread": thread,
        },
        dedupe_key=_turn_key(event, mapping),
        origin=Origin.ROOM_EVENT,
        who=event.sender,
    )


def _refuse_encrypted(event: RoomEvent, mapping: Mapping) -> Decision:
    notice = notice_item(
        mapping.ghost, event.room_id, event.id,
        "This message was not delivered: it is encrypted, and agents cannot read encrypted"
        " messages. Please write to me in a room without encryption: make a new room (not a"
        " direct chat, which many clients always encrypt), leave encryption off in its"
        " settings, and invite me.",
        dedupe_key=f"encrypted:{event.room_id}:{event.sender}",
    )  # fmt: skip
    return Decision("encrypted: agents cannot read it", (notice,))


def _refuse_not_text(event: RoomEvent, mapping: Mapping, kind: str) -> Decision:
    notice = notice_item(
        mapping.ghost, event.room_id, event.id,
        "This was not delivered: I can only read text so far.",
        dedupe_key=f"not-text:{event.id}",
    )  # fmt: skip
    return Decision(f"not text: {kind} is not relayed yet", (notice,))


def _turn_key(event: RoomEvent, mapping: Mapping) -> str:
    is_shared = isinstance(mapping, Guest) and mapping.others
    return f"event:{event.id}" + (f"@{mapping.agent_id}" if is_shared else "")


def _obey(
    command: Command, event: RoomEvent, mapping: Mapping, people: Collection[str]
) -> Decision:
    def notice(text: str) -> NewItem:
        key = f"{'catch-up' if command.kind == 'catch_up' else command.kind}:{event.id}"
        return notice_item(mapping.ghost, event.room_id, event.id, text, dedupe_key=key)

    if command.kind == "catch_up":
        full = _full_notice(mapping, event, f"Write {CATCH_UP} again when they are answered.")
        return Decision(
            "command: what came too late is answered",
            (notice("Nothing is left to catch up on here."),),
            releases_held=True, if_full=(full,),
        )  # fmt: skip
    if command.kind == "help":
        return Decision("command: the commands were told", (notice(HELP_TEXT),))
    if command.kind == "resume":
        if isinstance(mapping, Guest):  # whoever is in a further room was not invited by us
            where = "Nothing was resumed: write that in my own room, the one Homeroom made for me."
            return Decision(f"command refused: {where}", (notice(where),))
        nothing = "No messages between me and other agents are paused."
        return Decision(
            "command: messages between agents go on", (notice(nothing),), resumes=resumed_items
        )
    if command.kind == "stop":
        rest = (
            "" if command.waiting_too else f" What waits is left alone: {STOP_ALL} ends that, too."
        )
        wrote = f"{event.sender} wrote {STOP_ALL if command.waiting_too else STOP}"
        return Decision(
            "command: what the agent does here is stopped",
            (notice(f"I am not working on anything here.{rest}"),),
            stops=StopWish(event.sender, wrote, command.waiting_too, cancel_notices),
        )  # fmt: skip
    said, is_allowed = answer_invite(command, event.sender, people)
    outcome = "command: somebody is invited again" if is_allowed else f"command refused: {said}"
    return Decision(outcome, (notice(said),), asks=(command.person,) if is_allowed else ())


def _pass_over(event: RoomEvent, guest: Guest, text: str) -> Decision | None:
    """Why an agent of several leaves a message alone; None if it is for this one."""
    name = guest.display_name or guest.agent_name
    agents = [(guest.ghost, name), *guest.others]
    meant = addressed(event.content, text, agents)
    if guest.ghost in meant:
        return None
    if meant:
        return Decision("not addressed: it is for another agent in the room")
    if not guest.is_first or event.late_ms:
        return Decision("not addressed: it names none of the agents in the room")
    names = [plain_label(other) for _, other in agents]
    notice = notice_item(
        guest.ghost, event.room_id, None, how_to_address(names),
        dedupe_key=f"address:{event.room_id}",
    )  # fmt: skip
    return Decision("not addressed: it names none of the agents in the room", (notice,))


def _full_notice(mapping: Mapping, event: RoomEvent, advice: str) -> NewItem:
    return notice_item(
        mapping.ghost, event.room_id, event.id,
        f"⚠️ Too many messages are waiting already. {advice}",
        dedupe_key=f"full:{event.id}",
    )  # fmt: skip


def chat_items(
    agent_id: AgentId,
    mapping: Mapping | None,
    message: str,
    *,
    client: str,
    mirror: bool,
    key: str,
    agent_name: str = "",
    from_agent: str = "",
    from_agent_name: str = "",
    priority: Priority = Priority.NORMAL,
    expires_after_ms: int = 0,
) -> list[NewItem]:
    """The items of a message that a tool sends: the turn, and what the agent's room sees of it.

    A mirrored chat belongs to the room's conversation: the room shows all that the agent was told
    there. One that is not mirrored has a conversation of its own, so that nothing of it can
    surface in the room.

    ``from_agent`` is the agent that sends it; empty for a person's client. The ``hop`` of a message
    of an agent is set where it is put on its lane.
    """
    room_id = mapping.room_id if mapping and mirror else None
    scope = room_id or PRIVATE_SCOPE
    turn = NewItem(
        lane=lane_of_turns(agent_id, scope),
        kind=ItemKind.TURN,
        payload={
            "agent_id": agent_id,
            "ghost": mapping.ghost if mapping else "",
            "scope": scope,
            "text": message,
            "agent_name": agent_name,
            "client": client,
            "mirror_room_id": room_id,
            "from_agent": from_agent,
            "from_agent_name": from_agent_name,
            "hop": 0,
        },
        dedupe_key=f"chat:{key}",
        origin=Origin.TOOL_CALL,
        who=from_agent or client,
        priority=priority,
        expires_after_ms=expires_after_ms,
    )
    if not (room_id and mapping):
        return [turn]
    label = f"{asker(turn.payload)} over MCP:\n\n{message}"
    return [turn, *text_items(mapping.ghost, room_id, label, f"mirror:{key}", notice=True)]


def turn_notices(item: Item, why: str, mark: str, text: str) -> list[NewItem]:
    """What the room of a message is told of it: ``mark``, whose message it is, ``text``. Pure.

    Nothing is told of a post, which is seen when it comes, or of a chat that no room sees.
    """
    payload = item.payload
    room_id = payload.get("room_id") or payload.get("mirror_room_id")
    if item.kind is not ItemKind.TURN or not room_id:
        return []
    whose = (
        "Your message" if payload.get("event_id") else f"The message of {asker(payload, mark='')}"
    )
    return text_items(
        payload["ghost"], room_id, f"{mark} {whose} {text}", f"{why}:{item.cause}", notice=True,
        reply_to=payload.get("event_id"), thread=payload.get("thread"),
    )  # fmt: skip


def replay_notices(item: Item) -> list[NewItem]:
    """What a room is told when a person has a message of it replayed. Pure."""
    how = "I find out first whether it was delivered." if item.begun else "It is delivered now."
    return turn_notices(item, "replay", "🔁", f"is taken up again. {how}")


def cancel_notices(item: Item) -> list[NewItem]:
    """What a room is told when a person has ended a message of it that had not begun. Pure."""
    text = f"was cancelled by {_who_ended(item)}. It was not delivered."
    return turn_notices(item, "cancelled", "🚫", text)


def stop_notices(item: Item, *, goes_on: bool) -> list[NewItem]:
    """What a room is told when a person has stopped the agent in the middle of a turn. Pure.

    ``goes_on``: the agent's server could not be made to stop, as far as is known.
    """
    text = (
        f"is not answered: {_who_ended(item)} stopped me. What I had already done for it may have"
    )
    text += " happened."
    if goes_on:
        text += " Letta could not stop it, so I may go on with it; what I say then is not posted."
    return turn_notices(item, "stopped", "🛑", text)


def _who_ended(item: Item) -> str:
    who = re.sub(r"[^\w@:.=/+-]", "", item.stop.who if item.stop else "")
    return who[:255] or "whoever runs this Homeroom"


def drop_notices(item: Item) -> list[NewItem]:
    """What a room is told when a person has ended a message of it, or a part of an answer, that was
    given up. Pure."""
    if item.kind is ItemKind.POST:
        return _drop_post_notices(item)
    how = "It may have been delivered." if item.begun else "It was not delivered."
    what = f"was dropped by whoever runs this Homeroom, and will not be answered. {how}"
    return turn_notices(item, "dropped", "🗑️", what)


def _drop_post_notices(item: Item) -> list[NewItem]:
    """Of all posts an answer alone is waited for. It could not be posted, so perhaps nothing can:
    then nobody need decide about this notice, too."""
    payload = item.payload
    if not item.dedupe_key.startswith("reply:"):
        return []
    how = "It may have been posted." if item.begun else "It was not posted."
    relation = payload["content"].get("m.relates_to", {})
    notice = notice_item(
        payload["ghost"], payload["room_id"], relation.get("m.in_reply_to", {}).get("event_id"),
        f"🗑️ I had an answer here that was dropped by whoever runs this Homeroom. {how}",
        dedupe_key=item.dedupe_key.replace("reply:", "dropped:", 1),
        thread=relation.get("event_id"),
    )  # fmt: skip
    return [replace(notice, payload={**notice.payload, "if_possible": True})]


def _refuse_retired(event: RoomEvent, mapping: Mapping, thread: str | None) -> Decision:
    notice = notice_item(
        mapping.ghost, event.room_id, event.id, f"⚠️ Your message was not delivered. {_RETIRED}",
        dedupe_key=f"retired:{event.id}", thread=thread,
    )  # fmt: skip
    return Decision("retired: the agent is gone from Letta", (notice,))


def presence_items(mapping: Mapping) -> list[NewItem]:
    """What the room is told when its agent has been retired, or has come back. Said once each."""
    if mapping.room_id is None or mapping.room_gone:
        return []
    text = f"⚠️ {_RETIRED} Nothing was deleted." if mapping.retired else _RETURNED
    key = f"presence:{mapping.agent_id}:{mapping.missing_since_ms}:{mapping.retired}"
    return text_items(mapping.ghost, mapping.room_id, text, key, notice=True)


def _text_of(content: Json) -> str:
    body = content.get("body")
    if not isinstance(body, str):
        return ""
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and "m.in_reply_to" in relation:
        # Older clients quote what they answer above it; the agent has read that already.
        # Source: https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies
        body = re.sub(r"\A> (?:\* )?<@[^>\n]+>.*\n(?:>.*\n)*\n?", "", body)
    return body
