"""Pictures on the homeserver: uploaded as a ghost, and shown as a ghost's own.

Invariant: a picture gets its address before its bytes are sent, so an upload whose answer was lost,
or that we did not live to record, is repeated to the same address and never makes a second file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeroom.errors import Rejected, Unavailable
from homeroom.model import GhostId

if TYPE_CHECKING:
    from homeroom.matrix._client import Wire

_NO_SUCH_CALL = ("M_UNRECOGNIZED", "M_NOT_FOUND")


class Media:
    """The part of ``Matrix`` that knows of files."""

    _wire: Wire

    async def reserve_media(self, ghost: GhostId) -> str:
        """An address (``mxc://...``) that ``put_media`` may fill within a day; empty if the
        homeserver gives none in advance.

        Source: https://spec.matrix.org/v1.16/client-server-api/#post_matrixmediav1create
        """
        try:
            answer = await self._wire.ask(
                "POST", ("_matrix", "media", "v1", "create"), ghost=ghost, body={}
            )
        except Rejected as refusal:
            if refusal.code not in _NO_SUCH_CALL:
                raise
            return ""
        return _mxc(answer.get("content_uri"))

    async def put_media(self, ghost: GhostId, mxc: str, data: bytes, mime_type: str) -> bool:
        """Fills the address ``mxc`` that the ghost reserved; one that is filled stays as it is.

        False if it is no address any more: it was never given out, or is too old.

        Source: https://spec.matrix.org/v1.16/client-server-api/
        #put_matrixmediav3uploadservernamemediaid
        """
        server, _, media_id = mxc.removeprefix("mxc://").partition("/")
        path = ("_matrix", "media", "v3", "upload", server, media_id)
        try:
            await self._wire.ask("PUT", path, ghost=ghost, file=(data, mime_type))
        except Rejected as refusal:
            if refusal.code == "M_NOT_FOUND":
                return False
            if refusal.code != "M_CANNOT_OVERWRITE_MEDIA":
                raise
        return True

    async def upload_media(self, ghost: GhostId, data: bytes, mime_type: str) -> str:
        """Uploads at once; the address it got. For homeservers that reserve none."""
        path = ("_matrix", "media", "v3", "upload")
        answer = await self._wire.ask("POST", path, ghost=ghost, file=(data, mime_type))
        return _mxc(answer.get("content_uri"))

    async def get_avatar(self, ghost: GhostId) -> str:
        """The address of the picture in the ghost's profile; empty if it has none."""
        path = ("_matrix", "client", "v3", "profile", ghost, "avatar_url")
        try:
            answer = await self._wire.ask("GET", path, ghost=ghost)
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return ""
        mxc = answer.get("avatar_url")
        return mxc if isinstance(mxc, str) else ""

    async def set_avatar(self, ghost: GhostId, mxc: str) -> None:
        """Sets it; the rooms of the ghost follow within a second or so, in the background."""
        path = ("_matrix", "client", "v3", "profile", ghost, "avatar_url")
        await self._wire.ask("PUT", path, ghost=ghost, body={"avatar_url": mxc})


def _mxc(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("mxc://"):
        raise Unavailable("matrix", "what answered an upload does not speak Matrix")
    return value
