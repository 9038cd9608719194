"""A launch script restarts itself once with the settings of its process, and is the same command afterwards."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from common import process, runtime
from common.processor import cores
from tests.conftest import REPOSITORY

PLAIN = {name: value for name, value in os.environ.items() if name not in ('GLIBC_TUNABLES', process.SWITCH)}
CUDA = ('jax_plugins', 'jax_plugins.xla_cuda13')


@pytest.fixture
def capable(monkeypatch):
    """A machine with glibc, and without an accelerator."""
    monkeypatch.setattr(os, 'confstr_names', {'CS_GNU_LIBC_VERSION': 2})
    monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.35')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr(process, 'memory', lambda: process.ENOUGH)


def test_memory_is_kept_and_huge_pages_are_asked_for_where_glibc_can_be_told(capable):
    assert process.wanted({}) == process.wanted({'JAX_PLATFORMS': 'cpu'}) == {'GLIBC_TUNABLES': process.TUNABLES}


def test_where_memory_is_scarce_it_goes_back_to_the_system(capable, monkeypatch):
    monkeypatch.setattr(process, 'memory', lambda: process.ENOUGH - 1)
    assert process.wanted({}) == {'GLIBC_TUNABLES': process.HUGE_PAGES}


@pytest.mark.parametrize(
    'environment',
    [
        {process.SWITCH: 'off'},
        {'GLIBC_TUNABLES': 'glibc.malloc.check=1'},
        {'GLIBC_TUNABLES': ''},
        {'JAX_PLATFORMS': 'cuda,cpu'},
    ],
)
def test_the_switch_what_the_user_set_and_accelerators_leave_the_process_as_it_is(capable, environment):
    assert process.wanted(environment) == {}


@pytest.mark.parametrize('platforms', [{}, {'JAX_PLATFORMS': 'cuda,cpu'}, {'JAX_PLATFORMS': 'gpu'}])
def test_on_nvidia_gpus_loops_become_graphs_beside_what_the_user_has_set(capable, monkeypatch, platforms):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name in CUDA)
    assert process.wanted(platforms) == {'XLA_FLAGS': process.GRAPHS}
    both = {'XLA_FLAGS': f'--xla_dump_to=x {process.GRAPHS}'}
    assert process.wanted({**platforms, 'XLA_FLAGS': '--xla_dump_to=x'}) == both
    assert process.wanted({**platforms, **both}) == {}
    assert process.wanted({**platforms, 'XLA_FLAGS': '--xla_gpu_enable_command_buffer='}) == {}
    assert process.wanted({**platforms, process.SWITCH: 'off'}) == {}
    assert process.wanted({'JAX_PLATFORMS': 'cpu'}) == {'GLIBC_TUNABLES': process.TUNABLES}
    assert process.wanted({'JAX_PLATFORMS': 'cpu,cuda'}) == {}
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name in ('jax_plugins', 'jax_plugins.xla_cuda12'))
    assert process.wanted(platforms) == {'XLA_FLAGS': process.GRAPHS}


def test_xla_knows_the_flag():
    """It stops at a flag or a name that it does not know, on a CPU too."""
    code = 'import jax; print(jax.jit(lambda x: x + 1)(1))'
    environment = PLAIN | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': process.GRAPHS}
    assert subprocess.check_output([sys.executable, '-c', code], env=environment).strip() == b'2'
    wrong = environment | {'XLA_FLAGS': f'{process.GRAPHS},+NO_SUCH'}
    assert subprocess.run([sys.executable, '-c', code], env=wrong, capture_output=True).returncode


def test_other_systems_and_plugins_leave_the_process_as_it_is(capable, monkeypatch):
    for plugin in ('jax_plugins', 'libtpu'):
        monkeypatch.setattr('importlib.util.find_spec', lambda name, plugin=plugin: name == plugin)
        assert process.wanted({}) == {}
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    for version in ('musl 1.2', '', None):
        monkeypatch.setattr(os, 'confstr', lambda name, version=version: version)
        assert process.wanted({}) == {}
    monkeypatch.setattr(os, 'confstr_names', {})
    assert process.wanted({}) == {}


KEEPING = """
    import ctypes, resource, sys
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for step in range(10):
        block = malloc(2**28)
        ctypes.memset(block, 1, 2**28)
        free(block)
        if step == 0:
            first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


def test_under_the_tunables_an_array_finds_the_memory_of_the_last_one():
    def faults(**settings: str) -> int:
        command = [sys.executable, '-c', textwrap.dedent(KEEPING)]
        return int(subprocess.check_output(command, env=PLAIN | settings))

    assert faults(GLIBC_TUNABLES=process.TUNABLES) < 0.1 * faults()


SCRIPT = """
    import os, signal, sys
    print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), 'jax' in sys.modules, sys.argv[1:])
    if 'kill' in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(3)
"""


@pytest.mark.parametrize('switch', ['on', 'off'])
def test_a_script_starts_once_more_as_the_same_process_with_the_same_arguments(tmp_path, switch):
    """The package as it is, with a script more; the last directory on the path comes first here."""
    package = tmp_path / 'experiments'
    package.mkdir()
    (package / '__init__.py').write_text((REPOSITORY / 'experiments' / '__init__.py').read_text())
    (package / 'probe.py').write_text(textwrap.dedent(SCRIPT))

    def start(*arguments: str) -> tuple[subprocess.Popen, list[str]]:
        environment = PLAIN | {'PYTHONPATH': str(REPOSITORY), process.SWITCH: switch, 'JAX_PLATFORMS': 'cpu'}
        command = [sys.executable, '-m', 'experiments.probe', *arguments]
        started = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        return started, started.communicate()[0].split(' ', 3)

    setting = process.wanted({'JAX_PLATFORMS': 'cpu'} if switch == 'on' else {process.SWITCH: 'off'})
    started, said = start('--a=1 2', "it's", '')
    assert started.returncode == 3
    expected = [str(started.pid), str(setting.get('GLIBC_TUNABLES')), 'False', "['--a=1 2', \"it's\", '']\n"]
    assert said == expected
    assert start('kill')[0].returncode == -15


def test_importing_the_package_restarts_nothing():
    code = 'import os, experiments; print(os.environ.get("GLIBC_TUNABLES"))'
    environment = PLAIN | {'JAX_PLATFORMS': 'cpu'}
    said = subprocess.check_output([sys.executable, '-c', code], cwd=pathlib.Path(REPOSITORY), env=environment)
    assert said.decode().strip() == 'None'


@pytest.mark.parametrize(('flags', 'expected'), [('', 3), ('--xla_force_host_platform_device_count=2', 2)])
def test_a_cpu_is_divided_unless_the_user_has_done_so(flags, expected):
    code = 'import jax; from common import runtime; runtime.start(cpu_devices=3); print(len(jax.devices()))'
    environment = {**PLAIN, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected


SPLIT = """
    import os, sys, jax, jax.numpy as jnp
    from common import runtime
    from common.processor import cores
    every = cores()
    runtime.start(cpu_devices=every if sys.argv[1] == 'every' else 1)
    parallel = runtime.DataParallel()
    lifted = parallel.lift(lambda state, shared, batch: jnp.sin(state))
    arguments = jnp.ones((4096, 4096)), {'columns': (), 'parts': (), 'tables': ()}, jnp.ones((len(parallel), 1))
    text = lifted.compile(*arguments).as_text()
    assert cores() == every  # again
    print('split' if 'outer_dimension_partitions' in text else 'whole')
    print('one thread' if runtime.ONE_THREAD in os.environ.get('XLA_FLAGS', '') else 'all threads')
"""


@pytest.mark.skipif(cores() == 1, reason='one core shares its work with no other')
@pytest.mark.parametrize(
    ('devices', 'switch', 'expected'),
    [
        ('every', 'on', 'whole\none thread\n'),
        ('every', 'off', 'split\nall threads\n'),
        ('one', 'on', 'split\nall threads\n'),
    ],
)
def test_no_operation_is_shared_by_cores_where_every_core_is_a_device(devices, switch, expected):
    command = [sys.executable, '-c', textwrap.dedent(SPLIT), devices]
    environment = {**PLAIN, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', process.SWITCH: switch}
    assert subprocess.check_output(command, cwd=REPOSITORY, env=environment, text=True) == expected


@pytest.mark.skipif(cores() == 1, reason='all cores are one')
@pytest.mark.parametrize(('backend', 'devices', 'narrow'), [('cpu', 99, True), ('cpu', 1, False), ('gpu', 99, False)])
def test_one_core_compiles_for_devices_of_a_core_alone(monkeypatch, backend, devices, narrow):
    monkeypatch.setattr('jax.default_backend', lambda: backend)
    monkeypatch.setattr('jax.local_device_count', lambda: devices)
    before = cores()
    with runtime._compiling():
        assert cores() == (1 if narrow else before)
    assert cores() == before


@pytest.mark.parametrize(
    ('features', 'devices', 'expected'),
    [
        ('avx512_bf16', 1, []),
        ('avx_vnni', 2, []),
        ('avx_vnni avx512_bf16', 3, [runtime.WIDE]),
        ('avx_vnni avx512_bf16', 4, [runtime.WIDE, runtime.ONE_THREAD]),
        ('avx_vnni avx512_bf16 amx_bf16', 8, [runtime.ONE_THREAD]),
        ('avx2', 1, [runtime.LOOPS]),
        ('avx2 avx_vnni avx512_bf16', 4, [runtime.WIDE, runtime.LOOPS, runtime.ONE_THREAD]),
    ],
)
def test_xla_is_told_what_suits_the_processor_and_its_division(monkeypatch, features, devices, expected):
    monkeypatch.setattr('jax.__version_info__', (*runtime._KNOWN_LLVM, 0))
    monkeypatch.setattr(runtime, 'processor', lambda: {'model': 'any', 'features': features})
    monkeypatch.setattr(runtime, 'cores', lambda: 4)
    assert runtime.suited_flags(devices) == expected
    monkeypatch.setattr('jax.__version_info__', (9, 9))  # whose LLVM may have other options
    assert runtime.LOOPS not in runtime.suited_flags(devices)


def test_nothing_is_added_to_a_file_of_flags(capable, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name in CUDA)
    assert process.wanted({'XLA_FLAGS': '/some/flags.txt'}) == {}
    monkeypatch.undo()
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    for flags, stays in (('flags.txt', True), ('', False), (' --xla_dump_to=x', False)):
        monkeypatch.setenv('XLA_FLAGS', flags)
        runtime.start(cpu_devices=1)
        assert (os.environ['XLA_FLAGS'] == flags) == (stays or not runtime.suited_flags(1))


def test_flags_of_the_user_stay():
    code = 'import os; from common import runtime; runtime.start(cpu_devices=99); print(os.environ["XLA_FLAGS"])'
    flags = f'{runtime.ONE_THREAD[:-5]}true {runtime.WIDE[:-3]}128 {runtime.LOOPS[:-1]}4'
    environment = {**PLAIN, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    assert (
        subprocess.check_output([sys.executable, '-c', code], cwd=REPOSITORY, env=environment, text=True)
        == f'{flags}\n'
    )


HOLES = """
    import ctypes
    from common import heap
    libc = heap._libc()
    pieces = [0] * 6000
    for place in range(6000):
        pieces[place] = libc.malloc(4000 if place % 2 else 70000)
    pieces = pieces[2000:]  # the first ones used older holes up
    for piece in pieces[::2]:
        libc.free(piece)
    largest = libc.malloc(2**28)
    libc.free(largest)

    def where():
        piece = libc.malloc(69000)
        libc.free(piece)
        return 'hole' if piece < max(pieces) else 'end'

    found = [where()]
    for _ in range(2):
        with heap.compiling():
            found.append(where())
        found.append(where())
    again = libc.malloc(2**28)
    print(*found, again == largest)
"""


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'GLIBC_TUNABLES': process.TUNABLES}, 'hole hole end hole end True'),
        ({'GLIBC_TUNABLES': 'glibc.malloc.arena_max=1'}, 'hole hole hole hole hole'),
        ({}, 'hole hole hole hole hole'),
    ],
)
def test_what_compiling_leaves_is_out_of_the_way_until_the_next_compilation(settings, expected):
    command = [sys.executable, '-c', textwrap.dedent(HOLES)]
    found = subprocess.check_output(command, env=PLAIN | settings, cwd=REPOSITORY, text=True)
    assert found.startswith(expected)


COMPILED = """
    import jax, numpy as np
    from common import heap, runtime
    parallel = runtime.DataParallel()
    double = parallel.lift(lambda state, shared, batch: jax.tree.map(lambda x: 2 * x, state))
    arguments = ({'x': np.ones(3)}, {'columns': {}, 'parts': {}, 'tables': {}}, {'mask': np.ones((1, 2))})
    print(bool(heap._held))
    double{how}(*arguments)
    print(bool(heap._held))
"""


@pytest.mark.parametrize('how', ['', '.compile'])
def test_every_compilation_of_a_lifted_function_clears_up_after_itself(how):
    command = [sys.executable, '-c', textwrap.dedent(COMPILED).replace('{how}', how)]
    settings = {'GLIBC_TUNABLES': process.TUNABLES, 'JAX_PLATFORMS': 'cpu'}
    found = subprocess.check_output(command, env=PLAIN | settings, cwd=REPOSITORY, text=True)
    assert found == 'False\nTrue\n'


@pytest.mark.parametrize(
    ('precision', 'backend', 'expected'),
    [
        *(('auto', 'cpu', 'float32'), ('auto', 'gpu', 'bfloat16')),
        *(('float32', 'gpu', 'float32'), ('bfloat16', 'cpu', 'bfloat16')),
    ],
)
def test_accelerators_compute_in_bfloat16_unless_the_config_says_otherwise(monkeypatch, precision, backend, expected):
    monkeypatch.setattr('jax.default_backend', lambda: backend)
    assert runtime.compute_dtype(precision).name == expected
