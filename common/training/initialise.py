"""Weights to start from: another run's, a file's, or those of a package, matched by name to a model's own."""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from common.config import pairs
from common.errors import DataError, UsageError
from common.evaluation.restore import restore
from common.nn.pretrained import PACKAGED
from common.types import Tree

SHOWN = 8  # names on a line of the log
# Mean and deviation of the pixels 0..255 that packaged weights were trained on: tensorflow/tpu, efficientnet/lite.
NORMALISATIONS = {'imagenet': (127.0, 128.0)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Variables of another model, and what classes it was trained on, where that is known."""

    # by name, as 'params.backbone.stem.kernel'; with a leading axis [members] where `members` says so
    arrays: Mapping[str, Any]
    classes: Sequence[str] | None = None
    members: int | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """Which variables of the model were found in a source, which stay fresh, and what of the source is not used."""

    matched: Sequence[str]
    fresh: Sequence[str]
    unused: Sequence[str]

    def __str__(self) -> str:
        lines = [f'{len(self.matched)} of {len(self.matched) + len(self.fresh)} arrays']
        for kind, names in (('fresh', self.fresh), ('unused', self.unused)):
            more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
            lines.append(f'  {kind}: {", ".join(names[:SHOWN]) or "none"}{more}')
        return '\n'.join(lines)


def initialise(
    config: ConfigDict,
    variables: Tree,
    classes: Sequence[str] | None,
    head: Collection[str] = (),
    members: int | None = None,
) -> tuple[Tree, Match]:
    """`variables` with what `config.init_from` has of them, on the host, each cast to the variable's dtype.

    Args:
      config: `init_from` is a run's folder, a `.safetensors` file or the name of a packaged set of weights;
        `init_names` are pairs (regular expression, replacement) that make names there into names here, all applied in
        turn; a name made empty is not used.
      variables: `{'params': ..., 'batch_stats': ...}`, arrays or their shapes.
      classes: names of the model's, in their order; None where it has none.
      head: names of variables that stay fresh where the source is known to have learnt other classes.
      members: length of the leading axis of all variables, if they have one; each member gets the same weights, unless
        the source has as many.

    Raises:
      UserError: the source is not there or damaged, nothing in it matches, a shape differs, or a package's weights
        would see pixels of another scale than they were trained on.
    """
    scale = NORMALISATIONS.get(config.init_from)
    if scale and tuple(config.dataset.get('normalisation', scale)) != scale:
        raise UsageError(
            f'config.dataset.normalisation is {config.dataset.normalisation}; the weights of '
            f'config.init_from={config.init_from} were trained on pixels scaled by {scale}: set it to that'
        )
    source = _source(config.init_from)
    if source.members and source.members != members:
        raise UsageError(
            f'config.init_from: {config.init_from} holds {source.members} models and this run {members or 1}; give the '
            'run of a single model, or train as many (config.ensemble)'
        )
    there, unused = _by_our_names(source.arrays, config)
    stacked = (members,) if members and not source.members else ()
    others = source.classes and classes and list(source.classes) != list(classes)
    matched, fresh = [], []

    def take(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        theirs, array = there.pop(name, ('', None))
        if array is None:
            fresh.append(name)
            return leaf
        if others and name in head:
            fresh.append(name)
            unused.append(theirs)
            return leaf
        if stacked + array.shape == leaf.shape:
            matched.append(name)
            return np.broadcast_to(np.asarray(array, leaf.dtype), leaf.shape)
        raise UsageError(
            f'config.init_from: {theirs} is {list(array.shape)} in {config.init_from}, and {name} '
            f'{list(leaf.shape[len(stacked) :])} in this model. To leave it fresh, add '
            f"('^{re.escape(theirs)}$', '') to config.init_names."
        )

    result = jax.tree.map_with_path(take, variables)
    unused += [name for name, _ in there.values()]
    if not any(name.startswith('params.') for name in matched):
        raise UsageError(
            f'config.init_from: no parameter of {config.init_from} has a name of this model. There: '
            f'{", ".join(unused[:SHOWN])}; here: {", ".join(fresh[:SHOWN])}. config.init_names can map them.'
        )
    return result, Match(matched, fresh, sorted(unused))


def _by_our_names(arrays: Mapping[str, Any], config: ConfigDict) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The source's (name, array) by the name that `config.init_names` makes of it, and the names that it leaves out."""
    there: dict[str, tuple[str, Any]] = {}
    unused = []
    for name, array in arrays.items():
        renamed = _renamed(name, pairs(config.init_names, 'init_names'))
        if renamed in there:
            raise UsageError(f'config.init_names makes both {there[renamed][0]} and {name} into {renamed}')
        if renamed:
            there[renamed] = (name, array)
        else:
            unused.append(name)
    return there, unused


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        try:
            name = re.sub(pattern, replacement, name)
        except re.error as error:
            raise UsageError(f'config.init_names: {pattern!r}, {replacement!r}: {error}') from error
    return name


def _source(init_from: str) -> Source:
    if init_from in PACKAGED:
        arrays = PACKAGED[init_from]()
        return Source(arrays, [f'{init_from} {number}' for number in range(len(arrays['params.classifier.bias']))])
    path = pathlib.Path(init_from).expanduser()
    if path.suffix == '.safetensors':
        try:
            return Source(load_file(path))
        except FileNotFoundError:
            raise DataError(f'config.init_from: there is no file {path}') from None
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f'config.init_from: {path} cannot be read ({error})') from error
    if not path.is_dir():
        raise UsageError(
            f'config.init_from is {init_from!r}; it may be the folder of a run, a .safetensors file, or '
            f'{", ".join(PACKAGED)}'
        )
    run = restore(path)
    arrays = {
        jax.tree_util.keystr(name, simple=True, separator='.'): leaf
        for name, leaf in jax.tree.leaves_with_path(run.variables)
    }
    return Source(arrays, run.record.info.get('class_names'), run.members.count)
