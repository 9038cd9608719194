"""Settings that a process can only be started with; each with what it brings, none of them changes a number."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping

SWITCH = 'TRIPTYCH_PROCESS_SETTINGS'
_HUGE_PAGES = 'glibc.malloc.hugetlb=1'
_KERNEL_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


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
    """The variables to set: huge pages for large arrays, where jax will run on a CPU of a Linux that can give them.

    What the user has set already is left as it is.
    """
    if environment.get(SWITCH) == 'off' or 'GLIBC_TUNABLES' in environment:
        return {}
    return {'GLIBC_TUNABLES': _HUGE_PAGES} if _has_huge_pages() and _runs_on_cpu(environment) else {}


def _has_huge_pages() -> bool:
    """Whether malloc can ask for huge pages (glibc 2.35 can), and the kernel waits to be asked."""
    if not sys.platform.startswith('linux') or 'CS_GNU_LIBC_VERSION' not in os.confstr_names:
        return False
    name, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
    if name != 'glibc' or tuple(int(part) for part in version.split('.')[:2]) < (2, 35):
        return False
    return _KERNEL_SETTING.is_file() and '[madvise]' in _KERNEL_SETTING.read_text(encoding='ascii')


def _runs_on_cpu(environment: Mapping[str, str]) -> bool:
    """What jax will choose: without a plugin for accelerators it has only the CPU."""
    if platforms := environment.get('JAX_PLATFORMS'):
        return platforms == 'cpu'
    return not any(importlib.util.find_spec(plugin) for plugin in ('jax_plugins', 'libtpu'))
