"""What is free on which node."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.capacity import Capacity
from orchestrator.events import Node
from orchestrator.placement import Placement

memories = st.lists(st.floats(0.1, 30.0), min_size=1, max_size=30)


@given(memories=memories)
def test_a_node_that_got_everything_back_takes_a_placement_of_its_whole_size(memories: list[float]) -> None:
    capacity = Capacity()
    whole = Node("n", 4, 64, 999.9)
    capacity.set_nodes([whole])
    for i, memory_gib in enumerate(memories):
        capacity.take(str(i), Placement(0, 1, memory_gib), "n")
    for i in range(len(memories)):
        capacity.release(str(i), "n")
    assert capacity.best_fit(Placement(4, 64, 999.9), but=None) == "n"


def test_the_fullest_fitting_node_is_taken_and_the_excepted_one_is_not() -> None:
    capacity = Capacity()
    capacity.set_nodes([Node("a", 8, 64, 100.0), Node("b", 2, 64, 100.0), Node("c", 0, 64, 100.0)])
    one = Placement(1, 4, 10.0)
    assert capacity.best_fit(one, but=None) == "b"
    assert capacity.best_fit(one, but="b") == "a"
    assert capacity.best_fit(Placement(4, 4, 10.0), but="a") is None


def test_what_holders_would_give_back_counts_as_room() -> None:
    capacity = Capacity()
    capacity.set_nodes([Node("n", 2, 8, 50.0)])
    capacity.take("h1", Placement(1, 4, 20.0), "n")
    capacity.take("h2", Placement(1, 4, 20.0), "n")
    two = Placement(2, 8, 40.0)
    assert not capacity.fits_without(two, "n", {"h1"})
    assert capacity.fits_without(two, "n", {"h1", "h2"})


def test_the_emptiest_node_is_one_that_could_take_it_when_empty() -> None:
    capacity = Capacity()
    capacity.set_nodes([Node("small", 2, 8, 50.0), Node("big", 4, 16, 100.0)])
    capacity.take("t", Placement(3, 4, 10.0), "big")
    assert capacity.emptiest(Placement(1, 1, 1.0)) == "small"
    assert capacity.emptiest(Placement(4, 1, 1.0)) == "big"
    assert capacity.emptiest(Placement(5, 1, 1.0)) is None


def test_a_share_on_a_node_that_left_counts_when_it_comes_back() -> None:
    capacity = Capacity()
    node = Node("n", 1, 8, 50.0)
    capacity.set_nodes([node])
    capacity.take("t", Placement(1, 4, 10.0), "n")
    capacity.set_nodes([])
    assert "n" not in capacity
    capacity.set_nodes([node])
    assert capacity.best_fit(Placement(1, 1, 1.0), but=None) is None
    capacity.set_nodes([])
    capacity.release("t", "n")
    capacity.set_nodes([node])
    assert capacity.best_fit(Placement(1, 1, 1.0), but=None) == "n"
