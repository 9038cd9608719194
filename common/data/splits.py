"""Splits by whole groups, stratified by class: a pure function of labels, groups, fractions and seed."""

import collections
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.errors import DataError, UsageError

SPLITS = ('train', 'validation', 'test')  # each further from training than the one before

ATTEMPTS = 100  # orders in which mixed groups are dealt

type Filled = dict[str, dict[str, int]]  # how many images of each label every split has


def grouped_stratified_split(
    labels: Sequence[str], groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> np.ndarray:
    """Gives every group to one split, so that each class is divided as `fractions` says.

    A group with several labels counts for its most frequent one (of equally frequent ones, for the one that is rarer in
    the whole); where that leaves a class with too few groups, as where every person shows every expression, groups are
    dealt by all their labels at once (`_deal_mixed`). Within a class, groups go from the largest to the smallest, those
    of one size in an order drawn from `seed` and their names, each to the split that is furthest behind its share of
    the images (Sainte-Lague's rule); so group sizes are spread over the splits too. The order of the rows has no
    influence.

    Args:
      labels: [examples].
      groups: [examples].
      fractions: the share of each split, adding up to 1.
      seed: draws another split.

    Returns:
      str [examples], names of splits.

    Raises:
      DataError: where a class has fewer groups than there are splits.
      UsageError: where the fractions do not make sense.
    """
    _check_fractions(fractions)
    class_sizes = collections.Counter(labels)
    members: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1

    groups_of: dict[str, list[str]] = {label: [] for label in sorted(class_sizes)}
    for group, counts in members.items():
        groups_of[min(counts, key=lambda label: (-counts[label], class_sizes[label], label))].append(group)

    appearances = collections.Counter(label for counts in members.values() for label in counts)
    too_few = any(len(names) < len(fractions) for names in groups_of.values())
    if too_few and min(appearances.values()) >= len(fractions):  # as members of groups there are enough of every class
        dealt = _deal_mixed(members, fractions, seed)
        return np.asarray([dealt[group] for group in groups])
    split_of: dict[str, str] = {}
    for label, names in groups_of.items():
        if len(names) < len(fractions):
            raise DataError(
                f'Class {label!r} has {len(names)} group(s) of images (an image of its own counts as one), fewer '
                f'than the {len(fractions)} splits {", ".join(fractions)}. Add images, or leave the class out.'
            )
        sizes = {name: members[name].total() for name in names}
        names.sort(key=lambda name: (-sizes[name], _draw(seed, name)))
        split_of |= _deal(names, sizes, fractions)
    return np.asarray([split_of[group] for group in groups])


def _deal(names: Sequence[str], sizes: Mapping[str, int], fractions: Mapping[str, float]) -> Mapping[str, str]:
    """Assigns the groups of one class, in the order given, and leaves no split empty."""
    filled = dict.fromkeys(fractions, 0)
    assigned = {}
    for position, name in enumerate(names):
        empty = [split for split in filled if not filled[split]]
        open_splits = empty if len(names) - position <= len(empty) else list(filled)
        split = min(open_splits, key=lambda split: (filled[split] + sizes[name] / 2) / fractions[split])
        filled[split] += sizes[name]
        assigned[name] = split
    return assigned


def _deal_mixed(
    members: Mapping[str, collections.Counter[str]], fractions: Mapping[str, float], seed: int
) -> Mapping[str, str]:
    """Assigns groups of several labels, each to the split that lacks them most; of many orders the evenest is taken.

    Only where each order leaves a class out of a split are groups kept for the splits that lack one of their labels.

    Raises:
      DataError: where a class is missing from a split in all of them.
    """
    sizes: collections.Counter[str] = collections.Counter()
    for counts in members.values():
        sizes.update(counts)

    def order(attempt: int) -> list[str]:
        return sorted(members, key=lambda name: (-members[name].total(), _draw(seed * ATTEMPTS + attempt, name)))

    def unevenness(filled: Filled) -> float:
        if _missing(filled):
            return math.inf
        return sum(abs(filled[split][label] / sizes[label] - fractions[split]) for split in filled for label in sizes)

    for keeping in (False, True):
        dealings = [_deal_in_order(order(attempt), members, sizes, fractions, keeping) for attempt in range(ATTEMPTS)]
        dealt, filled = min(dealings, key=lambda dealing: unevenness(dealing[1]))
        if not _missing(filled):
            return dealt
    label, split = _missing(filled)[0]
    groups = sum(label in counts for counts in members.values())
    raise DataError(
        f'Class {label!r} has {groups} group(s) of images (an image of its own counts as one), of which none is '
        f'left for {split}. Add images, or leave the class out.'
    )


def _deal_in_order(
    names: Sequence[str],
    members: Mapping[str, collections.Counter[str]],
    sizes: Mapping[str, int],
    fractions: Mapping[str, float],
    keeping: bool,
) -> tuple[dict[str, str], Filled]:
    """Assigns each group to the split that lacks its labels most; and how many of each label every split has then.

    With `keeping`, the last groups that show a label are for the splits that have none of it.
    """
    left = collections.Counter(label for counts in members.values() for label in counts)
    filled: Filled = {split: dict.fromkeys(sizes, 0) for split in fractions}
    dealt = {}
    for name in names:
        lacking = {label: [split for split in filled if not filled[split][label]] for label in members[name]}
        kept = [
            split for label, splits in lacking.items() if keeping and left[label] <= len(splits) for split in splits
        ]
        split = min(kept or filled, key=lambda split: _fullness(filled[split], members[name], sizes, fractions[split]))
        dealt[name] = split
        for label, count in members[name].items():
            filled[split][label] += count
            left[label] -= 1
    return dealt, filled


def _missing(filled: Filled) -> list[tuple[str, str]]:
    """Labels, each with a split that has none of it."""
    return [(label, split) for split, counts in filled.items() for label, count in counts.items() if not count]


def _fullness(filled: Mapping[str, int], counts: Mapping[str, int], sizes: Mapping[str, int], fraction: float) -> float:
    """How far a split has its share of what a group holds, by Sainte-Lague's rule for each label."""
    return sum(count / sizes[label] * (filled[label] + count / 2) / fraction for label, count in counts.items())


def merge_groups(groups: Sequence[str], keys: Sequence[str]) -> np.ndarray:
    """Joins groups that share a key, directly or through others; str [examples], each the first name of its union."""
    group_codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    key_codes, distinct = pd.factorize(np.asarray(keys, dtype=object))
    nodes = len(names) + len(distinct)
    edges = (np.ones(len(groups)), (group_codes, len(names) + key_codes))
    _, component = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
    _, first = np.unique(component[: len(names)], return_index=True)  # names are sorted: the first is the least
    return names[first[component[group_codes]]]


def complete_splits(table: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.Series:
    """Draws what the publisher has not split.

    Where all examples have a split, that stands, and only splits that nobody has (often validation) are drawn, from
    the training examples and in proportion to `fractions`. Whatever is drawn keeps groups and identical
    content together; where some of them have a split, the others go there too, of several to the one that is furthest
    from training.

    Args:
      table: one row per example with `label`, `group`, `digest` (equal for equal content) and `split` (or None).
      fractions: the share of 'train' and of the other splits, adding up to 1.
      seed: draws another split.

    Returns:
      str [examples], with the index of `table`.

    Raises:
      DataError: as `grouped_stratified_split`.
    """
    _check_fractions(fractions)
    split = table.split.copy()
    pool = split.isna()
    if not pool.any():
        left = {name: share for name, share in fractions.items() if name == 'train' or name not in set(split)}
        fractions = {name: share / sum(left.values()) for name, share in left.items()}
        pool = split == 'train'
    elif not pool.all():
        groups = pd.Series(merge_groups(table.group.to_list(), table.digest.to_list()), table.index)
        places = split[~pool].map(SPLITS.index).groupby(groups[~pool]).max()
        split[pool] = groups[pool].map(places).map(dict(enumerate(SPLITS)))
        pool = split.isna()
        if not pool.any():
            return split
    drawn = table[pool]
    groups = merge_groups(drawn.group.to_list(), drawn.digest.to_list())
    split[pool] = grouped_stratified_split(drawn.label.to_list(), groups.tolist(), fractions, seed)
    return split


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if any(fraction <= 0 for fraction in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UsageError(f'config.dataset.split_fractions must be above 0 and add up to 1, not {dict(fractions)}.')


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f'{seed}:{name}'.encode()).digest()
