"""The facade that the tools and the commands call, and the owner of the loops.

Owns the order in which things are opened and closed, the lease, and who runs which loop. Builds
no vendor object and speaks no wire. Invariant: a loop that dies ends the process (``open_app``
raises); a service that is away does not: it is connected to again, and calls say so meanwhile.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from homeroom.asking import Asking, Question
from homeroom.background import background
from homeroom.bridge import Bridge
from homeroom.chats import LOCAL_CALLER, is_chat_of, why_no_answer
from homeroom.config import Config
from homeroom.deliveries import Deliveries
from homeroom.directory import Directory
from homeroom.errors import NotFound, Unavailable
from homeroom.health import Health
from homeroom.items import CaughtUp, ItemState, ParkedPage, Priority, ReplyView, Story
from homeroom.letta import Letta, open_letta
from homeroom.letta.absence import Absence
from homeroom.mailbox import Mailbox
from homeroom.matrix import Matrix, open_matrix
from homeroom.memory import Memory
from homeroom.model import ItemId, RoomId, SyncProgress, SyncReport
from homeroom.old_homes import Adoption, OldHome, dump_homes, read_adoptions
from homeroom.people import check_askable
from homeroom.progress import read_progress
from homeroom.reading import (
    AgentPage,
    AgentView,
    Edit,
    MemoryChange,
    MemoryHits,
    MemoryView,
    RoomPage,
    RoomTranscript,
    Watched,
)
from homeroom.registration import Registration, load_registration
from homeroom.reports import (
    SyncStatus,
    raise_refusal,
    read_report,
    read_status,
)
from homeroom.residence import Fault, RoomsReport
from homeroom.rooms import Rooms
from homeroom.rooms_report import examine_rooms, read_fixed, with_fixed
from homeroom.service import Service
from homeroom.speaking import Speaking
from homeroom.store import Store, open_store
from homeroom.sync_run import OnAction
from homeroom.watch import Watch

log = logging.getLogger(__name__)

OnProgress = Callable[[str], Awaitable[None]]
OnSyncProgress = Callable[[SyncProgress | None], Awaitable[None]]

SYNC_WAIT_S = 45.0
"""How long a tool waits for the reconciliation it asked for: LLM clients give up after 60 s."""
SYNC_SILENCE_S = 5.0
"""Whoever waits for a reconciliation hears of it so often at least: some count 10 s as lost."""
IMPORT_WAIT_S = 600.0
"""Thousands of rooms are looked at in a minute or two."""


class App:
    """What Homeroom can do, for tools and commands. Raises the errors of ``homeroom.errors``."""

    def __init__(
        self, config: Config, store: Store, registration: Registration | None, *,
        read_only: bool = False,
    ) -> None:  # fmt: skip
        self.config = config
        self._store, self._registration = store, registration
        self._mailbox = Mailbox(store)
        self._deliveries = Deliveries(store, status_events=config.status_events)
        self.letta = Service[Letta](partial(_open_known_letta, config, Absence()), "letta")
        self.matrix: Service[Matrix] | None = None
        if registration:
            self.matrix = Service[Matrix](
                partial(_open_checked_matrix, config, registration, read_only), "matrix"
            )
        self._speaking = Speaking(store)
        self.bridge = Bridge(config, store, self.letta, self.matrix, self._speaking)
        self._directory = Directory(self.letta.get, store, config)
        self._asking = Asking(config, store, self._directory)
        self._memory = Memory(self.letta.get, store, self._directory, notices=config.memory_notices)
        self._rooms = Rooms(
            store, self.bridge.get_matrix, self._directory.resolve, config.matrix_server_name
        )
        self._watch = Watch(store, self._directory, self._rooms, self._memory)
        self._health = Health(store, self.letta, self.matrix, self.bridge)

    # --- agents ----------------------------------------------------------------------------------

    async def list_agents(self, query: str = "", limit: int = 50, cursor: str = "") -> AgentPage:
        """A page of agents in the order of their names. The cursor survives a restart."""
        return await self._directory.page(query, limit, cursor)

    async def get_agent(self, agent: str) -> AgentView:
        """The agent with that id or name. Raises NotFound, Ambiguous."""
        return await self._directory.view(agent)

    async def sync(
        self, *, dry_run: bool = False, confirm_removals: bool = False, audit: bool = False,
        invite: str = "", wait_s: float = SYNC_WAIT_S, on_progress: OnSyncProgress | None = None,
    ) -> SyncReport:  # fmt: skip
        """One reconciliation, carried out by whichever process runs the bridge; with ``dry_run``
        what it would do, found out by this one, which changes nothing.

        ``on_progress`` hears how far it has got (None: it has not begun), whenever that changes
        and every ``SYNC_SILENCE_S``.

        ``confirm_removals`` retires however many agents are gone from Letta: a person's word.
        ``audit`` looks at every room itself first.
        ``invite`` is a person who asks to be invited again into every agent's room.

        Raises:
            Misuse: ``invite`` is not one of those who are invited to every agent's room.
            Unsupported: Matrix is not configured.
            Unavailable: Letta, or within ``wait_s`` the process that runs the bridge, does not
                answer.
        """
        if invite:
            check_askable(invite, self.config)
        await self.bridge.get_matrix()
        if dry_run:
            with anyio.move_on_after(wait_s):
                async with _told_every(SYNC_SILENCE_S, on_progress):
                    return await self.bridge.preview_sync(
                        confirm_removals=confirm_removals, audit=audit,
                        invite=[invite] if invite else (),
                    )  # fmt: skip
            raise Unavailable("store", f"looking took longer than {wait_s:.0f} s")
        if invite:
            await self._store.request_errand("invite", invite)
        request = await self._store.request_sync(confirm_removals=confirm_removals, audit=audit)
        told, told_at_s = None, time.monotonic()

        async def find() -> SyncReport | None:
            nonlocal told, told_at_s
            if found := await self._store.find_sync_report(request):
                return read_report(found)
            got = read_progress(await self._store.find_sync_progress(request))
            silent_s = time.monotonic() - told_at_s
            if on_progress and (got != told or silent_s >= SYNC_SILENCE_S):
                told, told_at_s = got, time.monotonic()
                await on_progress(got)
            return None

        if report := await self._store.wait_for(find, wait_s, SYNC_SILENCE_S):
            return report
        raise Unavailable("store", "the sync is still running, or the bridge cannot work now")

    async def sync_once(
        self, on_action: OnAction, on_progress: Callable[[SyncProgress], None], *,
        dry_run: bool = False, confirm_removals: bool = False, audit: bool = False,
        invite: str = "",
    ) -> SyncReport:  # fmt: skip
        """One reconciliation: by this process if nobody runs the bridge, else by whoever does, of
        whose actions only the progress is told."""
        if invite:
            check_askable(invite, self.config)
        await self.bridge.get_matrix()
        if dry_run:
            return await self.sync(
                dry_run=True, confirm_removals=confirm_removals, audit=audit, invite=invite,
                wait_s=math.inf,
            )  # fmt: skip
        report = await self.bridge.sync_once(
            on_action, on_progress, confirm_removals=confirm_removals, audit=audit,
            invite=[invite] if invite else (),
        )  # fmt: skip
        if report is not None:
            return report

        async def tell(progress: SyncProgress | None) -> None:
            on_progress(progress or SyncProgress())

        return await self.sync(
            confirm_removals=confirm_removals, audit=audit, invite=invite, wait_s=3600.0,
            on_progress=tell,
        )  # fmt: skip

    async def import_homes(
        self, homes: Sequence[OldHome], *, dry_run: bool = False, wait_s: float = IMPORT_WAIT_S
    ) -> list[Adoption]:
        """Adopts users and rooms of the system before: by this process if nobody runs the bridge,
        else by whoever does. ``dry_run`` only tells what would be adopted.

        Raises:
            Unsupported: Matrix is not configured.
            Unavailable: Letta, the homeserver or the process that runs the bridge does not answer.
        """
        await self.bridge.get_matrix()
        if dry_run:
            return await self.bridge.preview_import(homes)
        done = await self.bridge.import_once(homes)
        if done is not None:
            return done
        request = await self._store.request_import(dump_homes([*homes]))

        async def find() -> list[Adoption] | None:
            if found := await self._store.find_import_report(request):
                raise_refusal(found)
                return read_adoptions(found)
            return None

        if (adopted := await self._store.wait_for(find, wait_s)) is not None:
            return adopted
        raise Unavailable(
            "store", "the process that runs the bridge has the import and has not ended it yet"
        )

    async def sync_status(self) -> SyncStatus:
        """How the last reconciliation ended, whichever process ran it. Asks nobody."""
        return read_status(*await self._store.find_last_syncs())

    # --- rooms -----------------------------------------------------------------------------------

    async def diagnose_rooms(self, fix: bool = False, wait_s: float = SYNC_WAIT_S) -> RoomsReport:
        """Who serves which room and what should not be so, by what the hub knows; with ``fix``
        what can be mended is, by whichever process runs the bridge, and nothing is deleted.

        Raises:
            Unsupported: Matrix is not configured.
            Unavailable: the homeserver, or (with ``fix``) the process that runs the bridge.
        """
        matrix = await self.bridge.get_matrix()
        fixed = await self._fix_rooms(wait_s) if fix else ()
        refusals, counts = await self._store.list_refusals()
        rooms = examine_rooms(
            await self._store.list_rooms(), await self._store.list_mappings(),
            await self._store.list_claims(), matrix.hub, matrix.is_ghost,
            await self._store.list_unread(),
        )  # fmt: skip
        report = RoomsReport(
            rooms, tuple(refusals), counts["invitation"], counts["conflict"]
        )  # fmt: skip
        return with_fixed(report, fixed)

    async def _fix_rooms(self, wait_s: float) -> Sequence[tuple[RoomId, Fault]]:
        done = await self.bridge.fix_rooms()
        if done is not None:
            return done
        errand = await self._store.request_errand("fix_rooms")
        answer = await self._store.wait_for(partial(self._store.find_errand_answer, errand), wait_s)
        if answer is not None:
            return read_fixed(answer)
        raise Unavailable("store", "the rooms are still being mended, or the bridge cannot work")

    async def hint_invitations(self, ghosts: Collection[str]) -> None:
        """The homeserver has pushed something, perhaps that these ghosts were invited."""
        self.bridge.hint_invitations(ghosts)

    # --- chat ------------------------------------------------------------------------------------

    async def chat(
        self, agent: str, message: str, *, client: str = "", mirror: bool = True,
        caller: str = LOCAL_CALLER, from_agent: str = "", idempotency_key: str = "",
        priority: Priority = Priority.NORMAL, expires_after_s: float = 0.0,
        find_s: float = math.inf,
    ) -> str:  # fmt: skip
        """Puts ``message`` on the lane of the agent (id or name). Returns the reply id, which is
        ``caller``'s alone.

        From here on the message is durable: it is answered whoever waits, also after a restart;
        unless it still waits after ``expires_after_s`` (0: for however long).
        Sent again with the same key, or without one within ten seconds, it is the same message.
        ``from_agent`` (id or name) is the agent that sends it, if one does. Raises ExchangePaused
        if the two have talked too much, and Unavailable if Letta does not say within ``find_s``
        which agents there are and no home in the store tells: then nothing was sent.
        """
        return await self._asking.ask(
            Question(
                agent, message, client, caller, from_agent, mirror, idempotency_key, priority,
                expires_after_s, find_s,
            )
        )  # fmt: skip

    async def wait_reply(
        self, reply_id: str, wait_s: float, on_progress: OnProgress | None = None,
        *, caller: str = LOCAL_CALLER,
    ) -> ReplyView:  # fmt: skip
        """Where a chat stands, at the latest after ``wait_s`` seconds; sooner if it has ended.

        ``on_progress`` gets what the agent says meanwhile, piece by piece (about one a second), by
        whichever process it is talked to.
        Cancelling it stops the waiting, not the work.

        Raises:
            NotFound: there is no such reply, or it is another caller's.
        """
        item_id = ItemId(reply_id.strip())
        if not is_chat_of(await self._mailbox.get(item_id), caller):
            advice = "A reply id works for whoever sent the message, for HOMEROOM_KEEP_DAYS."
            raise NotFound("reply id", item_id[:40], advice=advice)
        deadline = time.monotonic() + wait_s
        said = await self._speaking.find(item_id)
        told = said.count if said else 0
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            item = await self._mailbox.wait_ended(item_id, min(left_s, 1.0))
            if ended := item.state.has_ended:
                break
            said = await self._speaking.find(item_id)
            if said and said.count < told:  # another process has begun the turn anew
                told = 0
            if on_progress and said and said.count > told:
                await on_progress(said.tail[-(said.count - told) :])
                told = said.count
            if left_s <= 0:
                break
        result = item.result or {}
        return ReplyView(
            reply_id=item.id,
            status=("complete" if item.state is ItemState.DONE else "failed")
            if ended
            else "pending",
            agent_id=item.payload["agent_id"],
            reply=str(result.get("text", "")),
            reason=why_no_answer(item),
            place_in_lane=0 if ended else await self._mailbox.place_in_lane(item),
        )

    async def explain(self, name: str) -> Story:
        """What became of the message with that event id or reply id. Raises NotFound."""
        return await self._deliveries.explain(name)

    async def list_parked(self, agent: str = "", limit: int = 20, cursor: str = "") -> ParkedPage:
        """Items that were given up, newest first, and the rooms with late messages, as many of
        each; those of ``agent`` (id or name), if given."""
        agent_id = (await self._directory.resolve(agent)).id if agent else ""
        return await self._deliveries.page_parked(agent_id, limit, cursor)

    async def replay_parked(self, item_id: str) -> int:
        """Puts one of them back at the head of its lane; returns how many come first."""
        return await self._deliveries.replay(item_id)

    async def drop_parked(self, item_id: str, reason: str) -> None:
        """Ends one of them for good. Raises NotFound, or Misuse if it is not parked."""
        await self._deliveries.drop(item_id, reason)

    async def catch_up(self, room_id: str) -> CaughtUp | None:
        """Has them answered; see ``Deliveries.catch_up``."""
        return await self._deliveries.catch_up(room_id)

    # --- memory ----------------------------------------------------------------------------------

    async def get_memory(self, agent: str, label: str = "", *, history: bool = False) -> MemoryView:
        """All blocks of an agent (id or name), or the one called ``label``, and their past."""
        return await self._memory.get(agent, label, history=history)

    async def update_memory(
        self, agent: str, label: str, edit: Edit, *, caller: str = LOCAL_CALLER
    ) -> MemoryChange:
        """Writes a block. Refuses a lost update, an overlong value and, unless forced, a block
        that is read-only."""
        return await self._memory.update(agent, label, edit, caller)

    async def search_memory(self, agent: str, query: str, limit: int, cursor: str) -> MemoryHits:
        """Where in an agent's memory something stands."""
        return await self._memory.search(agent, query, limit, cursor)

    # --- rooms -----------------------------------------------------------------------------------

    async def list_rooms(self, agent: str = "", limit: int = 50, cursor: str = "") -> RoomPage:
        """The rooms that Homeroom serves, the most lately active first. Asks the store alone."""
        return await self._rooms.page(agent, limit, cursor)

    async def read_room(self, room: str, limit: int, cursor: str) -> RoomTranscript:
        """What was said in a room (its id, alias or name, or its agent), newest message first."""
        return await self._rooms.read(room, limit, cursor)

    # --- watching --------------------------------------------------------------------------------

    async def watch(self, wanted: Watched) -> Watched:
        """The same by its id, if there is such an agent, block or room. Raises NotFound."""
        return await self._watch.resolve(wanted)

    async def stamps(self, watched: Sequence[Watched]) -> dict[Watched, str]:
        """What changes whenever one of them does."""
        return await self._watch.stamps(watched)

    async def wait_stamps(
        self, watched: Sequence[Watched], seen: Mapping[Watched, str]
    ) -> dict[Watched, str]:
        """The stamps, as soon as one of them is not as in ``seen``."""
        return await self._watch.wait(watched, seen)

    # --- health ----------------------------------------------------------------------------------

    async def health(self) -> dict[str, Any]:
        """The truth in one look: ``status`` is ``ok`` only if a message could pass right now."""
        return await self._health.report(await self.sync_status())

    # --- the loops -------------------------------------------------------------------------------

    async def run_services(self) -> None:
        """Keeps the services connected, and what is watched known, until cancelled."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self.letta.run)
            loops.start_soon(self._watch.run)
            if self.matrix:
                loops.start_soon(self.matrix.run)


@asynccontextmanager
async def open_app(
    config: Config, *, bridge: bool = True, read_only: bool = False
) -> AsyncIterator[App]:
    """The app with its loops running; without ``bridge`` it only keeps the services connected.
    ``read_only``: the homeserver is only looked at, as dry runs do.

    Raises:
        ConfigError: the registration file is missing or wrong.
        Rejected: the store cannot be opened.
    """
    registration = None
    if config.has_matrix and config.matrix_registration:
        registration = load_registration(config.matrix_registration)
    async with open_store(
        config.store_path,
        max_waiting=config.max_waiting,
        max_waiting_total=config.max_waiting_total,
    ) as store:
        app = App(config, store, registration, read_only=read_only)
        # One inside the other: the bridge ends while its services are still there.
        async with background(app.run_services), background(*([app.bridge.run] if bridge else [])):
            yield app


@asynccontextmanager
async def _open_known_letta(config: Config, absence: Absence) -> AsyncIterator[Letta]:
    async with open_letta(config, absence) as letta:
        can = letta.capabilities
        log.info("letta_found", extra={"backend": can.backend, "version": can.version})
        yield letta


@asynccontextmanager
async def _open_checked_matrix(
    config: Config, registration: Registration, read_only: bool
) -> AsyncIterator[Matrix]:
    async with open_matrix(config, registration, read_only=read_only) as matrix:
        info = await matrix.check()
        log.info("homeserver_checked", extra={"hub": info.whoami, "spec": info.versions[-1:]})
        yield matrix


@asynccontextmanager
async def _told_every(seconds: float, on_progress: OnSyncProgress | None) -> AsyncIterator[None]:
    """While the block lasts, ``on_progress`` hears so often that it does."""

    async def tell() -> None:
        while on_progress:
            await anyio.sleep(seconds)
            await on_progress(None)

    async with background(tell):
        yield
