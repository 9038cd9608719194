"""The machine that figures belong to: processor, memory, versions."""

import platform
import resource
from typing import Any

import jax

from common.processor import cores, memory
from common.runtime import environment


def machine() -> dict[str, Any]:
    """JSON-able facts: `cores`, `memory_gib`, `system`, and those of `environment`, as `processor` and `versions`."""
    return {
        'cores': cores(),
        'memory_gib': round(memory() / 2**30, 1),
        'system': platform.platform(),
        **environment(),
    }


def host_memory() -> int:
    """The most bytes of host memory that this process has held."""
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory(device: jax.Device, compiled: Any) -> int | None:
    """The most bytes that `device` has held, or where it does not say, those that the compiled program needs."""
    statistics = device.memory_stats() if device.platform != 'cpu' else None
    if statistics and 'peak_bytes_in_use' in statistics:
        return statistics['peak_bytes_in_use']
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    donated = memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - donated
