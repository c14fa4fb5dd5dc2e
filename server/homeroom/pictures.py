"""Pictures brought to the homeserver, once each, and shown by ghosts and rooms.

Owns the order of an upload: an address is reserved and recorded before the bytes go there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from homeroom.avatar import MIME_TYPE, avatar_png
from homeroom.errors import Unavailable
from homeroom.matrix import Matrix
from homeroom.model import Action, Avatar, GhostId, RoomId
from homeroom.plan_space import avatar_content

Keep = Callable[[Avatar], Awaitable[None]]
"""Records what is known of a picture so far."""


async def apply_picture(
    matrix: Matrix, ghost: GhostId, seed: str, room_id: RoomId | None, avatar: Avatar,
    action: Action, keep: Keep,
) -> Avatar:  # fmt: skip
    """Carries out one action on the picture of ``seed``; what is known of it then, but for what
    the plan itself records of the action.

    Raises:
        Rejected: the homeserver takes no uploads, or not this one.
    """
    match action.kind:
        case "upload_avatar":
            return await _upload(matrix, ghost, seed, avatar, keep)
        case "set_avatar" if not await _is_chosen(matrix, ghost, avatar):
            await matrix.set_avatar(ghost, avatar.mxc)
        case "set_room_avatar":
            assert room_id
            await _show_in_room(matrix, ghost, room_id, seed, avatar)
    return avatar


async def _upload(matrix: Matrix, ghost: GhostId, seed: str, avatar: Avatar, keep: Keep) -> Avatar:
    """The picture, on the homeserver. An upload that was cut short goes to the same address."""
    data = avatar_png(seed)
    mxc = "" if avatar.digest else avatar.mxc  # an address is filled once: another picture, another
    if mxc and await matrix.put_media(ghost, mxc, data, MIME_TYPE):
        return replace(avatar, mxc=mxc)
    mxc = await matrix.reserve_media(ghost)
    if not mxc:
        return replace(avatar, mxc=await matrix.upload_media(ghost, data, MIME_TYPE))
    avatar = replace(avatar, mxc=mxc, digest="")
    await keep(avatar)
    if not await matrix.put_media(ghost, mxc, data, MIME_TYPE):
        raise Unavailable("matrix", "it knows nothing of the address it has just given out")
    return avatar


async def _is_chosen(matrix: Matrix, ghost: GhostId, avatar: Avatar) -> bool:
    """Whether somebody has given the hub a picture of their own, as they may give it a name."""
    if ghost != matrix.hub or avatar.profile:
        return False
    return await matrix.get_avatar(ghost) not in ("", avatar.mxc)


async def _show_in_room(
    matrix: Matrix, ghost: GhostId, room_id: RoomId, seed: str, avatar: Avatar
) -> None:
    """Gives the room its picture, unless a person has given it one, or has taken ours away."""
    found = await matrix.find_state(ghost, room_id, "m.room.avatar")
    if found:
        content, sender = found
        is_persons = not matrix.is_ghost(sender) if sender else content.get("url") != avatar.mxc
        if is_persons or content.get("url") == avatar.mxc:
            return
    await matrix.put_state(ghost, room_id, "m.room.avatar", avatar_content(seed, avatar))
