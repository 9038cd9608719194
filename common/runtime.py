"""The machine under a run: devices, compile cache, and the lifting of a per-device function over all of them."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from common import heap
from common.errors import UsageError
from common.process import runs_on_cpu, switched_off, takes_flags
from common.processor import cores, processor
from common.types import Tree

AXIS = 'data'  # the name by which per-device functions reduce over devices

# Where every core is a device, none lends another a hand, for what each works on lies in its own cache.
ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'
# XLA takes vectors of 256 bits by default. With twice that, a step is up to 1.05 times as fast on Zen 5, whose units
# are as wide and Zen 4's are not; the order of sums changes. AVX-VNNI tells them apart; with AMX it was not measured.
WIDE = '--xla_cpu_prefer_vector_width=512'
# LLVM writes out a loop of sixteen turns, as over 16 channels, before it looks for vectors, and then finds none: such
# passes took three to five times as long. An LLVM that did not know the option would end the process.
LOOPS = '--xla_backend_extra_options=-unroll-full-max-count=8'
_KNOWN_LLVM = (0, 12)  # the release of jax whose LLVM has it

type Options = Callable[[jax.stages.Lowered], dict[str, bool]]

# XLA cannot serialise programs that call oneDNN: they are compiled anew in every process.
warnings.filterwarnings('ignore', 'Error writing persistent compilation cache entry')


def start(distributed: bool = False, cpu_devices: int = 1) -> None:
    """Turns the compile cache on, divides the CPU, tells XLA about it, and for a run of several processes joins them.

    What $XLA_FLAGS say already stays, the number of devices too, and they may name a file of flags;
    TRIPTYCH_PROCESS_SETTINGS=off adds nothing to them.
    With `distributed`, jax finds the cluster by itself: Slurm, Open MPI, Kubernetes, TPU pods, or the environment
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    jax.config.update('jax_compilation_cache_dir', str(compile_cache()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    flags = os.environ.get('XLA_FLAGS', '')
    if 'host_platform_device_count' in flags:
        cpu_devices = 1
    if cpu_devices > 1:
        jax.config.update('jax_num_cpu_devices', cpu_devices)
    if runs_on_cpu(os.environ) and takes_flags(os.environ) and not switched_off(os.environ):
        more = [flag for flag in suited_flags(cpu_devices) if flag.partition('=')[0] not in flags]
        os.environ['XLA_FLAGS'] = ' '.join([*flags.split(), *more])  # read when jax first needs a device
    if distributed:
        # Of these three variables, jax itself reads the address only.
        count, number = (os.environ.get(name) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
        jax.distributed.initialize(
            num_processes=int(count) if count else None, process_id=int(number) if number else None
        )


def suited_flags(cpu_devices: int) -> list[str]:
    """XLA's flags for this processor, divided into so many devices."""
    features = set(processor()['features'].split())
    is_wide = features >= {'avx512_bf16', 'avx_vnni'} and 'amx_bf16' not in features
    rolled = 'avx2' in features and jax.__version_info__[:2] == _KNOWN_LLVM
    return [WIDE] * is_wide + [LOOPS] * rolled + [ONE_THREAD] * (cpu_devices >= cores() > 1)


def compile_cache() -> pathlib.Path:
    """The folder of compiled programs: $TRIPTYCH_COMPILE_CACHE, or ~/.cache/triptych/compiled."""
    return pathlib.Path(os.environ.get('TRIPTYCH_COMPILE_CACHE', '~/.cache/triptych/compiled')).expanduser()


def default_data_dir() -> pathlib.Path:
    """Where prepared data live unless a flag says otherwise: $TRIPTYCH_DATA, or ~/.cache/triptych/data."""
    return pathlib.Path(os.environ.get('TRIPTYCH_DATA', '~/.cache/triptych/data')).expanduser()


def compute_dtype(precision: str) -> np.dtype:
    """The dtype of activations: bfloat16 under 'auto' on accelerators, where it is fast; float32 on a CPU."""
    if precision == 'auto':
        precision = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    if precision not in ('float32', 'bfloat16'):
        raise UsageError(f'config.precision is {precision!r}; it may be auto, float32, bfloat16')
    return jax.numpy.dtype(precision)


def cpu_barrier(tree: Tree) -> Tree:
    """`optimization_barrier` on a CPU, where XLA would fuse into slow loops or compute twice; nothing elsewhere."""
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda same: same)


def environment() -> dict[str, Any]:
    """What a run's record says of the machine and the libraries."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'python': platform.python_version(),
        'versions': {package: importlib.metadata.version(package) for package in packages},
        'backend': jax.default_backend(),
        'processor': processor(),
        'devices': [device.device_kind for device in jax.devices()],
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'processes': jax.process_count(),
    }


class Lifted:
    """A function over all devices, compiled for every shape that it is called with.

    `options` gives, for a lowered program, what XLA is to be told when it compiles it.
    """

    def __init__(self, mapped: Any, options: Options | None):
        self._mapped, self._options = mapped, options
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        self._called = False  # the first call compiles, where jax itself keeps what is compiled

    def lower(self, *arguments: Tree) -> jax.stages.Lowered:
        return self._mapped.lower(*arguments)

    def compile(self, *arguments: Tree) -> jax.stages.Compiled:
        """Compiled ahead of time for such arguments."""
        lowered = self.lower(*arguments)
        with _compiling():
            return lowered.compile(compiler_options=self._options(lowered) if self._options else None)

    def __call__(self, *arguments: Tree) -> Any:
        if not self._options:
            with contextlib.nullcontext() if self._called else _compiling():
                self._called = True
                return self._mapped(*arguments)
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self._compiled:
            self._compiled[shapes] = self.compile(*arguments)
        return self._compiled[shapes](*arguments)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Wraps a compilation: XLA splits an operation for the cores that the compiling thread may use, here a device's."""
    a_core_each = jax.default_backend() == 'cpu' and 1 < cores() <= jax.local_device_count()
    narrow = a_core_each and not switched_off(os.environ)
    allowed = os.sched_getaffinity(0) if narrow and hasattr(os, 'sched_setaffinity') else None
    if allowed:
        os.sched_setaffinity(0, {min(allowed)})
    try:
        with heap.compiling():
            yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


class DataParallel:
    """All devices as one axis of data parallelism.

    A per-device function `f(state, shared, batch)` becomes, lifted, one call over all devices of all processes:
    state and shared arrays are replicated, batches have a leading axis [local devices].
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = list(devices or jax.devices())
        self._mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,))
        self.replicated = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        self._sharded = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(AXIS))
        self.local_count = len([d for d in self.devices if d.process_index == jax.process_index()])

    def __len__(self) -> int:
        return len(self.devices)

    def lift(
        self,
        function: Callable,
        *,
        donate: bool = False,
        options: Options | None = None,
    ) -> Lifted:
        """jit-compiled and sharded: `function(state, shared, batch)` with `in_axes=(None, None, 0)`.

        Of `shared`, a dict, what is under 'parts' is no copy but has the axis of devices, as the batch has.

        What it returns must be the same on every device (reduced or gathered over AXIS); it comes back as
        ordinary replicated arrays without a device axis. `donate` gives the state's memory to the result.
        """
        mapped = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, {'columns': None, 'parts': 0, 'tables': None}, 0),
            out_axes=None,
            devices=self.devices,
            donate_argnums=(0,) if donate else (),
        )
        return Lifted(mapped, options)

    def put(self, batch: Tree) -> Tree:
        """Starts the transfer of host arrays [local devices, ...] to their devices; does not wait for it."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._sharded, leaf), batch)

    def replicate(self, tree: Tree) -> Tree:
        """A copy of every array on every device."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.replicated, leaf), tree)

    def parted(self, column: np.ndarray) -> np.ndarray:
        """This process's rows of a column of which every device keeps a part, [local devices, rows, ...]."""
        rows = -(-len(column) // len(self.devices))
        parts = np.zeros((self.local_count, rows, *column.shape[1:]), column.dtype)
        local = [number for number, device in enumerate(self.devices) if device.process_index == jax.process_index()]
        for part, number in zip(parts, local, strict=True):
            mine = column[number * rows : (number + 1) * rows]
            part[: len(mine)] = mine
        return parts

    def local_part(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of [steps, batch], as [local devices, steps, batch / devices].

        Raises:
          UsageError: if the batch does not divide over the devices.
        """
        steps, batch = rows.shape
        if batch % len(self.devices):
            raise UsageError(f'a batch of {batch} does not divide over {len(self.devices)} devices')
        parts = rows.reshape(steps, len(self.devices), -1).swapaxes(0, 1)
        return parts[[device.process_index == jax.process_index() for device in self.devices]]
