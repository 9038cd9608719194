"""The audit: what it says, what it refuses, and what it finds between examples."""

import pandas as pd
import pytest

from common.data.audit import Audit, audit_labelled
from common.errors import DataError


def test_findings_are_counted_named_and_the_clean_ones_said():
    audit = Audit('a set')
    audit.count(images=7, images_per_split={'train': {'a': 3, 'b': 2}, 'test': {'a': 1, 'b': 1}})
    audit.add('rows_without_image', 'rows without an image', [f'row {i}' for i in range(7)])
    audit.add('unknown_labels', 'rows with an unknown label', [], fatal=True)
    text = str(audit)
    for piece in ('a set', 'images: 7', '7 rows without an image', 'row 4', '2 more', 'unknown label'):
        assert piece in text
    assert 'row 5' not in text
    assert ['train', '3', '2'] in [line.split() for line in text.splitlines()]
    audit.refuse_bad()


def test_a_table_without_rows_is_none():
    audit = Audit('a set')
    audit.count(layouts={})
    assert 'Empty' not in str(audit)


def test_fatal_findings_are_refused_by_name():
    audit = Audit('a set')
    audit.add('unreadable_images', 'images that cannot be decoded', ['x.jpg: truncated'], fatal=True)
    with pytest.raises(
        DataError, match=r'(?s)1 images that cannot.*x\.jpg: truncated.*run experiments\.prepare with --skip_bad'
    ):
        audit.refuse_bad()


def test_a_stored_audit_reads_back_the_same(tmp_path):
    audit = Audit('a set')
    audit.count(images=1, images_per_split={'train': {'a': 1}})
    audit.add('repeats', 'rows that repeat', ['row 1'], fatal=True)
    audit.save(tmp_path / 'audit.json')
    again = Audit.load(tmp_path / 'audit.json')
    assert str(again) == str(audit)
    assert again.findings == audit.findings


def test_a_folder_that_was_stored_through_a_link_is_no_other_folder(tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'raw')
    Audit.begin('a set', tmp_path / 'audit.json', tmp_path / 'link', 'before').save(tmp_path / 'audit.json')
    audit = Audit.begin('a set', tmp_path / 'audit.json', tmp_path / 'raw', 'now')
    assert 'instead_of' not in audit.counts


def test_repeats_contradictions_and_straddling_groups_are_found():
    rows = [
        ('1', 'a', 'g1', 'train', 'x'),
        ('2', 'a', 'g1', 'train', 'x'),  # repeats 1 within training
        ('3', 'b', 'g1', 'test', 'y'),  # its group is in training too
        ('4', 'a', 'g2', 'train', 'z'),
        ('5', 'b', 'g3', 'test', 'z'),  # repeats 4 in another split, with another label
        ('6', 'b', 'g4', 'test', 'w'),
    ]
    audit = Audit('a set')
    audit_labelled(audit, pd.DataFrame(rows, columns=['name', 'label', 'group', 'split', 'digest']))
    assert audit.counts['exact_repeats'] == 2
    assert audit['duplicates_within_split'].items == ['1 (a, train) = 2 (a, train)']
    assert audit['duplicates_across_splits'].items == ['4 (a, train) = 5 (b, test)']
    assert audit['contradictory_labels'].items == ['4 (a, train) = 5 (b, test)']
    assert audit['straddling_groups'].items == ['g1 (test, train)']
    assert audit.counts['contradictions'] == {'a = b': {'sets': 1, 'train': 1, 'test': 1}}
