"""How many steps make up one dispatch: several where steps are so short that starting each would cost as much.

Starting a program takes about a millisecond on the host, whatever it computes. The number follows from the model's
arithmetic alone, never from a timing, so that a run that goes on cuts its steps as before.
"""

MOST = 50
# Floating-point operations of a step that is too short, a few milliseconds' worth, and of the dispatch to fill.
SHORT = {'cpu': 1e9, 'accelerator': 1e11}
FILLED = {'cpu': 1e10, 'accelerator': 1e12}


def steps_per_dispatch(flops: float, platform: str, boundary: int) -> int:
    """What `config.steps_per_dispatch = 0` means.

    Args:
      flops: of one step.
      platform: jax's name of the backend.
      boundary: steps between evaluations, which no dispatch crosses. A divisor is preferred: what is left over at a
        boundary takes single steps, which is one more program to compile.
    """
    kind = 'cpu' if platform == 'cpu' else 'accelerator'
    if flops >= SHORT[kind]:
        return 1
    most = max(min(int(FILLED[kind] / max(flops, 1.0)), MOST, boundary), 1)
    divisor = max(size for size in range(1, most + 1) if boundary % size == 0)
    return divisor if 2 * divisor > most else most
