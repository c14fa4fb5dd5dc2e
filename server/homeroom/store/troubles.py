"""The rows about agents that cannot be brought in step, and what a person has said of removals."""

from __future__ import annotations

from functools import partial

from homeroom.model import AgentId, Trouble
from homeroom.store.connection import Connection

_CONFIRMED = "removals_confirmed_ms"


class Troubles(Connection):
    """Statements about failing agents."""

    async def list_troubles(self) -> dict[tuple[AgentId, str], Trouble]:
        """By agent and task."""
        rows = await self._run(partial(self._rows, "SELECT * FROM trouble"))
        return {
            (AgentId(row["agent_id"]), row["task"]): Trouble(
                AgentId(row["agent_id"]), row["failures"], bool(row["final"]), row["next_try_ms"],
                row["problem"], row["task"],
            )
            for row in rows
        }  # fmt: skip

    async def save_trouble(self, trouble: Trouble, fence: int) -> None:
        values = (
            trouble.agent_id, trouble.task, trouble.failures, int(trouble.final),
            trouble.next_try_ms, trouble.problem,
        )  # fmt: skip

        def save() -> None:
            self._conn.execute("INSERT OR REPLACE INTO trouble VALUES (?, ?, ?, ?, ?, ?)", values)

        await self._write(save, fence)

    async def forget_trouble(self, agent_id: AgentId, task: str, fence: int) -> None:
        sql = "DELETE FROM trouble WHERE agent_id = ? AND task = ?"

        def forget() -> None:
            self._conn.execute(sql, (agent_id, task))

        await self._write(forget, fence)

    async def removals_confirmed_ms(self) -> int:
        """When a person last said that many agents may be retired; 0: never."""
        return int(await self.get_meta(_CONFIRMED) or 0)

    async def confirm_removals(self, fence: int) -> None:
        """Notes that whoever was retired until now was retired by a person's word."""

        def note() -> None:
            self._conn.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (_CONFIRMED, str(self._now_ms()))
            )

        await self._write(note, fence)
