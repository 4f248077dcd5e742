"""The Scheduler of `ptqbench cell`: one stage after another in this process, with a debugger's stack traces."""

import os
from pathlib import Path
from typing import Any

import psutil

from orchestrator.events import End, EvaluateEnded, Node, QuantizeEnded
from orchestrator.placement import Placement
from workers.api import EvaluateRequest, QuantizeRequest

GIB = 2**30


class InlineScheduler:
    """A stage is done when its start returns; `wait` hands over its end."""

    def __init__(self) -> None:
        self._events: list[End] = []
        self._hosts: dict[str, Any] = {}

    def nodes(self) -> tuple[Node, ...]:
        memory_gib = psutil.virtual_memory().total / GIB
        return (Node("here", num_gpus=_visible_gpus(), num_cpus=os.cpu_count() or 1, memory_gib=memory_gib),)

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        from workers.entry import quantize_stage

        self._events.append(QuantizeEnded(key, quantize_stage(request, capture_output=False)))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        from workers.entry import EngineHost

        self._hosts[host_id] = EngineHost(engine, placement.tensor_parallel_size)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        failure = self._hosts[host_id].evaluate(request, capture_output=False)
        self._events.append(EvaluateEnded(key, host_id, failure))

    def abort(self, key: str) -> None:
        raise NotImplementedError("a stage in this process cannot be killed from within it")

    def stop_host(self, host_id: str) -> None:
        if host_id in self._hosts:
            self._hosts.pop(host_id).close()

    def admit(self, storage: Path, inputs: tuple[str, ...]) -> list[str]:
        return []

    def newly_refused(self) -> list[str]:
        return []

    def wait(self, timeout_seconds: float) -> list[End]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for host_id in list(self._hosts):
            self.stop_host(host_id)


def _visible_gpus() -> int:
    devices = Path("/proc/driver/nvidia/gpus")
    return len(list(devices.iterdir())) if devices.exists() else 0
