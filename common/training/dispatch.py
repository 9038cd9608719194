"""How many steps make up one dispatch: several where steps are so short that starting each would cost as much.

Starting a program takes about a millisecond on the host, whatever it computes. The number follows from the model's
arithmetic alone, never from a timing, so that a run that goes on cuts its steps as before.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend

MOST = 50
# Floating-point operations of a step that is too short, a few milliseconds' worth, and of the dispatch to fill.
SHORT = {'cpu': 1e9, 'accelerator': 1e11}
FILLED = {'cpu': 1e10, 'accelerator': 1e12}


def steps_per_dispatch(flops: float, platform: str, boundary: int) -> int:
    """What `config.steps_per_dispatch = 0` means.

    Args:
      flops: of one step.
      platform: jax's name of the backend.
      boundary: steps between evaluations, which no dispatch crosses. A divisor is preferred: what is left over at a
        boundary takes single steps, which is one more program to compile.
    """
    kind = 'cpu' if platform == 'cpu' else 'accelerator'
    if flops >= SHORT[kind]:
        return 1
    most = max(min(int(FILLED[kind] / max(flops, 1.0)), MOST, boundary), 1)
    divisor = max(size for size in range(1, most + 1) if boundary % size == 0)
    return divisor if 2 * divisor > most else most


def training_flops(apply: Callable[..., Any], *shapes: Any) -> float:
    """Of a training step whose forward pass is `apply`: its products and convolutions, three times."""
    return 3.0 * _flops(jax.make_jaxpr(apply)(*shapes).jaxpr)


def _flops(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == 'dot_general':
        left, (contracted, _) = equation.invars[0].aval.shape, parameters['dimension_numbers'][0]
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters['dimension_numbers'].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    inner = [_flops(part) for part in _parts(parameters)]
    if name == 'cond':  # of the formulations for several platforms, the plain one has the most
        return max(inner)
    return sum(inner) * parameters.get('length', 1)  # a scan's


def _parts(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jax.extend.core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jax.extend.core.Jaxpr):
                yield item
