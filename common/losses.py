"""Losses of classifiers: cross-entropy, and what training makes of it against imbalance and false certainty."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common.config import choose, require
from common.errors import DataError, UsageError
from common.types import Array, Logits

TINY = float(jnp.finfo(jnp.float32).tiny)  # a root of it has a finite slope, one of 0 has not


def classification_loss() -> ConfigDict:
    """The defaults of `config.loss`."""
    return ConfigDict(
        {
            'class_weights': 'none',
            'beta': 0.999,
            'logit_adjustment': 0.0,
            'focal_gamma': 0.0,
            'label_smoothing': 0.0,
        }
    ).lock()  # so that a misspelt key raises


def cross_entropy(logits: Logits, target: Array) -> Array:
    """float32 [batch], from logits and soft labels float32 [batch, classes]."""
    return -(target * jax.nn.log_softmax(logits)).sum(-1)


def training_loss(loss: ConfigDict, counts: Sequence[int]) -> Callable[[Logits, Array], Array]:
    """A function as `cross_entropy`, with the adjustment, weights, focus and smoothing of `config.loss`.

    `counts` are the training examples of every class.
    """
    require(
        {'loss': loss},
        {
            'loss.beta': (0 <= loss.beta < 1, 'from 0 to below 1'),
            'loss.focal_gamma': (loss.focal_gamma >= 0, 'at least 0'),
            'loss.label_smoothing': (0 <= loss.label_smoothing < 1, 'from 0 to below 1'),
        },
    )
    weights, adjustment = class_weights(loss, counts), logit_adjustment(loss, counts)

    def losses(logits: Logits, target: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(logits + adjustment)
        smoothed = (1.0 - loss.label_smoothing) * target + loss.label_smoothing / target.shape[-1]
        terms = -smoothed * log_probabilities
        if loss.focal_gamma:  # Lin et al. 2017, arXiv:1708.02002
            terms = terms * jnp.maximum(-jnp.expm1(log_probabilities), TINY) ** loss.focal_gamma
        return terms.sum(-1) * (target * weights).sum(-1)

    return losses


def class_weights(loss: ConfigDict, counts: Sequence[int]) -> np.ndarray:
    """float32 [classes], of mean one over the training examples, as `config.loss.class_weights` says.

    'none'; 'inverse', in inverse proportion to the class's frequency; 'effective', to its effective number of
    examples (1 - beta^n) / (1 - beta), Cui et al. 2019, arXiv:1901.05555.

    Raises:
      DataError: where a class has no training examples to weigh.
    """
    n = _counted(counts, 'class_weights to none' if loss.class_weights != 'none' else None)
    kinds: Mapping[str, Callable[[], np.ndarray]] = {
        'none': lambda: np.ones_like(n),
        'inverse': lambda: 1.0 / n,
        'effective': lambda: (1.0 - loss.beta) / (1.0 - loss.beta**n),
    }
    weights = choose(kinds, loss.class_weights, 'loss.class_weights')()
    return (weights * n.sum() / (weights * n).sum()).astype(np.float32)


def logit_adjustment(loss: ConfigDict, counts: Sequence[int]) -> np.ndarray:
    """float32 [classes], added to logits in training: `config.loss.logit_adjustment` times the log of class frequency.

    At 1.0 the logits learn what speaks for a class beside its frequency, which is best for balanced accuracy, and no
    example is repeated or weighed for it: Menon et al. 2021, arXiv:2007.07314. Smoothed labels would undo it: a share
    of every label goes to classes far rarer than that.

    Raises:
      DataError: where a class has no training examples.
      UsageError: where labels are smoothed as well.
    """
    if not loss.logit_adjustment:
        return np.zeros(len(counts), np.float32)
    if loss.label_smoothing:
        raise UsageError('config.loss.logit_adjustment and label_smoothing contradict each other: set one of them to 0')
    n = _counted(counts, 'logit_adjustment to 0')
    return (loss.logit_adjustment * np.log(n / n.sum())).astype(np.float32)


def _counted(counts: Sequence[int], remedy: str | None) -> np.ndarray:
    """The counts as float64; with a `remedy`, no class may be without examples."""
    if remedy and not all(counts):
        raise DataError(f'class number {int(np.argmin(counts))} has no training images: set config.loss.{remedy}')
    return np.array(counts, np.float64)
