"""Rates measured in turns, A B C A B C, so that whatever else the machine does slows all of them alike."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SECONDS = 1.0  # that one turn should last
# Of its work, what each does off the clock until its memory has settled, and seconds after which that is enough.
SETTLING = (16, 8.0)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something whose speed is measured."""

    go: Callable[[int], float]  # does the work `count` times, waits for its end, and returns the seconds it took
    examples: int  # in one of these


def take_turns[Name](contestants: Mapping[Name, Contestant], repeats: int) -> dict[Name, list[float]]:
    """Examples a second of each contestant in each of `repeats` turns, by the contestants' names.

    Before the first turn everyone works off the clock, to settle and to tell how much work makes a turn of a second.
    Every turn begins with half as much off the clock: steps after a pause are not those of a training that goes on,
    for meanwhile the system may have taken memory back.
    """
    counts = {}
    for name, contestant in contestants.items():
        counts[name], seconds = _warmed_up(contestant)
        contestant.go(min(SETTLING[0], math.ceil(SETTLING[1] / seconds)))
    rates: dict[Name, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            contestant.go(math.ceil(counts[name] / 2))
            rates[name].append(counts[name] * contestant.examples / contestant.go(counts[name]))
    return rates


def trial(contestant: Contestant) -> float:
    """Examples a second, from a turn: enough to tell good settings from bad ones."""
    return contestant.examples / _warmed_up(contestant)[1]


def _warmed_up(contestant: Contestant) -> tuple[int, float]:
    """How often it must do its work to fill a turn, and the seconds of one, which is not that of the first few."""
    contestant.go(1)
    seconds = contestant.go(1)
    count = math.ceil(SECONDS / seconds)
    seconds = min(seconds, contestant.go(count) / count)
    return math.ceil(SECONDS / seconds), seconds


def spread(samples: Sequence[float]) -> dict[str, float]:
    """{'median', 'low', 'high'} of the samples."""
    return {'median': statistics.median(samples), 'low': min(samples), 'high': max(samples)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The spread of our rate over theirs, turn by turn: above 1 we are faster."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def bottleneck(loader: float, shares: Mapping[str, float]) -> str:
    """What holds a training back, in words, from the rates of loader and end to end as shares of the step's.

    The loader's is a median; `shares` is the spread over the turns.
    """
    share = shares['median']
    if share >= 0.95:
        return 'the step: the device does not wait for data'
    if shares['high'] >= 0.95:
        return f'not clear: turn by turn, {shares["low"]:.0%} to {shares["high"]:.0%} of the step is reached'
    if loader < 1.0:
        return f'the loader: it delivers {loader:.0%} of what the step could take'
    return f'the handing over: loader and step are faster alone, together they reach {share:.0%} of the step'


Row = dict[str, Any]  # of the results: JSON-able; always with `side`, `setting`, `kind`, `median`, `low`, `high`
