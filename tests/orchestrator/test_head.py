"""Whether the head of a cluster answers, asked without Ray."""

import socket
import threading
import time

import pytest

from orchestrator.head import ClusterLostError, answers, in_time, refuse_silence, require_head


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_head_answers_where_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address_of(server)
        assert answers(address)
        require_head(address, 0.0)
    assert not answers(address)


def test_silence_is_refused_at_an_address_and_left_to_ray_where_that_must_look_for_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address_of(server)
        refuse_silence(address)
    with pytest.raises(ConnectionError):
        refuse_silence(address)
    refuse_silence("auto")
    refuse_silence(f"ray://{address}")


def test_a_head_that_stays_away_is_said_to_and_where_it_was() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address_of(server)
    with pytest.raises(ClusterLostError, match=rf"{address}.*start the cluster again.*run the same command"):
        require_head(address, 0.0)


def test_a_head_that_comes_back_in_time_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address_of(server)
    back: list[socket.socket] = []

    def come_back() -> None:
        time.sleep(0.3)
        back.append(socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))))

    thread = threading.Thread(target=come_back)
    thread.start()
    require_head(address, 30.0)
    thread.join()
    back[0].close()


def test_a_question_is_answered_or_fails_as_it_would_have() -> None:
    assert in_time(lambda: 7, 10.0) == 7
    with pytest.raises(KeyError, match="no such node"):
        in_time(lambda: dict[str, int]()["no such node"], 10.0)


def test_a_head_that_goes_down_in_the_middle_of_a_question_is_not_waited_for() -> None:
    never = threading.Event()
    with pytest.raises(ClusterLostError, match=r"has not answered for 0 s; start the cluster again"):
        in_time(never.wait, 0.05)
    never.set()
