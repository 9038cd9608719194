"""Floating-point operations of a program, counted in its matrix products and convolutions."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

# How often an equation runs the programs among its parameters, where that is more than once.
TIMES: Mapping[str, Callable[[dict[str, Any]], int]] = {
    'scan': lambda params: params['length'],
    'shard_map': lambda params: params['mesh'].size,
}


def flops(function: Callable, *args: Any) -> float:
    """Operations in the matrix products and convolutions of `function(*args)` over all devices.

    They are counted in the traced program, not in the compiled one: there XLA counts the body of a loop once, however
    often it runs, and a fast convolution would count for less than the model asks for. A padded position counts like
    any other; the zeros of a dilated input do not.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def has_own_convolution(function: Callable, *args: Any) -> bool:
    """Whether `function(*args)` holds a convolution whose gradients are XLA's own, too."""
    return _has_own_convolution(jax.make_jaxpr(function)(*args).jaxpr)


def _has_own_convolution(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == 'conv_general_dilated'
        or (
            not equation.primitive.name.startswith('custom_vjp')
            and any(map(_has_own_convolution, _programs(equation.params)))
        )
        for equation in jaxpr.eqns
    )


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, 'shape')]
        if name == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == 'conv_general_dilated':
            kernel = params['dimension_numbers'].rhs_spec  # output channels, input channels, positions
            taps = math.prod(shapes[1][axis] for axis in kernel[1:]) / math.prod(params['lhs_dilation'])
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * taps
        elif name == 'pallas_call':  # a kernel says itself what it stands for
            total += params['cost_estimate'].flops
        else:
            inner = [_count(sub) for sub in _programs(params)]
            times = TIMES.get(name, lambda params: 1)(params)
            total += times * (max(inner) if name == 'cond' else sum(inner))
    return total


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            item = getattr(item, 'jaxpr', item)
            if hasattr(item, 'eqns'):
                yield item
