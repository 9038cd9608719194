"""Fast convolutions are checked on the machine at hand, kept in the run's record, and never leave the safe region."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
from jax import lax

from common.config import load_run
from common.nn import conv, self_check
from common.nn.conv import WAYS, convolution
from common.nn.convolutions import bfloat16, choices
from common.nn.convolutions.choices import Layer, recorded, settle
from common.nn.convolutions.direct import DIMENSIONS
from common.training.start import begin
from tests.test_steps import lesion_training

LAYER = Layer((2, 8, 8, 4), (3, 3, 4, 4), 'float32')
DEPTHWISE = Layer((3, 9, 8, 6), (5, 5, 1, 6), 'float32', 2)
STEM = Layer((3, 9, 8, 3), (3, 3, 3, 5), 'float32', stride=2)
POINTWISE = Layer((3, 9, 8, 6), (1, 1, 6, 5), 'float32')


@pytest.fixture(autouse=True)
def nothing_settled(monkeypatch):
    monkeypatch.setattr(choices, '_settled', {})


def traced(x_shape, w_shape, dtype=jnp.float32, path='auto', **options):
    """The layers that a convolution leaves in the record."""
    x, w = jax.ShapeDtypeStruct(x_shape, dtype), jax.ShapeDtypeStruct(w_shape, dtype)
    options = {'window_strides': (1, 1), 'padding': 'SAME', 'dimension_numbers': DIMENSIONS} | options
    with recorded() as layers:
        jax.eval_shape(lambda x, w: convolution(path)(x, w, **options), x, w)
    return layers


def test_every_layer_with_a_choice_is_recorded():
    assert traced((64, 24, 24, 128), (3, 3, 128, 128)) == {
        Layer((64, 24, 24, 128), (3, 3, 128, 128), 'float32'): 'winograd'
    }
    assert traced(LAYER.x_shape, LAYER.w_shape) == {LAYER: 'products'}
    assert traced(LAYER.x_shape, LAYER.w_shape, path='winograd') == {}
    assert traced(LAYER.x_shape, LAYER.w_shape, window_strides=(2, 2)) == {}
    assert str(LAYER) == '2x8x8x4 * 3x3x4x4 float32'
    assert traced(POINTWISE.x_shape, POINTWISE.w_shape) == {POINTWISE: 'pointwise'}
    options = {'window_strides': (2, 2), 'feature_group_count': 6}
    assert traced(DEPTHWISE.x_shape, DEPTHWISE.w_shape, **options) == {DEPTHWISE: 'depthwise'}
    assert str(DEPTHWISE) == '3x9x8x6 * 5x5x1x6 / 2 float32'
    settle({str(DEPTHWISE): 'direct'})
    assert traced(DEPTHWISE.x_shape, DEPTHWISE.w_shape, **options) == {DEPTHWISE: 'direct'}


def test_a_settled_way_is_taken():
    settle({str(LAYER): 'winograd'})
    assert traced(LAYER.x_shape, LAYER.w_shape) == {LAYER: 'winograd'}


@pytest.mark.parametrize('way', sorted(WAYS))
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_way_passes_its_check(way, dtype):
    channels = 3 if way.startswith('few_channels') else 16
    layer = Layer((3, 9, 10, channels), (3, 3, channels, 8), dtype)
    assert 0 < self_check.distance(layer, way) < self_check.TOLERANCE[dtype] / 3


@pytest.mark.parametrize(
    ('layer', 'way', 'most'),
    [
        (Layer((4, 20, 20, 14), (5, 5, 1, 14), 'bfloat16'), 'depthwise', 2.2e-3),
        (Layer((64, 20, 20, 16), (1, 1, 16, 5), 'bfloat16'), 'pointwise', 2.2e-3),
        (Layer((3, 9, 8, 3), (3, 3, 3, 5), 'bfloat16'), 'few_channels', 4e-3),
    ],
)
def test_sums_of_narrow_numbers_are_rounded_once(layer, way, most):
    assert self_check.distance(layer, way) < most


@pytest.mark.parametrize(('layer', 'way'), [(DEPTHWISE, 'depthwise'), (POINTWISE, 'pointwise'), (STEM, 'few_channels')])
@pytest.mark.parametrize('error', [1.0, 1.2])
def test_ways_of_other_kinds_are_checked_too(monkeypatch, tmp_path, layer, way, error):
    right = conv.OWN[way]
    monkeypatch.setitem(conv.OWN, way, lambda x, w, strides: right(x, w, strides) * error)
    if error == 1.0:
        assert 0 < self_check.distance(layer, way) < self_check.TOLERANCE['float32'] / 3
        assert self_check.check({layer: way}, tmp_path) == {str(layer): way}
    else:
        with pytest.warns(UserWarning, match='gives other numbers'):
            assert self_check.check({layer: way}, tmp_path) == {str(layer): 'direct'}


def test_the_last_channel_of_a_depthwise_convolution_is_among_those_compared(monkeypatch):
    right = conv.OWN['depthwise']
    monkeypatch.setitem(conv.OWN, 'depthwise', lambda x, w, strides: right(x, w, strides).at[..., -1].multiply(1.2))
    assert self_check.distance(DEPTHWISE, 'depthwise') > self_check.TOLERANCE['float32']


@pytest.mark.parametrize('wrong', ['forward', 'input_gradient', 'weight_gradient'])
@pytest.mark.parametrize('error', [1.01, jnp.nan])
def test_a_way_with_other_numbers_falls_back_with_a_warning(monkeypatch, tmp_path, wrong, error):
    right = getattr(WAYS['winograd'], wrong)
    broken = WAYS['winograd']._replace(**{wrong: lambda a, b: right(a, b) * error})
    monkeypatch.setitem(conv.WAYS, 'winograd', broken)
    with pytest.warns(UserWarning, match='2x8x8x4 \\* 3x3x4x4 float32 winograd gives other numbers'):
        assert self_check.check({LAYER: 'winograd'}, tmp_path) == {str(LAYER): 'direct'}
    assert traced(LAYER.x_shape, LAYER.w_shape) == {LAYER: 'direct'}  # settled
    monkeypatch.undo()
    with pytest.warns(UserWarning, match='gives other numbers'):  # what was found is kept
        assert self_check.check({LAYER: 'winograd'}, tmp_path) == {str(LAYER): 'direct'}


def test_in_bfloat16_an_error_of_a_tenth_is_noticed(monkeypatch, tmp_path):
    right, layer = WAYS['winograd'].forward, LAYER._replace(dtype='bfloat16')
    monkeypatch.setitem(conv.WAYS, 'winograd', WAYS['winograd']._replace(forward=lambda x, w: 1.1 * right(x, w)))
    with pytest.warns(UserWarning, match='gives other numbers'):
        assert self_check.check({layer: 'winograd'}, tmp_path) == {str(layer): 'direct'}


def test_what_is_checked_is_compiled_as_in_training(monkeypatch):
    given = []
    monkeypatch.setattr(bfloat16, 'compiler_options', lambda program: given.append(program) or {})
    self_check.distance(LAYER, 'winograd')
    assert len(given) == 1


@pytest.mark.parametrize(('precision', 'path'), [('bfloat16', 'direct'), ('float32', 'auto'), ('bfloat16', 'auto')])
def test_options_are_for_bfloat16_on_the_paths_that_take_it(monkeypatch, precision, path):
    monkeypatch.setattr(bfloat16, 'speed', lambda: 2)
    expected = bfloat16.compiler_options if (precision, path) == ('bfloat16', 'auto') else None
    assert bfloat16.options(precision, path) is expected


def test_a_cache_that_is_damaged_or_cannot_be_written_stops_nothing(tmp_path):
    assert self_check.check({LAYER: 'winograd'}, tmp_path) == {str(LAYER): 'winograd'}
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text()[:9])
    assert self_check.check({LAYER: 'winograd'}, tmp_path) == {str(LAYER): 'winograd'}
    assert list(json.loads(file.read_text())) == [f'{LAYER} winograd']
    assert self_check.check({LAYER: 'winograd'}, file) == {str(LAYER): 'winograd'}  # no folder


def test_what_was_found_is_not_measured_again(monkeypatch, tmp_path):
    layers = {LAYER: 'winograd', Layer((1, 2, 2, 1), (3, 3, 1, 1), 'float32'): 'direct'}
    assert self_check.check(layers, tmp_path) == {str(layer): way for layer, way in layers.items()}
    [file] = tmp_path.iterdir()
    assert list(json.loads(file.read_text())) == [f'{LAYER} winograd']
    monkeypatch.setattr(self_check, 'distance', None)
    self_check.check(layers, tmp_path)
    (tmp_path / 'conv.py').write_text('another source')
    for place, name, other in (
        (self_check, 'processor', lambda: {'model': 'another'}),
        (jaxlib.version, '__version__', 'another'),
        (conv, '__file__', str(tmp_path / 'conv.py')),
    ):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(place, name, other)
            with pytest.raises(TypeError):
                self_check.check(layers, tmp_path)
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_prefer_vector_width=128')  # makes another program
    with pytest.raises(TypeError):
        self_check.check(layers, tmp_path)


class Network(nn.Module):
    """Everything that the region leaves out, beside what it holds."""

    convolve: object

    @nn.compact
    def __call__(self, x):
        conv = lambda *args, **options: nn.Conv(*args, **options, dtype=x.dtype, conv_general_dilated=self.convolve)  # noqa: E731
        x = conv(16, (3, 3))(x)
        x = conv(16, (3, 3))(x)
        x = conv(16, (3, 3), strides=2)(x)
        x = conv(16, (3, 3), feature_group_count=16)(x)
        x = conv(16, (1, 1))(x)
        return nn.Dense(3, dtype=x.dtype)(x.mean((1, 2)))


def step_of(convolve):
    model = Network(convolve)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9, 10, 3)), jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda v, x: (model.apply(v, x).astype(jnp.float32) ** 2).sum()))
    return step, variables, x


@pytest.mark.parametrize(
    ('features', 'speed'), [('avx2 avx512f', 0), ('avx512f avx512_bf16', 2), ('avx512_bf16 amx_bf16', 8), ('', 0)]
)
def test_the_speed_of_bfloat16_is_that_of_the_processors_instructions(monkeypatch, features, speed):
    monkeypatch.setattr(bfloat16, 'processor', lambda: {'model': 'any', 'features': features})
    monkeypatch.setattr(bfloat16, '_KNOWN_RIGHT', jax.__version_info__[:2])
    assert bfloat16.speed() == speed
    monkeypatch.setattr(bfloat16, '_KNOWN_RIGHT', (0, 0))  # a release for which the region is not known
    assert bfloat16.speed() == 0


def test_products_in_bfloat16_keep_to_the_region(monkeypatch):
    monkeypatch.setattr(bfloat16, 'speed', lambda: 8)
    step, variables, x = step_of(convolution())
    assert bfloat16.compiler_options(step.lower(variables, x)) == bfloat16._OPTIONS
    plain, *_ = step_of(convolution('direct'))  # its gradients are outside
    assert bfloat16.compiler_options(plain.lower(variables, x)) == {}
    flax, *_ = step_of(lax.conv_general_dilated)
    assert bfloat16.compiler_options(flax.lower(variables, x)) == {}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (variables, x))
    assert bfloat16.compiler_options(step.lower(*wide)) == {}


@pytest.mark.parametrize(
    'change',
    [
        {'window_strides': (2, 2)},
        {'padding': [(0, 1), (0, 1)]},
        {'padding': 'VALID'},
        {'padding': [(0, 0), (1, 1)]},
        {'lhs_dilation': (2, 2)},
        {'rhs_dilation': (2, 2)},
        {'feature_group_count': 4},
        {'dimension_numbers': ('NHWC', 'HWOI', 'NHWC')},
        {'dimension_numbers': ('NCHW', 'HWIO', 'NCHW')},
    ],
)
def test_a_program_with_any_other_convolution_gets_no_options(change):
    x, w = jnp.ones((4, 4, 4, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    options = {'window_strides': (1, 1), 'padding': [(1, 1), (1, 1)], 'dimension_numbers': DIMENSIONS}

    def run(x, w, **options):
        inside = lax.conv_general_dilated(jnp.ones_like(x), w, (1, 1), 'SAME', dimension_numbers=DIMENSIONS)
        return lax.conv_general_dilated(x, w[:, :, : 4 // options.get('feature_group_count', 1)], **options), inside

    assert bfloat16.compiler_options(jax.jit(lambda x, w: run(x, w, **options)).lower(x, w)) == bfloat16._OPTIONS
    assert bfloat16.compiler_options(jax.jit(lambda x, w: run(x, w, **options | change)).lower(x, w)) == {}


def test_with_the_options_a_network_has_the_gradients_of_plain_flax():
    if not bfloat16.speed():
        pytest.skip('where the processor has no such instructions, they are never given')
    step, variables, x = step_of(convolution())
    lowered = step.lower(variables, x)
    actual = lowered.compile(compiler_options=bfloat16.compiler_options(lowered))(variables, x)
    plain, *_ = step_of(lax.conv_general_dilated)
    expected = plain(variables, x.astype(jnp.float32))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(other)


def test_a_run_keeps_its_ways_and_says_where_it_goes_on_elsewhere(monkeypatch, tmp_path):
    data = tmp_path / 'data'
    training = lesion_training(monkeypatch, 2)
    begin(training, tmp_path, data)[2].close()
    environment = load_run(tmp_path).environment
    first, second = '8x12x12x3 * 3x3x3x6 float32', '8x6x6x6 * 3x3x6x8 float32'
    assert environment['convolutions'] == {first: 'few_channels', second: 'products'}

    content = json.loads((tmp_path / 'config.json').read_text())
    content['environment']['convolutions'][second] = 'winograd'  # as another release might have chosen
    content['environment']['processor'] = {'model': 'another', 'features': ''}
    content['environment']['xla_flags'] = '--as_it_was_begun'
    (tmp_path / 'config.json').write_text(json.dumps(content))
    again = lesion_training(monkeypatch, 2)
    _, _, checkpoints, how = begin(again, tmp_path, data)
    checkpoints.save(again.init_state(), {}, 1)
    checkpoints.close()
    assert again.convolutions[second] == 'winograd'
    *_, checkpoints, how = begin(again, tmp_path, data)
    checkpoints.close()
    assert how.endswith('begun with other processor and xla_flags (config.json), so the last digits may differ')
