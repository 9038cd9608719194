"""How a training is cut to fit the device: steps in a dispatch, parts of a batch, devices out of a CPU's cores.

Every number follows from the config, the model's arithmetic and the number of cores, never from a timing, so that a run
that goes on is cut as before.
"""

from common.processor import cores

MOST = 50
# Floating-point operations of steps that share a dispatch, ten to thirty milliseconds' worth, and of one to fill.
SHORT = {'cpu': 4e9, 'accelerator': 1e13}
FILLED = {'cpu': 1e10, 'accelerator': 2e13}
# Of a batch, what a core takes at once: fewer are not worth a device of their own, and more leave its cache.
ROWS = 16


def steps_per_dispatch(flops: float, platform: str, boundary: int) -> int:
    """What `config.steps_per_dispatch = 0` means: several where starting each would cost as much as computing it.

    Starting a program takes about a millisecond on the host, whatever it computes; and XLA for GPUs lays weights out
    for their convolutions once a dispatch, where a single step has them transposed, updated and copied back.

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


def accumulate_steps(asked: int, rows: int, platform: str) -> int:
    """The parts into which `rows` of a batch on one device are cut.

    As many as `config.accumulate_steps` asks for; 0: on a CPU so many that what a part leaves for its gradient stays in
    the cache, elsewhere one. LSTMs, which read that once a time step, train 1.3 times faster by it.
    """
    if asked or platform != 'cpu':
        return asked or 1
    return max((parts for parts in range(1, rows // ROWS + 1) if rows % parts == 0), default=1)


def cpu_devices(asked: int, batch_size: int) -> int:
    """The devices that jax makes of a CPU, each for its share of a batch.

    As many as `config.cpu_devices` asks for; 0: as many as there are cores, if each gets rows enough. XLA spreads the
    work of one operation over all cores, which wins little where operations are small: LSTMs train 1.5 times faster on
    two devices of a core each. Large convolutions train as fast where the cores share their last cache, and faster
    where they do not, for XLA gives a core what the other has just written; small ones lose by waiting for each other.
    """
    if asked:
        return asked
    even = [count for count in range(1, cores() + 1) if batch_size % count == 0 and batch_size // count >= ROWS]
    return max(even, default=1)
