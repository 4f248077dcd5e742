"""A view in a thread of its own: whoever asks never waits, and nothing asked for is forgotten."""

import threading

import pytest

from orchestrator.background import Background

PATIENCE_SECONDS = 60.0


def never() -> None:
    """No call unless asked."""


def test_whoever_asks_does_not_wait_and_what_was_asked_meanwhile_is_one_more_call() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        assert go_on.acquire(timeout=PATIENCE_SECONDS)

    view = Background(work, never)
    view.ask()
    assert begun.acquire(timeout=PATIENCE_SECONDS)
    for _ in range(5):
        view.ask()  # returns although work is not done
    go_on.release()
    assert begun.acquire(timeout=PATIENCE_SECONDS)
    assert not begun.acquire(blocking=False)
    go_on.release(2)
    view.close(waiting=never)
    assert begun.acquire(blocking=False) and not begun.acquire(blocking=False)  # the last call, of close itself


def test_closing_says_so_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.background.LONG_SECONDS", 0.0)
    told = threading.Event()
    view = Background(lambda: told.wait(PATIENCE_SECONDS), never)
    view.close(waiting=told.set)
    assert told.is_set()


def test_without_being_asked_it_calls_again_as_long_as_it_is_told_to() -> None:
    calls: list[int] = []
    thrice = threading.Event()

    def work() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            thrice.set()

    view = Background(work, lambda: 0.0 if len(calls) < 3 else None)
    assert thrice.wait(PATIENCE_SECONDS)
    view.close(waiting=never)
    assert calls == [0, 1, 2, 3]


def test_only_an_error_of_the_last_call_is_raised() -> None:
    calls: list[int] = []

    def fails_at_first() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("gone for a moment")

    view = Background(fails_at_first, lambda: 0.0 if len(calls) == 1 else None)
    while len(calls) < 2:
        view.ask()
    view.close(waiting=never)

    def fails() -> None:
        raise ValueError("gone")

    view = Background(fails, never)
    with pytest.raises(ValueError, match="gone"):
        view.close(waiting=never)
