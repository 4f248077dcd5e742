"""What is free on which node. Sums are exact, so that a node that gave everything back is whole again."""

import math
from collections import defaultdict
from collections.abc import Container, Iterable

from orchestrator.events import Node
from orchestrator.placement import Placement

Room = tuple[float, float, float]  # GPUs, CPUs, GiB of host memory


class Capacity:
    """Nodes, and who holds what of them. A holder's share of a node that left counts again if the node comes back."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._held: defaultdict[str, dict[str, Placement]] = defaultdict(dict)
        self._free: dict[str, Room] = {}

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """The cluster as it is now."""
        self._nodes = {node.id: node for node in nodes}
        self._free = {node_id: self._room(node_id, ()) for node_id in self._nodes}

    def take(self, holder: str, placement: Placement, node_id: str) -> None:
        """Give a share of a node to a holder."""
        self._held[node_id][holder] = placement
        self._free[node_id] = self._room(node_id, ())

    def release(self, holder: str, node_id: str) -> None:
        """Take a holder's share back."""
        del self._held[node_id][holder]
        if node_id in self._nodes:
            self._free[node_id] = self._room(node_id, ())

    def best_fit(self, placement: Placement, but: str | None) -> str | None:
        """The fitting node (other than `but`) with the fewest free GPUs, so that whole nodes stay open for gangs."""
        able = [n for n in self._nodes if n != but and _fits(placement, self._free[n])]
        return min(able, key=lambda n: (*self._free[n], n), default=None)

    def fits_without(self, placement: Placement, node_id: str, holders: Container[str]) -> bool:
        """Whether a placement would fit on a node if these holders gave their shares back."""
        return _fits(placement, self._room(node_id, holders))

    def emptiest(self, placement: Placement) -> str | None:
        """The node with most free GPUs among those that could take a placement if they were empty."""
        able = [i for i, n in self._nodes.items() if _fits(placement, (n.num_gpus, n.num_cpus, n.memory_gib))]
        return max(able, key=lambda n: (*self._free[n], n), default=None)

    def _room(self, node_id: str, without: Container[str]) -> Room:
        node = self._nodes[node_id]
        held = [p for holder, p in self._held[node_id].items() if holder not in without]
        return (
            node.num_gpus - sum(p.num_gpus for p in held),
            node.num_cpus - sum(p.num_cpus for p in held),
            node.memory_gib - math.fsum(p.memory_gib for p in held),
        )


def _fits(placement: Placement, room: Room) -> bool:
    return placement.num_gpus <= room[0] and placement.num_cpus <= room[1] and placement.memory_gib <= room[2]
