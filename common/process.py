"""Settings that a process can only be started with; each with what it brings, none of them changes a number."""

import importlib.util
import os
import sys
from collections.abc import Mapping

from common.processor import memory

SWITCH = 'TRIPTYCH_PROCESS_SETTINGS'
_NEVER = 2**34  # bytes, more than one allocation takes
HUGE_PAGES = 'glibc.malloc.hugetlb=1'  # for large arrays
# And what an array has held stays with the process for the next one, in one heap for all threads, where by default it
# goes back to the kernel, which clears every page again before the next step.
TUNABLES = (
    f'{HUGE_PAGES}:glibc.malloc.mmap_threshold={_NEVER}:glibc.malloc.trim_threshold={_NEVER}:glibc.malloc.arena_max=1'
)
# Bytes of memory from which on it stays: a process then comes to hold two or three times what it needs, since glibc
# cuts off the ends of an aligned array, and the next does not fit into its place.
ENOUGH = 12 * 2**30

# Whole loops of training steps as one CUDA graph, convolutions included, which XLA by itself leaves out.
GRAPHS = '--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE'


def restart_with_settings() -> None:
    """Executes the same command once more with the settings in its environment, unless nothing is to be set.

    It remains the same process, with the same number, files and signals. The second time the settings are there,
    and nothing happens. TRIPTYCH_PROCESS_SETTINGS=off keeps the process as it is.

    To be called first thing: before jax starts, and before anything is imported that would be imported twice.
    """
    settings = wanted(os.environ)
    if settings:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})


def wanted(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set: for a CPU under glibc, whose releases ignore tunables that they lack, or for NVIDIA GPUs.

    What the user has set already is left as it is.
    """
    if switched_off(environment):
        return {}
    flags = environment.get('XLA_FLAGS', '')
    if _runs_on_cuda(environment) and takes_flags(environment) and GRAPHS.partition('=')[0] not in flags:
        return {'XLA_FLAGS': f'{flags} {GRAPHS}'.strip()}
    if _has_glibc() and runs_on_cpu(environment) and 'GLIBC_TUNABLES' not in environment:
        return {'GLIBC_TUNABLES': TUNABLES if memory() >= ENOUGH else HUGE_PAGES}
    return {}


def switched_off(environment: Mapping[str, str]) -> bool:
    """Whether the user wants none of these settings, nor XLA's flags of `common.runtime`."""
    return environment.get(SWITCH) == 'off'


def takes_flags(environment: Mapping[str, str]) -> bool:
    """Whether $XLA_FLAGS can be added to; it may also name a file that holds them."""
    return environment.get('XLA_FLAGS', '').strip()[:1] in ('', '-')


def _has_glibc() -> bool:
    name = 'CS_GNU_LIBC_VERSION'
    return name in os.confstr_names and (os.confstr(name) or '').startswith('glibc')


def runs_on_cpu(environment: Mapping[str, str]) -> bool:
    """What jax will choose: without a plugin for accelerators it has only the CPU."""
    if platforms := environment.get('JAX_PLATFORMS'):
        return platforms == 'cpu'
    return not any(importlib.util.find_spec(plugin) for plugin in ('jax_plugins', 'libtpu'))


def _runs_on_cuda(environment: Mapping[str, str]) -> bool:
    """What jax will choose where its plugin for CUDA is installed."""
    platforms = environment.get('JAX_PLATFORMS', '')
    may = not platforms or platforms.split(',')[0] in ('cuda', 'gpu')
    has_plugins = may and importlib.util.find_spec('jax_plugins')
    return bool(has_plugins) and any(importlib.util.find_spec(f'jax_plugins.xla_cuda{n}') for n in (12, 13))
