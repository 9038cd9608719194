"""The machine that figures belong to: processor, its instructions for machine learning, memory, versions."""

import os
import pathlib
import platform
import resource
from typing import Any

import jax

from common.processor import cores
from common.runtime import environment

INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'amx_tile')


def machine() -> dict[str, Any]:
    """JSON-able facts: `processor`, `flags` (of INSTRUCTIONS those it has), `cores`, `memory_gib`, and versions."""
    facts = _processor_facts()
    number = ', '.join(f'{key} {facts[key]}' for key in ('cpu family', 'model') if key in facts)
    name = facts.get('model name', platform.processor() or platform.machine())
    return {
        'processor': f'{name} ({number})' if number else name,
        'flags': [flag for flag in INSTRUCTIONS if flag in facts.get('flags', '').split()],
        'cores': cores(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'system': platform.platform(),
        **environment(),
    }


def _processor_facts() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = pathlib.Path('/proc/cpuinfo')
    if not path.exists():
        return {}
    lines = path.read_text(encoding='utf-8').split('\n\n')[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}


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
