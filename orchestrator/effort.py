"""How much calibration and training the numbers of a sweep rest on, in words over its tables. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from conf.schema import BlockTune, CalibrationConf, MethodConf
from orchestrator.cell import Cell
from workers.methods.registry import is_baseline


def effort(cells: Iterable[Cell]) -> dict[str, str]:
    """What was given, by its name: `calibration`, and `training` where there is any. 16-bit baselines take neither.

    Where cells differ, all there is, each with the methods that got it.
    """
    configs = [cell.config for cell in cells if cell.support is None and not is_baseline(cell.config.method)]
    said = {
        "calibration": _by_method((config.method.name, _calibration(config.calibration)) for config in configs),
        "training": _by_method(
            (config.method.name, length) for config in configs if (length := _length(config.method))
        ),
    }
    return {name: words for name, words in said.items() if words}


def _calibration(conf: CalibrationConf) -> str:
    return f"{conf.num_sequences} windows of {conf.sequence_length} tokens ({conf.name})"


def _length(method: MethodConf) -> str:
    """How long the slot tune trains each block; empty where it trains nothing."""
    tune = method.tune
    if not isinstance(tune, BlockTune):
        return ""
    if tune.iterations:
        return f"{tune.iterations} steps of {tune.batch_size} windows"
    return f"{tune.epochs} epoch{'' if tune.epochs == 1 else 's'}"


def _by_method(given: Iterable[tuple[str, str]]) -> str:
    """Each thing that was given once, with the methods that got it where not all got the same."""
    methods: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for method, what in given:
        methods[what][method] = None
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in methods.items())
