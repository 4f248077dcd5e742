"""What must never be kept: tokens and passwords, known by their value or by their form, and what stands in their place.

Standard library only: the process that writes an attempt's log imports this and nothing else of ours.
"""

import json
import re
from collections.abc import Iterable, Mapping

MASK = "***"
MIN_LENGTH = 8  # characters; hiding shorter values would hide half of the words
# An environment variable whose name ends like this holds a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY, PGPASSWORD ...
SECRET_NAME = re.compile(
    r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING)$", re.IGNORECASE
)

# Words in small letters without which a form is not looked for; the form; what it becomes. Repetitions are bounded, so
# that a line of any kind is searched in linear time.
FORMS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # https://user:password@host
    ("://", re.compile(r"://[^\s/\"'<>]{1,512}@"), f"://{MASK}@"),
    # Authorization: Bearer ...
    (
        "authorization",
        re.compile(r"(authorization[\"']?[ \t]{0,8}[:=][ \t]{0,8}[\"']?)[^\s\"',}][^\r\n\"',}]{3,4095}", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    ("bearer", re.compile(r"(\bbearer[ \t]{1,8})[\w.~+/=-]{16,4096}", re.IGNORECASE), rf"\1{MASK}"),
    # https://host/file?X-Amz-Signature=...
    (
        "?",
        re.compile(r"([?&][\w-]{0,32}(?:signature|token|password|secret|api_?key)=)[^&\s\"'<>]{1,4096}", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    # Hugging Face's tokens
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{20,512}"), MASK),
    ("api_org_", re.compile(r"\bapi_org_[A-Za-z0-9]{20,512}"), MASK),
)


class Redactor:
    """Puts MASK in the place of secrets. Redacting twice changes nothing more."""

    def __init__(self, values: Iterable[str]) -> None:
        """values: the secrets known by value; of one of several lines each line counts."""
        lines = {line.strip(" \t") for value in values for line in re.split(r"[\r\n]+", value)}
        spelled = {form for line in lines for form in _spellings(line)}
        self._values = sorted((form for form in spelled if len(form) >= MIN_LENGTH), key=len, reverse=True)

    @property
    def longest_bytes(self) -> int:
        """Of the longest value."""
        return max((len(value.encode(errors="surrogateescape")) for value in self._values), default=0)

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, MASK)
        lowered = text.lower()
        for word, form, mask in FORMS:
            if word in lowered:
                text = form.sub(mask, text)
        return text


def secret_values(environment: Mapping[str, str], names: Iterable[str] = ()) -> list[str]:
    """Values of the variables that hold secrets by their name, and of those called `names`."""
    return [value for name, value in environment.items() if SECRET_NAME.search(name) or name in set(names)]


def _spellings(value: str) -> set[str]:
    """As it is, in JSON or a Python string, and in a URL."""
    from urllib.parse import quote, quote_plus  # here: most processes that redact have it already, the log's has not

    in_url = [quoted(value, safe="", errors="surrogateescape") for quoted in (quote, quote_plus)]
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1], *in_url}
