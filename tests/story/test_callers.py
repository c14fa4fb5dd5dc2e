"""Several people with a token each ask the same agent over HTTP. All real: Letta, Homeroom."""

from __future__ import annotations

from support.client import call, connect, refusal
from support.home import Home


async def test_an_answer_is_for_the_token_that_asked_also_after_a_restart(home: Home) -> None:
    await home.letta.create_agent("Ada")
    tokens = {}
    for name in ("one", "two"):
        made = home.run("token", "new", name, "--scope", "chat")
        assert made.returncode == 0, made.stderr
        tokens[name] = made.stdout.strip()
    asked = {"agent": "Ada", "message": "!delay 2\n!say secret", "wait_s": 0, "mirror": False}
    with home.service() as service:
        async with (
            connect(service.url, tokens["one"], "sse", "legacy") as one,
            connect(service.url, tokens["two"], era="2026-07-28") as two,
        ):
            first = (await call(one, "chat_with_agent", **asked))["reply_id"]
            again = (await call(one, "chat_with_agent", **asked))["reply_id"]
            other = (await call(two, "chat_with_agent", **asked))["reply_id"]
            assert first == again != other, "the same text is one message, of one caller"
            said = await refusal(two, "get_reply", reply_id=first, wait_s=0)
            assert "no reply id" in said and "whoever sent the message" in said
        service.stop()
        service.start()
        async with (
            connect(service.url, tokens["one"], era="2026-07-28") as one,
            connect(service.url, tokens["two"], era="legacy") as two,
        ):
            reply = await call(one, "get_reply", reply_id=first)
            assert (reply["status"], reply["reply"]) == ("complete", "secret")
            for reply_id in (first, f" {first} "):
                said = await refusal(two, "get_reply", reply_id=reply_id, wait_s=0)
                assert "secret" not in said
            assert (await call(two, "get_reply", reply_id=other))["reply"] == "secret"
