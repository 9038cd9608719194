"""The processor and the memory under a run, as far as the choice of a program depends on them."""

import functools
import math
import os
import pathlib
import platform
import re

_CPUINFO = pathlib.Path('/proc/cpuinfo')
_CPUS = pathlib.Path('/sys/devices/system/cpu')
_CONTAINER = pathlib.Path('/sys/fs/cgroup')
_GROUPS = pathlib.Path('/proc/self/cgroup')
# Features that decide which formulation is fast.
_TELLING = ('avx2', 'avx512f', 'avx_vnni', 'avx512_bf16', 'amx_bf16')


def cores() -> int:
    """Those that this process may use, or as many as its share of time makes up where those are fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return math.ceil(min(allowed, _share()))


def _share() -> float:
    """The lowest limit of a control group, in seconds of a core for each that passes; infinite where there is none."""
    return min(map(_share_of, _groups('cpu')))


def _share_of(folder: pathlib.Path) -> float:
    quota, period = folder / 'cpu.cfs_quota_us', folder / 'cpu.cfs_period_us'  # of cgroup 1
    files = [folder / 'cpu.max'] if (folder / 'cpu.max').is_file() else [quota, period]
    numbers = ' '.join(file.read_text(encoding='utf-8') for file in files if file.is_file()).split()
    limited = len(numbers) == 2 and all(number.isdigit() for number in numbers)
    return int(numbers[0]) / int(numbers[1]) if limited else math.inf


def _groups(kind: str) -> list[pathlib.Path]:
    """The folders of all control groups that limit this process: a container's, and what Slurm or systemd made within.

    Of cgroup 2, and of cgroup 1 for `kind`.
    """
    top = pathlib.PurePosixPath()
    own = [(_CONTAINER, top), (_CONTAINER / kind, top)]
    for line in _GROUPS.read_text(encoding='utf-8').splitlines() if _GROUPS.is_file() else []:
        _, kinds, path = line.split(':', 2)
        if not kinds or kind in kinds.split(','):
            own.append((_CONTAINER / kind if kinds else _CONTAINER, pathlib.PurePosixPath(path.strip('/'))))
    return [root / path for root, inner in own for path in (inner, *inner.parents)]


def physical_cores() -> int:
    """`cores` where no two share their units, as two threads of a core do."""
    if not hasattr(os, 'sched_getaffinity'):
        return cores()
    lists = {core: _CPUS / f'cpu{core}' / 'topology' / 'thread_siblings_list' for core in os.sched_getaffinity(0)}
    different = {path.read_text(encoding='utf-8') if path.is_file() else core for core, path in lists.items()}
    return min(len(different), cores())


def memory() -> int:
    """Bytes that this process may use: the machine's, or those of a control group that has fewer."""
    names = 'memory.max', 'memory.limit_in_bytes'  # of cgroup 2 and 1
    limits = [folder / name for folder in _groups('memory') for name in names]
    texts = [limit.read_text(encoding='utf-8').strip() for limit in limits if limit.is_file()]
    machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return min([machine, *(int(text) for text in texts if text.isdigit())])


@functools.cache
def processor() -> dict[str, str]:
    """Its `model`, and those of its `features` that matter; none where the system does not list them."""
    text = _CPUINFO.read_text(encoding='utf-8') if _CPUINFO.is_file() else ''
    model = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
    flags = re.search(r'^flags\s*: (.*)', text, re.MULTILINE)
    features = [feature for feature in _TELLING if flags and feature in flags[1].split()]
    return {'model': model[1] if model else platform.machine(), 'features': ' '.join(features)}
