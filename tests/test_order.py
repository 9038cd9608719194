"""The order of examples: a pure function of seed and step, whole epochs, balanced classes."""

import numpy as np
import pytest

from common.data.order import Order, once, spread, training_order
from common.errors import DataError, UsageError

LABELS = np.repeat([0, 1, 2], [70, 25, 5]).astype(np.int32)


@pytest.mark.parametrize('classes', [None, LABELS])
def test_order_is_a_pure_function_of_seed_and_step(classes):
    first, second = (Order(100, 8, 3, classes) for _ in range(2))
    steps = range(60)
    forwards = [first(step) for step in steps]
    backwards = [second(step) for step in reversed(steps)][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards, [Order(100, 8, 4, classes)(step) for step in steps])


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    order = Order(96, 8, 0)
    assert order.steps_per_epoch == 12
    epochs = [np.concatenate([order(12 * epoch + step) for step in range(12)]) for epoch in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(96))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_what_an_epoch_leaves_over_changes():
    order = Order(10, 4, 0)
    left_over = {tuple(sorted(set(range(10)) - {*order(2 * epoch), *order(2 * epoch + 1)})) for epoch in range(60)}
    assert {row for pair in left_over for row in pair} == set(range(10))
    assert all(len(pair) == 2 for pair in left_over)


def test_balanced_sampling_draws_classes_equally_often_and_every_minority_example():
    order = Order(100, 8, 0, LABELS)
    for epoch in range(5):
        rows = np.concatenate([order(12 * epoch + step) for step in range(12)])
        drawn = np.bincount(rows, minlength=100)
        np.testing.assert_array_equal(np.bincount(LABELS[rows]), [32, 32, 32])
        assert drawn[LABELS == 0].max() == 1
        assert set(drawn[LABELS == 1]) == {1, 2}  # 25 examples in 32 draws
        assert set(drawn[LABELS == 2]) == {6, 7}  # 5 examples in 32 draws


def test_balanced_shares_differ_by_at_most_one_where_they_cannot_be_equal():
    order = Order(100, 10, 0, LABELS)
    rows = np.concatenate([order(step) for step in range(10)])
    assert sorted(np.bincount(LABELS[rows])) == [33, 33, 34]


def test_balanced_sampling_reaches_all_of_the_majority_in_time():
    order = Order(100, 8, 0, LABELS)
    assert {row for step in range(12 * 15) for row in order(step)} == set(range(100))


def test_balanced_batches_are_mixed():
    order = Order(100, 10, 0, LABELS)
    drawn = np.array([np.bincount(LABELS[order(step)], minlength=3) for step in range(100)])
    assert np.mean((drawn > 0).all(axis=1)) > 0.8  # of ten draws one class is missing in 5% of all batches


def test_the_next_epoch_of_a_seed_is_not_the_first_one_of_the_next_seed():
    first, second = (Order(96, 8, seed) for seed in (0, 1))
    assert not np.array_equal([first(step + 12) for step in range(12)], [second(step) for step in range(12)])


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(DataError, match=r'7 training examples are fewer than one batch of 8.*batch_size'):
        Order(7, 8, 0)


def test_balanced_sampling_needs_classes_and_a_known_name():
    with pytest.raises(UsageError, match='no classes'):
        training_order(10, 2, 0, 'balanced', None)
    with pytest.raises(UsageError, match=r"config\.data\.sampling is 'weighted'; it may be uniform or balanced"):
        training_order(10, 2, 0, 'weighted', LABELS)
    assert training_order(100, 4, 0, 'uniform', LABELS)._members is None


def test_once_covers_every_row_once():
    index, mask = once([np.arange(10), np.array([7, 3]), np.array([], np.int32)], 4)
    np.testing.assert_array_equal(index[:, 0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]])
    np.testing.assert_array_equal(mask[:, 0], [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(index[:, 1], [[7, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask[:, 1], [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert not index[:, 2].any()
    assert not mask[:, 2].any()


def test_spread_gives_every_device_a_part_of_every_member():
    rows = np.array([[0, 1, 2, 3], [10, 11, 12, 13]])
    np.testing.assert_array_equal(spread(rows, 2), [0, 1, 10, 11, 2, 3, 12, 13])
    np.testing.assert_array_equal(spread(rows[:1], 2), [0, 1, 2, 3])
