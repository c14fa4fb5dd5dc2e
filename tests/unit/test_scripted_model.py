"""The rules of the scripted model, as plain functions."""

from __future__ import annotations

import json

import pytest

from homeroom.local.scripted_model import GREETING, Answer, ToolCall, decide, embed


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, object]:
    return {"role": "system", "content": text}


def tool_result(text: str) -> dict[str, object]:
    return {"role": "tool", "content": text}


def test_without_a_directive_it_echoes() -> None:
    assert decide([user("hello\nworld")]) == Answer(text="echo: hello\nworld")


def test_the_last_user_message_is_the_script() -> None:
    assert decide([user("!say one"), user("!say two")]).text == "two"


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("!words 3", Answer(text="word0 word1 word2")),
        ("!empty", Answer(text="")),
        ("!think hm\n!say ok", Answer(text="ok", thinking="hm")),
        ("!delay 0.5\n!chunkdelay 2\n!say x", Answer(text="x", delay_s=0.5, chunk_delay_s=2.0)),
        ("!status 429 slow down", Answer(text="slow down", status=429)),
        ("!hang", Answer(text="echo: !hang", fate="hang")),
        ("!die\n!say x", Answer(text="x", fate="die")),
        ('!tool f {"a": 1}', Answer(calls=(ToolCall("f", '{"a":1}'),))),
        ("!tool f not json", Answer(calls=(ToolCall("f", "not json"),))),
    ],
)
def test_each_directive_does_what_it_says(script: str, answer: Answer) -> None:
    assert decide([user(script)]) == answer


def test_tools_are_called_one_step_after_the_other() -> None:
    script = "!tool first {}\n!tool second {}"
    steps = [user(script), tool_result("one"), tool_result("two")]
    assert [call.name for call in decide(steps[:1]).calls] == ["first"]
    assert [call.name for call in decide(steps[:2]).calls] == ["second"]
    assert decide(steps) == Answer(text="done: two")


def test_it_shows_what_it_was_given() -> None:
    messages = [system("You are one."), user("!sys")]
    assert decide(messages).text == "You are one."
    assert json.loads(decide([*messages, user("!ctx")]).text)[0] == ["system", "You are one."]


def test_reminders_are_not_what_a_person_said() -> None:
    reminder = "<system-reminder>\nnow is the time\n</system-reminder>"
    parts = [{"type": "text", "text": reminder}, {"type": "text", "text": "hello"}]
    assert decide([{"role": "user", "content": parts}]).text == "echo: hello"
    assert decide([user("hello"), user(reminder)]).text == "echo: hello"


def test_wrapped_messages_and_heartbeats_of_older_agents_are_understood() -> None:
    said = user(json.dumps({"type": "user_message", "message": "hello"}))
    beat = user(json.dumps({"type": "heartbeat", "message": "continue"}))
    assert decide([said, beat]).text == "echo: hello"


def test_agents_that_speak_through_a_tool_get_a_complete_call() -> None:
    required = ["message", "thinking", "request_heartbeat"]
    tool = {"function": {"name": "send_message", "parameters": {"required": required}}}
    (call,) = decide([user("hello")], [tool]).calls
    assert json.loads(call.arguments) == {
        "thinking": "scripted thought",
        "message": "echo: hello",
        "request_heartbeat": False,
    }


@pytest.mark.parametrize(
    ("memory", "answer"),
    [
        ("My favourite colour is teal.\nMore.", "Your favourite colour is teal."),
        ("favourite colour: dark teal", "Your favourite colour is dark teal."),
        (
            "Favourite colour is red. Favourite colour is 3.5 teal.",
            "Your favourite colour is 3.5 teal.",
        ),
        ("<human>\nfavourite colour is teal</human>", "Your favourite colour is teal."),
        ("What is my favourite colour?", "I do not know your favourite colour."),
        ("", "I do not know your favourite colour."),
    ],
)
def test_a_question_is_answered_from_memory(memory: str, answer: str) -> None:
    assert decide([system(memory), user("What is my favourite colour?")]).text == answer


def test_newer_memory_and_memory_before_talk_win() -> None:
    reminder = "<system-reminder>my dog is Rex</system-reminder>"
    talk = [system("my dog is Fido"), user("my dog is Ben"), user("What's my dog?")]
    assert decide(talk).text == "Your dog is Fido."
    assert decide([*talk[:2], user(reminder + "what is my dog?")]).text == "Your dog is Rex."
    assert decide(talk[1:]).text == "Your dog is Ben."


def test_without_directives_people_cannot_script_it() -> None:
    assert decide([user("!status 500")], directives=False).text == "echo: !status 500"


def test_a_persona_says_once_that_it_is_scripted() -> None:
    first = decide([user("hello")], directives=False, persona=True)
    said = {"role": "assistant", "content": first.text}
    second = decide([user("hello"), said, user("fine")], directives=False, persona=True)
    assert first.text == GREETING
    assert second.text == "You said: fine"


def test_equal_texts_embed_equally_and_kindred_ones_near() -> None:
    def likeness(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embed(one), embed(other), strict=True))

    assert embed("a b") == embed("A  b")
    assert len(embed("")) == 1536
    assert likeness("red apple", "green apple") > likeness("red apple", "blue sky")
