"""The LSTM's kernels for NVIDIA GPUs, run in Python: the numbers of Flax's cells, or the loop where they fail."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import lstm, lstm_kernel
from common.nn.lstm import LSTM
from tests.test_lstm import assert_trees_close, compare_with_flax, drawn_params, normal, take, value_and_gradients


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Layers take the kernels as on a GPU; the list grows with every call of one."""
    made: list[str] = []

    def noted(name: str, kernel: Any) -> Any:
        def call(*arguments: Any) -> Any:
            made.append(name)
            return kernel(*arguments, interpret=True)

        return call

    for name in ('forward', 'backward'):
        monkeypatch.setattr(lstm_kernel, name, noted(name, getattr(lstm_kernel, name)))
    monkeypatch.setattr(lstm_kernel, '_has_kernels', lambda: True)
    lstm._kernel_agrees.cache_clear()
    yield made
    lstm._kernel_agrees.cache_clear()


@pytest.mark.parametrize('last_only', [False, True])
@pytest.mark.parametrize(
    ('many', 'shape'),  # from `many` rows on, programs take tiles of 16
    [
        (512, (1, 1, 3, 16, 1)),
        (16, (20, 2, 3, 64, 1)),
        (16, (16, 2, 3, 64, 1)),
        (16, (48, 7, 5, 32, 2)),
        (512, (48, 7, 5, 32, 2)),
    ],
)
def test_values_and_gradients_are_those_of_flax(
    many: int, shape: tuple[int, ...], last_only: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lstm_kernel, 'MANY', many)
    compare_with_flax(shape, jnp.float32, 1e-4, last_only)  # gradients are sums of up to 336 terms of order one
    asked, checked = 2 * shape[-1], 2 * len(lstm_kernel.CASES)
    assert len(calls) == checked + asked + shape[-1]  # the values alone are traced once more, for their shape


@pytest.mark.parametrize(('many', 'tiled'), [(96, True), (97, False)])
def test_members_and_directions_equal_each_alone(many, tiled, calls, monkeypatch) -> None:
    monkeypatch.setattr(lstm_kernel, 'MANY', many)  # the three members have 96 rows together
    programs = set()

    def noted(name: str, program: Any, rows: int, *rest: Any) -> Any:
        programs.add((name, rows >= many))
        return run(name, program, rows, *rest)

    run = lstm_kernel._over_rows
    monkeypatch.setattr(lstm_kernel, '_over_rows', noted)
    lstm._kernel_agrees()
    programs.clear()
    model, x = LSTM(16, num_layers=2, bidirectional=True), normal(0, (3, 32, 5, 4))
    params, weights = drawn_params(model, x[0], members=(3,)), normal(1, (3, 32, 5, 32))
    together = value_and_gradients(jax.vmap(model.apply), params, x, weights)
    alone = {('lstm_forward', False), ('lstm_backward', False)}  # as each is traced first
    assert programs == (alone | {('lstm_forward', True), ('lstm_backward', True)} if tiled else alone)
    monkeypatch.setattr(lstm_kernel, '_has_kernels', lambda: False)
    del calls[:]
    for member in range(3):
        alone = value_and_gradients(model.apply, *(take(member, tree) for tree in (params, x, weights)))
        assert_trees_close(take(member, together), alone, rtol=1e-4, atol=1e-4)
    assert not calls


def test_kernels_run_inside_pmap_and_scan_as_in_a_training(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstm_kernel, 'MANY', 32)
    model, x = LSTM(16), normal(0, (2, 16, 3, 4))
    params, weights = drawn_params(model, x[0], members=(2,)), normal(1, (2, 16, 3, 16))

    def twice(params: Any, x: jax.Array, weights: jax.Array) -> Any:
        run = partial(value_and_gradients, jax.vmap(model.apply))
        return jax.lax.scan(lambda carry, _: (carry, run(params, x, weights)), 0, length=2)[1]

    mapped = jax.pmap(twice, axis_name='data')(*jax.tree.map(lambda leaf: leaf[None], (params, x, weights)))
    assert calls
    monkeypatch.setattr(lstm_kernel, '_has_kernels', lambda: False)
    expected = value_and_gradients(jax.vmap(model.apply), params, x, weights)
    for step in range(2):
        assert_trees_close(jax.tree.map(lambda leaf, at=step: leaf[0, at], mapped), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('hidden', 'dtype', 'expected'),
    [
        (64, jnp.float32, True),
        (16, jnp.float32, True),
        (48, jnp.float32, False),
        (8, jnp.float32, False),
        (128, jnp.float32, False),
        (64, jnp.bfloat16, False),
        (64, jnp.float64, False),
    ],
)
def test_layers_that_do_not_fit_take_the_loop(hidden, dtype, expected, monkeypatch) -> None:
    monkeypatch.setattr(lstm_kernel, '_has_kernels', lambda: True)
    assert lstm_kernel.fits(hidden, dtype) == expected


@pytest.mark.parametrize(
    ('device', 'expected'),
    [
        ({'compute_capability': '9.0'}, True),
        ({'compute_capability': '12.0'}, True),
        ({'compute_capability': '7.5'}, False),
        ({'compute_capability': 'gfx942'}, False),
        ({}, False),
    ],
)
def test_kernels_are_for_nvidia_gpus_since_ampere(device, expected, monkeypatch) -> None:
    monkeypatch.setattr(jax, 'devices', lambda: [SimpleNamespace(**device)])
    assert lstm_kernel._has_kernels.__wrapped__() == expected


def broken(*arguments: Any) -> Any:
    raise AttributeError('no such function in this release')


def wrong(factor: float, kernel: Any, *arguments: Any, rows: int = 1) -> Any:
    results = kernel(*arguments)
    return jax.tree.map(lambda result: factor * result, results) if arguments[0].shape[1] >= rows else results


@pytest.mark.parametrize(
    ('name', 'fault', 'words'),
    [
        ('forward', lambda kernel: broken, r'does not run \(AttributeError: no such function'),
        ('forward', lambda kernel: partial(wrong, 1.1, kernel), 'gives other numbers than the loop'),
        ('backward', lambda kernel: partial(wrong, 1.1, kernel), 'gives other numbers than the loop'),
        ('backward', lambda kernel: partial(wrong, np.nan, kernel), 'gives other numbers than the loop'),
        ('forward', lambda kernel: partial(wrong, np.nan, kernel, rows=512), 'gives other numbers than the loop'),
    ],
)
def test_a_kernel_that_fails_its_check_gives_way_to_the_loop(name, fault, words, calls, monkeypatch) -> None:
    monkeypatch.setattr(lstm_kernel, name, fault(getattr(lstm_kernel, name)))
    with pytest.warns(UserWarning, match=words):
        compare_with_flax((16, 3, 2, 16, 2), jnp.float32, 5e-5)
    assert len(calls) <= 2 * len(lstm_kernel.CASES)  # of the check


def test_a_tile_that_the_batch_does_not_fill_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in Python, what lies beyond an array is no fault."""
    monkeypatch.setattr(lstm_kernel, 'MANY', 16)
    program = jax.make_jaxpr(lstm_kernel.forward)(jnp.zeros((3, 20, 64)), jnp.zeros((16, 64)))
    assert 'f32[3,32,64]' in str(program)


@pytest.mark.parametrize(('members', 'batch'), [(1, 7), (1, 520), (32, 16), (59, 20)])
def test_the_kernels_become_programs_for_a_gpu(members: int, batch: int) -> None:
    """As far as this goes without one: through Pallas and Triton's dialect."""
    device = jax.sharding.AbstractDevice('NVIDIA H200', 132, 'gpu')
    projected, kernel = jnp.zeros((members, 5, batch, 256)), jnp.zeros((members, 64, 256))

    def both(projected: jax.Array, kernel: jax.Array) -> Any:
        hidden, factors = lstm_kernel.forward(projected, kernel)
        return lstm_kernel.backward(hidden, factors, kernel.T)

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        program = jax.jit(jax.vmap(both)).trace(projected, kernel).lower(lowering_platforms=('cuda',)).as_text()
    assert program.count('triton') >= 2
    assert np.all([name in program for name in ('lstm_forward', 'lstm_backward')])


def test_products_of_the_kernels_are_as_precise_as_jax_is_told() -> None:
    a = jnp.ones((16, 16))
    assert 'HIGHEST' not in str(jax.make_jaxpr(lambda a: lstm_kernel._dot(a, a))(a))
    with jax.default_matmul_precision('highest'):
        assert 'HIGHEST' in str(jax.make_jaxpr(lambda a: lstm_kernel._dot(a, a))(a))
