"""How a peer talks to the benchmark: one JSON object a line comes in, one goes out; libraries may chatter on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

THREADS = 'PEER_THREADS'


def efficientnet_blocks(model: dict) -> Iterator[tuple[int, int, int, int, float]]:
    """Kernel side, stride, expansion, channels and drop rate of every block, from the model's `stages`."""
    number, count = 0, sum(stage[0] for stage in model['stages'])
    for blocks, side, stride, expansion, channels in model['stages']:
        for block in range(blocks):
            yield side, stride if block == 0 else 1, expansion, channels, model['drop_connect'] * number / count
            number += 1


def threads(spec: dict) -> int:
    """As many as there are cores to use, unless this process is one with fewer of them."""
    return int(os.environ.get(THREADS, spec['threads']))


def fewer_threads(spec: dict) -> list[dict[str, str]]:
    """What to try as well where cores have two threads each: a thread a core, often the faster choice."""
    physical = spec['physical_cores']
    return [{THREADS: str(physical)}] if physical < spec['threads'] else []


def serve(make: Callable[[dict], Any]) -> None:
    """Answers until the benchmark hangs up.

    `make(specification)` returns a peer with `settings`, `environments` (other variables to be tried as well),
    `num_parameters`, `versions`, and `run(setting, steps)`, which takes the steps and returns the seconds; the first
    call for a setting may prepare it.
    """
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    def answer(content: dict) -> None:
        answers.write(json.dumps(content) + '\n')
        answers.flush()

    peer = make(json.loads(sys.stdin.readline()))
    answer({key: getattr(peer, key) for key in ('settings', 'environments', 'num_parameters', 'versions')})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer({'seconds': peer.run(question['setting'], question['steps'])})
        except Exception as error:  # a compiler that is not there, memory that is not enough
            lines = str(error).strip().splitlines()
            answer({'unavailable': f'{type(error).__name__}: {lines[0] if lines else ""}'})
