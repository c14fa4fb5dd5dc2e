"""The mapping file of the system before: every shape it may have, and what is wrong with others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.errors import HomeroomError, LimitExceeded, Misuse
from homeroom.old_homes import (
    FILE_BYTES,
    Adoption,
    dump_adoptions,
    dump_homes,
    read_adoptions,
    read_homes,
    read_old_homes,
)

SECRET = "hunter2-and-more"


def entry(number: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "agent_id": f"agent-{number}",
        "agent_name": f"Ada {number}",
        "matrix_user_id": f"@agent_{number}:hs.test",
        "matrix_password": SECRET,
        "created": True,
        "room_id": f"!room{number}:hs.test",
        "room_created": True,
    } | changed


def problems(data: Any) -> list[str]:
    return [home.problem for home in read_old_homes(json.dumps(data).encode())]


def test_a_file_may_be_an_object_by_agent_or_a_list() -> None:
    listed = read_old_homes(json.dumps([entry(1), entry(2)]).encode())
    named = {"agent-1": entry(1), "agent-2": entry(2)}
    assert read_old_homes(json.dumps(named).encode()) == listed
    assert read_old_homes(b"\xef\xbb\xbf" + json.dumps(named).encode()) == listed, "with a BOM"
    first = listed[0]
    assert (first.position, first.agent_id, first.ghost) == (1, "agent-1", "@agent_1:hs.test")
    assert (first.agent_name, first.room_id, first.problem) == ("Ada 1", "!room1:hs.test", "")
    assert read_old_homes(b"{}") == read_old_homes(b"[]") == []


def test_the_key_names_the_agent_where_the_entry_does_not() -> None:
    bare = entry()
    del bare["agent_id"]
    assert read_old_homes(json.dumps({"agent-9": bare}).encode())[0].agent_id == "agent-9"


def test_no_password_is_kept_in_any_form() -> None:
    homes = read_old_homes(json.dumps([entry(1), entry(1), {"matrix_password": SECRET}]).encode())
    assert len(homes) == 3
    assert SECRET not in repr(homes) + dump_homes(homes)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"agent_id": None}, "agent_id is missing"),
        ({"agent_id": 7}, "agent_id is missing"),
        ({"agent_id": "a\0b"}, "agent_id is missing, or no id"),
        ({"agent_id": "x" * 5000}, "agent_id is missing, or no id"),
        ({"matrix_user_id": None}, "matrix_user_id is missing"),
        ({"matrix_user_id": "ada"}, "no Matrix id such as @name:example.org"),
        ({"matrix_user_id": "@a\0:hs.test"}, "no Matrix id"),
        ({"matrix_user_id": f"@{'a' * 300}:hs.test"}, "no Matrix id"),
        ({"matrix_user_id": ["@a:hs.test"]}, "no Matrix id"),
        ({"room_id": None}, "it has no room; the next sync makes one"),
        ({"room_id": "#alias:hs.test"}, "room_id is no room id"),
        ({"room_id": "!a b"}, "room_id is no room id"),
        ({"room_id": {}}, "room_id is no room id"),
    ],
)
def test_a_malformed_entry_is_named_with_its_position_and_the_rest_is_read(
    changed: dict[str, Any], reason: str
) -> None:
    homes = read_old_homes(json.dumps([entry(1), entry(2, **changed), entry(3)]).encode())
    assert [home.position for home in homes] == [1, 2, 3]
    assert reason in homes[1].problem
    assert not homes[0].problem and not homes[2].problem


def test_an_entry_under_another_agents_key_is_not_guessed_at() -> None:
    assert "says it is 'agent-1'" in problems({"agent-2": entry(1), "agent-3": entry(3)})[0]
    assert problems({"agent-1": entry(1), "agent-2": "nothing"}) == ["", "the entry is no object"]


@pytest.mark.parametrize("same", ["agent_id", "matrix_user_id", "room_id"])
def test_of_two_entries_with_one_agent_user_or_room_the_first_counts(same: str) -> None:
    found = problems([entry(1), entry(2, **{same: entry(1)[same]})])
    assert found[0] == ""
    what = {"agent_id": "agent", "matrix_user_id": "user", "room_id": "room"}[same]
    assert found[1] == f"it is a duplicate: entry 1 has the same {what}"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"\0" * 100, "NUL bytes"),
        (b'{"a": "\0"}', "NUL bytes"),
        (b"{", "is no JSON (line 1, column 2"),
        (b"not json", "is no JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "is no JSON that can be read"),
        (b"[1" + b"0" * 5000 + b"]", "is no JSON that can be read"),
        (b'"text"', "holds something else"),
        (b"null", "holds something else"),
        (json.dumps(entry()).encode(), "holds something else"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_says_what_is_wanted(raw: bytes, words: str) -> None:
    with pytest.raises(Misuse) as caught:
        read_old_homes(raw)
    assert words in str(caught.value)
    assert "It must be JSON" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read() -> None:
    with pytest.raises(LimitExceeded):
        read_old_homes(b"[" + b" " * FILE_BYTES + b"]")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3)
)
entries = st.fixed_dictionaries(
    {}, optional={name: values | st.just(value) for name, value in entry().items()}
)


@given(st.lists(entries | values, max_size=6) | st.dictionaries(st.text(), entries | values))
def test_whatever_the_file_holds_each_entry_is_taken_or_has_a_problem(data: Any) -> None:
    try:
        homes = read_old_homes(json.dumps(data).encode())
    except HomeroomError:
        return
    assert [home.position for home in homes] == [*range(1, len(data) + 1)]
    good = [home for home in homes if not home.problem]
    for names in ([h.agent_id for h in good], [h.ghost for h in good], [h.room_id for h in good]):
        assert all(names) and len(set(names)) == len(names)
    assert read_homes(dump_homes(homes)) == homes
    told = [Adoption(home, "refused", home.problem) for home in homes]
    assert read_adoptions(dump_adoptions(told)) == told
