"""Four virtual devices for every test, the launch scripts, and what several tests need made once."""

import os

# Before jax starts.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import contextlib
import dataclasses
import fcntl
import io
import pathlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest
from absl import flags
from PIL import Image

from common import runtime
from lesion.datasets import HAM10000_CLASSES

flags.FLAGS.mark_as_parsed()

REPOSITORY = pathlib.Path(__file__).parents[1]
# The demo's config, made so small that a step takes milliseconds.
SMALL = (
    '--config=lesion/configs/demo.py',
    '--config.dataset.image_size=(16, 16)',
    '--config.model.widths=(8,)',
    '--config.model.dense=(8,)',
    '--config.batch_size=16',
    '--config.duration=40steps',
    '--config.evaluate_every=10steps',
    '--config.log_every=5steps',
    '--config.schedule.warmup=2steps',
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a script ended: its exit status and what it said."""

    status: int
    stdout: str
    stderr: str


def run_script(name: str, *arguments: object) -> Ended:
    """Runs `python -m experiments.NAME` inside this process, to save the seconds that a fresh one takes to start."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, 'argv', [f'experiments/{name}.py', *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_module(f'experiments.{name}', run_name='__main__', alter_sys=True)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            for flag in list(flags.FLAGS):  # the script's own; libraries imported meanwhile keep theirs
                if flag.startswith('config.') or 'experiments' in flags.FLAGS.find_module_defining_flag(flag):
                    delattr(flags.FLAGS, flag)
            sys.modules.pop('config_config', None)  # the config file as ml_collections imported it
    return Ended(status, stdout.getvalue(), stderr.getvalue())


def start_script(name: str, *arguments: object, **options: object) -> subprocess.Popen:
    """Starts `python -m experiments.NAME` as a process of its own."""
    command = [sys.executable, '-m', f'experiments.{name}', *map(str, arguments)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=REPOSITORY, **pipes | options)


@pytest.fixture(scope='session')
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder that all workers of a parallel test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'shared'
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='session', autouse=True)
def compile_cache(shared: pathlib.Path) -> None:
    """What one test or process has compiled, the others read."""
    os.environ['TRIPTYCH_COMPILE_CACHE'] = str(shared / 'compiled')
    runtime.start()
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


@contextlib.contextmanager
def making(folder: pathlib.Path) -> Iterator[bool]:
    """True for the first worker that comes, while the others wait for it."""
    with open(folder.with_suffix('.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not folder.exists()


def draw_raw(folder: pathlib.Path, lesions: int = 8) -> pathlib.Path:
    """Small images of coloured noise in HAM10000's raw layout, `lesions` of each class, one or two images each."""
    random = np.random.default_rng(0)
    rows = []
    (folder / 'HAM10000_images_part_1').mkdir(parents=True)
    for number, (dx, lesion) in enumerate((dx, lesion) for dx in HAM10000_CLASSES for lesion in range(lesions)):
        for view in range(1 + lesion % 2):
            name = f'ISIC_{number:04d}{view}'
            colour = 20 + 30 * HAM10000_CLASSES.index(dx)
            size = random.integers(24, 40, 2)
            pixels = np.clip(random.normal((colour, 120, 250 - colour), 30, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / 'HAM10000_images_part_1' / f'{name}.jpg')
            facts = {'dx_type': 'histo', 'age': 50, 'sex': 'male', 'localization': 'back'}
            rows.append({'lesion_id': f'HAM_{number:04d}', 'image_id': name, 'dx': dx, **facts})
    pd.DataFrame(rows).to_csv(folder / 'HAM10000_metadata.csv', index=False)
    return folder


@pytest.fixture(scope='session')
def raw_dir(shared: pathlib.Path) -> pathlib.Path:
    """84 images in HAM10000's raw layout."""
    folder = shared / 'raw'
    with making(folder) as first:
        return draw_raw(folder) if first else folder


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run of the shrunken lesion demo, and the flags that make another one."""

    workdir: pathlib.Path
    data_dir: pathlib.Path
    raw_dir: pathlib.Path
    arguments: tuple[str, ...]


@pytest.fixture(scope='session')
def trained(shared: pathlib.Path, raw_dir: pathlib.Path) -> Trained:
    """Trained by the script, from raw files to the end; not to be changed."""
    workdir, data_dir = shared / 'run', shared / 'data'
    arguments = (*SMALL, f'--config.dataset.raw_dir={raw_dir}', f'--data_dir={data_dir}')
    with making(workdir) as first:
        if first:
            ended = run_script('train', *arguments, f'--workdir={workdir}')
            assert ended.status == 0, ended.stderr
    return Trained(workdir, data_dir, raw_dir, arguments)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def script() -> Callable[..., Ended]:
    return run_script
