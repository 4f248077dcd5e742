"""What is hidden, by value and by form, and what is left alone."""

import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.redaction import MASK, MIN_LENGTH, Redactor, secret_values

TOKEN = "hf_" + "aB3dE6gH9j" * 3
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=MIN_LENGTH, max_size=40).filter(
    lambda value: "*" not in value
)
WORDS = st.text(max_size=60)


@given(VALUES, WORDS, WORDS)
def test_a_known_value_never_stays_whatever_stands_around_it(value: str, before: str, after: str) -> None:
    assert value not in Redactor([value])(f"{before}{value}{after}")


@given(VALUES)
def test_a_known_value_is_found_as_json_as_python_and_in_a_url(value: str) -> None:
    mask = Redactor([value])
    for spelled in (json.dumps({"t": value}), repr({"t": value}), urllib.parse.urlencode({"t": value})):
        hidden = mask(spelled)
        assert MASK in hidden
        assert value not in hidden and urllib.parse.quote(value, safe="") not in hidden


def test_each_line_of_a_value_is_hidden() -> None:
    mask = Redactor(["-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n"])
    assert mask("a kqhkiG9w0BAQEF b MIIEvQIBADANBg") == f"a {MASK} b {MASK}"


def test_the_longer_of_two_values_is_hidden_whole() -> None:
    assert Redactor(["password", "password-of-mine"])("password-of-mine") == MASK


def test_a_short_value_is_not_hidden() -> None:
    assert Redactor(["mini", ""])("the mini model") == "the mini model"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("at http://user:pass@host:5000/x", "at http://***@host:5000/x"),
        ("postgresql+psycopg2://mlflow:p@ss:w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://token@host/a?b", "https://***@host/a?b"),
        ("> Authorization: Bearer abcdef", "> Authorization: ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz', 'a': 1}", "{'authorization': '***', 'a': 1}"),
        ("sent bearer 0123456789abcdef!", "sent bearer ***!"),
        (f"login with {TOKEN}.", "login with ***."),
        (
            "403 for https://cdn/x?Expires=1&X-Amz-Signature=0af3&X-Amz-Security-Token=Fwo%2F&y=1",
            "403 for https://cdn/x?Expires=1&X-Amz-Signature=***&X-Amz-Security-Token=***&y=1",
        ),
    ],
)
def test_forms_of_secrets_are_hidden_though_their_value_is_not_known(text: str, hidden: str) -> None:
    assert Redactor([])(text) == hidden
    assert Redactor([])(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "block 3 of 32: 1.25 s",
        "https://huggingface.co/org/name/resolve/main/config.json?download=true",
        "sqlite:////data/results/mlflow.db and file:///a/b@c",
        "org/name@0123456789abcdef and hf_hub_download, hf_transfer",
        "the bearer of news; a tokenizer of 128 tokens; authorization is not needed",
        "tokens/s=12 key=value",
    ],
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert Redactor([])(text) == text


def test_secrets_of_an_environment_are_known_by_their_names() -> None:
    environment = {
        "HF_TOKEN": "a",
        "HUGGING_FACE_HUB_TOKEN": "b",
        "AWS_SECRET_ACCESS_KEY": "c",
        "MLFLOW_TRACKING_PASSWORD": "d",
        "PGPASSWORD": "e",
        "SERVICE_CREDENTIALS": "f",
        "client_secret": "g",
        "TOKENIZERS_PARALLELISM": "false",
        "KEYBOARD": "us",
        "HOME": "/home/a",
        "MINE": "h",
    }
    assert secret_values(environment, ["MINE", "ABSENT"]) == ["a", "b", "c", "d", "e", "f", "g", "h"]
