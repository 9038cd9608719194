"""What is known of a patient beside the image (age, sex, site), as categories that a model takes in."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from common.errors import DataError
from common.types import Array

type Vocabulary = Mapping[str, Sequence[str]]

FIELDS = ('age', 'sex', 'localization')
YEARS = 10  # in an age band
_UNKNOWN = ('', 'unknown')  # as HAM10000 has it beside blanks


def fit_vocabulary(records: pd.DataFrame) -> dict[str, list[str]]:
    """The known categories of each field, sorted; `records` are those of the training split.

    Raises:
      DataError: where nothing is known of any patient.
    """
    vocabulary = {field: sorted(set(_categories(records, field)) - set(_UNKNOWN)) for field in FIELDS}
    if not any(vocabulary.values()):
        raise DataError(
            f'config.model.metadata is on, but the data set says nothing of {", ".join(FIELDS)}: turn it off.'
        )
    return vocabulary


def encode(records: pd.DataFrame, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [examples, fields]: 1 for the first category of the vocabulary, ..., 0 where unknown or not in it."""
    codes = [pd.Index(vocabulary[field]).get_indexer(_categories(records, field)) + 1 for field in FIELDS]
    return np.stack(codes, axis=1).astype(np.int32)


def one_hot(codes: Array, vocabulary: Vocabulary) -> jax.Array:
    """float32 [batch, categories] from codes [batch, fields]; for each field a one, or only zeros where unknown.

    Before a layer with a bias, the zeros are as good as a category of their own, and one that stands for no metadata.
    """
    columns = [jax.nn.one_hot(codes[:, i] - 1, len(vocabulary[field])) for i, field in enumerate(FIELDS)]
    return jnp.concatenate(columns, axis=-1)


def _categories(records: pd.DataFrame, field: str) -> list[str]:
    """One for each example, such as '50' (for 50 to 59 years), 'female', 'back'."""
    if field not in records:
        return [''] * len(records)
    values = records[field]
    if field == 'age':
        return ['' if pd.isna(age) else f'{int(age // YEARS * YEARS)}' for age in values]
    return values.astype(object).fillna('').astype(str).str.lower().to_list()
