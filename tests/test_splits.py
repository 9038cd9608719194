"""Splits: whole groups, class by class, the same for the same arguments."""

import collections

import numpy as np
import pandas as pd
import pytest

from common.data import splits
from common.data.splits import complete_splits, grouped_stratified_split, merge_groups
from common.errors import DataError, UsageError

FRACTIONS = {'train': 0.7, 'validation': 0.15, 'test': 0.15}


def lesions(seed: int = 0) -> tuple[list[str], list[str]]:
    """Imbalanced classes, groups of 1 to 5 images."""
    rng = np.random.default_rng(seed)
    labels, groups = [], []
    for label, count in {'nv': 300, 'mel': 60, 'df': 12}.items():
        for number in range(count):
            size = rng.integers(1, 6)
            labels += [label] * size
            groups += [f'{label}{number}'] * size
    return labels, groups


def test_no_group_is_in_two_splits():
    labels, groups = lesions()
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=3)
    splits_of = collections.defaultdict(set)
    for group, name in zip(groups, split, strict=True):
        splits_of[group].add(name)
    assert all(len(names) == 1 for names in splits_of.values())


def test_every_class_is_divided_as_the_fractions_say():
    labels, groups = lesions()
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=3)
    table = pd.crosstab(pd.Series(labels), split)
    for label, row in table.iterrows():
        for name, fraction in FRACTIONS.items():
            # A group has at most 5 images, so no split is further off than that.
            assert abs(row[name] - fraction * row.sum()) <= 5, (label, name)


def test_single_images_are_divided_to_the_image():
    labels = ['a'] * 100 + ['b'] * 40
    split = grouped_stratified_split(labels, [str(i) for i in range(140)], FRACTIONS, seed=0)
    assert collections.Counter(split[:100]) == {'train': 70, 'validation': 15, 'test': 15}
    assert collections.Counter(split[100:]) == {'train': 28, 'validation': 6, 'test': 6}


def test_large_groups_are_spread_over_the_splits():
    labels, groups = lesions()
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=3)
    sizes = pd.DataFrame({'group': groups, 'split': split}).value_counts().reset_index()
    means = sizes.groupby('split')['count'].mean()
    assert means.max() / means.min() < 1.15


def test_the_order_of_rows_has_no_influence():
    labels, groups = lesions()
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=3)
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = grouped_stratified_split([labels[i] for i in order], [groups[i] for i in order], FRACTIONS, seed=3)
    np.testing.assert_array_equal(shuffled, split[order])


def test_another_seed_is_another_split_of_the_same_size():
    labels, groups = lesions()
    one, other = (grouped_stratified_split(labels, groups, FRACTIONS, seed) for seed in (0, 1))
    assert np.mean(one != other) > 0.2
    assert abs(np.sum(one == 'train') - np.sum(other == 'train')) <= 15


def test_a_group_with_several_labels_counts_for_its_most_frequent_and_ties_for_the_rarer():
    # Three groups lean towards 'rare': were one of them counted for 'common', three splits could not be filled.
    labels = ['rare', 'rare', 'common', 'rare', 'common', 'rare'] + ['common'] * 10
    groups = ['g1', 'g1', 'g1', 'g2', 'g2', 'g3'] + [f'c{i}' for i in range(10)]
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=0)
    assert set(split[[0, 3, 5]]) == set(FRACTIONS)


def test_as_many_groups_as_splits_are_enough():
    split = grouped_stratified_split(['a', 'a', 'a', 'a'], ['1', '1', '2', '3'], FRACTIONS, seed=0)
    assert set(split) == set(FRACTIONS)


def test_a_class_with_too_few_groups_is_named():
    with pytest.raises(DataError, match=r"'df' has 2 group"):
        grouped_stratified_split(['nv'] * 9 + ['df'] * 3, [*'123456789', 'x', 'x', 'y'], FRACTIONS, seed=0)


@pytest.mark.parametrize('fractions', [{'train': 0.9, 'test': 0.2}, {'train': 1.0, 'test': 0.0}])
def test_fractions_must_make_sense(fractions):
    with pytest.raises(UsageError, match='split_fractions'):
        grouped_stratified_split(['a'] * 9, list('123456789'), fractions, seed=0)


def test_groups_that_share_a_key_are_merged_as_by_brute_force():
    rng = np.random.default_rng(0)
    groups = [f'g{i}' for i in rng.integers(0, 40, 120)]
    keys = [f'k{i}' for i in rng.integers(0, 100, 120)]
    expected = list(groups)
    for _ in range(120):  # repeat until nothing changes: the least name spreads over rows of one key or group
        for i in range(120):
            linked = [j for j in range(120) if keys[j] == keys[i] or groups[j] == groups[i]]
            for j in linked:
                expected[j] = min(expected[j] for j in linked)
    assert merge_groups(groups, keys).tolist() == expected
    assert len(set(expected)) > 1


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({'digest': columns['group'], **columns})


def test_missing_validation_is_taken_from_training_alone():
    official = ['train'] * 85 + ['test'] * 15
    examples = table(label=['a', 'b'] * 50, group=[str(i) for i in range(100)], split=official)
    split = complete_splits(examples, FRACTIONS, seed=0)
    assert (split[85:] == 'test').all()
    assert collections.Counter(split[:85]) == {'train': 70, 'validation': 15}


def test_what_belongs_to_an_official_split_by_group_or_content_goes_there_too():
    official = ['train', 'test', 'validation', 'train', None, None, None, None] + [None] * 60
    groups = ['a', 'b', 'c', 'b', 'a', 'b', 'd', 'e'] + [f'free {i}' for i in range(60)]
    examples = table(label=['x'] * 68, group=groups, split=official)
    examples.loc[6, 'digest'] = examples.loc[2, 'digest']
    split = complete_splits(examples, FRACTIONS, seed=0)
    assert split[:7].tolist() == ['train', 'test', 'validation', 'train', 'train', 'test', 'validation']
    assert set(split[8:]) == set(FRACTIONS)


def test_persons_who_show_every_class_are_dealt_by_all_of_them():
    persons, classes = [f'p{i:02}' for i in range(10)], list('abcdefg')
    rows = [(label, person) for person in persons for label in classes for _ in range(3)]
    labels, groups = map(list, zip(*rows, strict=True))
    split = grouped_stratified_split(labels, groups, FRACTIONS, seed=0)
    place = dict(zip(groups, split, strict=True))
    assert [place[group] for group in groups] == split.tolist()  # whole persons
    assert set(zip(labels, split, strict=True)) == {(label, name) for label in classes for name in FRACTIONS}
    assert collections.Counter(place.values())['train'] in (6, 7, 8)
    assert split.tolist() == grouped_stratified_split(labels, groups, FRACTIONS, seed=0).tolist()
    with pytest.raises(DataError, match=r"Class 'a' has 2 group.* fewer than the 3 splits"):  # of two persons
        grouped_stratified_split(labels[:42], groups[:42], FRACTIONS, seed=0)
    with pytest.raises(
        DataError, match=r'has 3 group.* none is left for '
    ):  # 3 and 4 would have to lie together, and apart
        grouped_stratified_split(list('abcabacbc'), list('111223344'), FRACTIONS, seed=0)


def test_of_many_orders_of_mixed_groups_the_evenest_is_taken_and_the_seed_draws_others(monkeypatch):
    random = np.random.default_rng(0)
    labels = random.choice(list('abc'), (20, 12)).tolist()  # twenty persons with as many images each
    for person in labels[:6]:
        person[0] = 'd'  # leads in no person, so that all are dealt by all their labels
    labels, groups = np.ravel(labels).tolist(), [f'p{i}' for i in range(20) for _ in range(12)]

    def uneven(split):
        shares = pd.crosstab(pd.Series(labels), split, normalize='index').reindex(columns=list(FRACTIONS), fill_value=0)
        return np.inf if (shares == 0).any(axis=None) else (shares - pd.Series(FRACTIONS)).abs().to_numpy().sum()

    taken, other = (grouped_stratified_split(labels, groups, FRACTIONS, seed) for seed in (0, 1))
    assert (taken != other).any()
    monkeypatch.setattr(splits, 'ATTEMPTS', 1)
    single = [uneven(grouped_stratified_split(labels, groups, FRACTIONS, seed)) for seed in range(50)]
    assert uneven(taken) <= np.quantile(single, 0.1) < 0.8 * np.median(single)


def test_a_class_that_few_persons_show_is_in_every_split_whatever_the_sizes_of_persons():
    sizes = np.random.default_rng(0).permutation(np.arange(10, 30))  # all different, so that they alone give the order
    for few in (3, 4, 5):
        for first in range(0, 15, 3):
            persons = {f'p{i}': 'abc' * int(size) for i, size in enumerate(sizes)}
            persons |= {f'p{i}': persons[f'p{i}'] + 'd' for i in range(first, first + few)}
            labels, groups = map(
                list, zip(*((label, p) for p, shown in persons.items() for label in shown), strict=True)
            )
            split = grouped_stratified_split(labels, groups, FRACTIONS, seed=0)
            assert set(zip(labels, split, strict=True)) == {(label, name) for label in 'abcd' for name in FRACTIONS}
            shares = pd.crosstab(pd.Series(labels), split, normalize='index').loc[list('abc'), list(FRACTIONS)]
            assert (shares - pd.Series(FRACTIONS)).abs().to_numpy().max() < 0.1


def test_complete_official_splits_stand():
    official = ['train', 'train', 'validation', 'test']
    examples = table(label=['a', 'b', 'a', 'b'], group=list('1234'), split=official)
    assert complete_splits(examples, FRACTIONS, seed=0).tolist() == official


def test_identical_content_is_drawn_into_one_split():
    groups = [str(i) for i in range(60)]
    examples = table(label=['a'] * 60, group=groups, split=[None] * 60)
    examples['digest'] = [str(i // 2) for i in range(60)]
    split = complete_splits(examples, FRACTIONS, seed=0).to_numpy()
    assert (split[::2] == split[1::2]).all()
