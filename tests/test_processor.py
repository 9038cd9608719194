"""What is told of the processor and the memory is what the system lists."""

import pytest

from common import processor as module


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """What `processor` says where the system lists `text`."""

    def say(text):
        file = tmp_path / 'cpuinfo'
        file.write_text(text)
        monkeypatch.setattr(module, '_CPUINFO', file)
        return module.processor.__wrapped__()

    return say


def test_model_and_telling_features_are_read(listed):
    text = 'processor\t: 0\nmodel name\t: Some Make 9\nflags\t\t: fpu avx2 avx512f avx_vnni avx512_bf16 amx_bf16x\n'
    assert listed(text) == {'model': 'Some Make 9', 'features': 'avx2 avx512f avx_vnni avx512_bf16'}


def test_elsewhere_nothing_is_assumed(listed, monkeypatch, tmp_path):
    assert listed('processor\t: 0\nFeatures\t: fp asimd\n')['features'] == ''
    monkeypatch.setattr(module, '_CPUINFO', tmp_path / 'missing')
    assert module.processor.__wrapped__()['features'] == ''


def test_a_containers_share_of_time_counts_where_it_is_less(monkeypatch, tmp_path):
    monkeypatch.setattr(module, '_CONTAINER', tmp_path)
    monkeypatch.setattr(module.os, 'sched_getaffinity', lambda process: set(range(64)))
    assert module.cores() == 64
    (tmp_path / 'cpu').mkdir()
    quota, period = tmp_path / 'cpu' / 'cpu.cfs_quota_us', tmp_path / 'cpu' / 'cpu.cfs_period_us'
    quota.write_text('-1\n')
    period.write_text('100000\n')
    assert module.cores() == 64
    quota.write_text('250000\n')
    assert module.cores() == 3
    quota.unlink()
    (tmp_path / 'cpu.max').write_text('max 100000\n')
    assert module.cores() == 64
    (tmp_path / 'cpu.max').write_text('200000 100000\n')
    assert module.cores() == module.physical_cores() == 2
    (tmp_path / 'cpu.max').write_text('5000 100000\n')
    assert module.cores() == 1


def test_two_threads_of_a_core_are_one_physical_core(monkeypatch, tmp_path):
    monkeypatch.setattr(module, '_CPUS', tmp_path)
    monkeypatch.setattr(module.os, 'sched_getaffinity', lambda process: {0, 1, 2, 5})
    assert module.physical_cores() == 4  # where nothing is told
    for core, siblings in {0: '0,4', 1: '1,5', 2: '2,6', 5: '1,5'}.items():
        folder = tmp_path / f'cpu{core}' / 'topology'
        folder.mkdir(parents=True)
        (folder / 'thread_siblings_list').write_text(f'{siblings}\n')
    assert module.physical_cores() == 3
    assert module.cores() == 4


def test_a_containers_limit_counts_where_it_is_lower(monkeypatch, tmp_path):
    monkeypatch.setattr(module, '_CONTAINER', tmp_path)
    machine = module.memory()
    assert machine > 2**30
    (tmp_path / 'memory.max').write_text('max\n')
    assert module.memory() == machine
    (tmp_path / 'memory.max').write_text(f'{2**62}\n')
    assert module.memory() == machine
    (tmp_path / 'memory.max').write_text(f'{2**29}\n')
    assert module.memory() == 2**29
    (tmp_path / 'memory').mkdir()
    (tmp_path / 'memory' / 'memory.limit_in_bytes').write_text('4096\n')
    assert module.memory() == 4096


def test_the_limits_of_a_job_within_the_system_count(monkeypatch, tmp_path):
    monkeypatch.setattr(module, '_CONTAINER', tmp_path)
    monkeypatch.setattr(module, '_GROUPS', tmp_path / 'groups')
    monkeypatch.setattr(module.os, 'sched_getaffinity', lambda process: set(range(64)))
    step, job = tmp_path / 'slurm' / 'job_7' / 'step_0', tmp_path / 'slurm' / 'job_7'
    step.mkdir(parents=True)
    (tmp_path / 'groups').write_text('3:cpuset:/elsewhere\n0::/slurm/job_7/step_0\n')
    (step / 'memory.max').write_text('max\n')
    (step / 'cpu.max').write_text('800000 100000\n')
    (job / 'memory.max').write_text(f'{2**29}\n')
    (job / 'cpu.max').write_text('1200000 100000\n')
    assert (module.memory(), module.cores()) == (2**29, 8)
    old = tmp_path / 'memory' / 'job'
    old.mkdir(parents=True)
    (old / 'memory.limit_in_bytes').write_text('4096\n')
    (tmp_path / 'groups').write_text('5:cpu,memory:/job\n')  # of cgroup 1
    assert (module.memory(), module.cores()) == (4096, 64)
