"""Which Letta is found at an address, and what is said when it is none."""

from __future__ import annotations

import pytest

from homeroom.config import Config
from homeroom.errors import ConfigError, Rejected, Unavailable
from homeroom.letta import open_letta
from homeroom.letta.probe import find_backend
from homeroom.local.child import free_port
from homeroom.model import BackendName
from support.fixtures_letta import LettaServer
from support.loopback import Asked, Say, loopback


def config(url: str, backend: str = "auto") -> Config:
    return Config.model_validate({"letta_url": url, "letta_backend": backend})


async def test_auto_finds_the_real_back_end(
    letta_server: LettaServer, backend: BackendName
) -> None:
    async with open_letta(letta_server.config(letta_backend="auto")) as letta:
        assert letta.capabilities.backend == backend
        assert letta.capabilities.version


async def test_auto_finds_an_app_server_by_its_http_address_too(app_server: LettaServer) -> None:
    url = "http" + app_server.url.removeprefix("http").removeprefix("ws")
    async with open_letta(app_server.config(letta_url=url, letta_backend="auto")) as letta:
        assert letta.capabilities.backend == "app-server"


async def test_a_list_of_models_is_an_openai_server() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say({"data": [{"id": "ada"}]}) if asked.target == "/v1/models" else None

    async with loopback(reply) as server, open_letta(config(server.url)) as letta:
        assert letta.capabilities.backend == "openai"
        assert [agent.id for agent in await letta.list_agents()] == ["ada"]


@pytest.mark.parametrize(
    ("url", "backend"),
    [
        ("ws://127.0.0.1:1", "app-server"),
        ("wss://letta.example.org/ws", "app-server"),
        ("https://api.letta.com", "rest"),
    ],
)
async def test_some_addresses_say_it_all(url: str, backend: BackendName) -> None:
    assert await find_backend(config(url)) == backend


async def test_an_address_may_end_in_v1() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say({"data": []}) if asked.target == "/v1/models" else None

    async with loopback(reply) as server:
        assert await find_backend(config(f"{server.url}/v1")) == "openai"


async def test_a_web_server_that_is_no_letta_names_the_setting() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say(b"<html>private</html>", 200, {"content-type": "text/html"})

    async with loopback(reply) as server:
        with pytest.raises(ConfigError) as caught:
            await find_backend(config(server.url))
    assert caught.value.variable == "HOMEROOM_LETTA_URL"
    assert "200" in str(caught.value)
    assert "private" not in str(caught.value)


async def test_a_bare_list_of_models_is_no_openai_server() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say([{"id": "gpt"}]) if asked.target == "/v1/models" else None

    async with loopback(reply) as server:
        with pytest.raises(ConfigError):
            await find_backend(config(server.url))


async def test_a_server_that_wants_a_token_is_told_from_a_wrong_one() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say({"detail": "Unauthorized"}, 401)

    async with loopback(reply) as server:
        with pytest.raises(Rejected, match="HOMEROOM_LETTA_TOKEN"):
            await find_backend(config(server.url))


async def test_a_gateway_without_its_server_is_unavailable() -> None:
    async with loopback(lambda asked: Say(None, 503, {"retry-after": "9"})) as server:
        with pytest.raises(Unavailable) as caught:
            await find_backend(config(server.url))
    assert caught.value.retry_after_s == 9


@pytest.mark.parametrize("backend", ["auto", "rest", "openai", "app-server"])
async def test_nobody_at_the_address_is_unavailable(backend: str) -> None:
    with pytest.raises(Unavailable):
        async with open_letta(config(f"http://127.0.0.1:{free_port()}", backend)):
            pass


async def test_a_token_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    bad = Config.model_validate({"letta_url": "http://127.0.0.1:1", "letta_token": "geheim\u00fc"})
    with pytest.raises(ConfigError) as caught:
        await find_backend(bad)
    assert caught.value.variable == "HOMEROOM_LETTA_TOKEN"
    assert "geheim" not in str(caught.value)
