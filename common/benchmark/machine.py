"""The machine that figures belong to: processor, memory, versions."""

import platform
import resource
from typing import Any

import jax

from common.processor import cores, memory
from common.runtime import environment
from common.training.setup import program_memory


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
    return (statistics or {}).get('peak_bytes_in_use') or program_memory(compiled)
