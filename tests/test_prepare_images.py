"""Preparing image sets, from raw files to the arrays that training reads, with every fault a raw set can have."""

import csv
import dataclasses
import errno
import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common.data import images
from common.data.builders import IN_TRAINING, is_prepared_images, load_images, prepare_images, prepared_path
from common.data.folders import FOLDERS
from common.data.images import Decoding, decode_image
from common.data.raw import RawImages
from common.errors import DataError, UsageError
from expressions.configs import folders as faces_in_folders
from expressions.task import Expressions
from lesion import synthetic
from lesion.configs import ham10000
from lesion.datasets import HAM10000_CLASSES, SOURCES
from lesion.task import Lesion

REPOSITORY = pathlib.Path(__file__).parents[1]
HAM10000 = SOURCES['ham10000']
CONFIG = {
    'name': 'tiny',
    'split_fractions': {'train': 0.6, 'validation': 0.2, 'test': 0.2},
    'split_seed': 0,
    'image_size': (12, 16),
    'resize': 'stretch',
    'channels': 3,
    'drop_duplicates': False,
    'drop_contradictory': False,
}


def config(**changes) -> ConfigDict:
    return ConfigDict(CONFIG | changes)


def encoded(seed: int, kind: str = 'JPEG', size: tuple[int, int] = (30, 40)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """Five lesions of each class with two images each, in HAM10000's layout; 70 images."""
    rows = []
    for number in range(70):
        label = HAM10000_CLASSES[number // 10]
        folder = tmp_path / 'raw' / f'HAM10000_images_part_{1 + number % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'ISIC_{number:03d}.jpg').write_bytes(encoded(number))
        lesion = f'HAM_{number // 2:03d}'
        rows.append((lesion, f'ISIC_{number:03d}', label, 'histo', '' if number == 3 else 40, 'male', 'back'))
    columns = ['lesion_id', 'image_id', 'dx', 'dx_type', 'age', 'sex', 'localization']
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / 'raw' / 'HAM10000_metadata.csv', index=False)
    return tmp_path / 'raw'


def image_file(raw: pathlib.Path, number: int) -> pathlib.Path:
    return raw / f'HAM10000_images_part_{1 + number % 2}' / f'ISIC_{number:03d}.jpg'


def edit_table(raw: pathlib.Path, edit) -> None:
    path = raw / 'HAM10000_metadata.csv'
    edit(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def all_records(dataset) -> pd.DataFrame:
    return pd.concat(
        split.records.assign(split=name, label=split.columns['label']) for name, split in dataset.splits.items()
    )


def test_every_image_arrives_with_its_label_group_and_facts(raw, tmp_path):
    audit = prepare_images(HAM10000, config(), raw, tmp_path)
    dataset = load_images(config(), tmp_path)
    records = all_records(dataset).set_index('name').sort_index()
    assert audit.counts['images'] == len(records) == 70
    assert dataset.info['class_names'] == list(HAM10000_CLASSES)
    assert dataset.info['image_shape'] == [12, 16, 3]
    assert records.label.tolist() == [number // 10 for number in range(70)]
    assert records.group.tolist() == [f'HAM_{number // 2:03d}' for number in range(70)]
    assert np.isnan(records.age.iloc[3])
    assert records.age.drop('ISIC_003').eq(40).all()
    assert (records.groupby('group').split.nunique() == 1).all()
    assert (records.groupby(['label', 'split']).size().unstack() == [2, 6, 2]).all(axis=None)
    for split in dataset.splits.values():
        assert split.columns['label'].dtype == np.int32
        for image, name in zip(split.columns['image'], split.records.name, strict=True):
            data = image_file(raw, int(name[5:])).read_bytes()
            np.testing.assert_array_equal(image, decode_image(data, Decoding.of(config()), name))


def test_zip_and_folder_prepare_the_same(raw, tmp_path):
    archive = shutil.make_archive(str(tmp_path / 'set'), 'zip', tmp_path, 'raw')
    prepare_images(HAM10000, config(), raw, tmp_path / 'a')
    prepare_images(HAM10000, config(), pathlib.Path(archive), tmp_path / 'b')
    a, b = (prepared_path(config(), tmp_path / name) / 'records.csv' for name in 'ab')
    assert a.read_bytes() == b.read_bytes()


def test_the_order_of_the_rows_in_the_table_changes_nothing(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path / 'a')
    edit_table(raw, lambda table: table.sample(frac=1.0, random_state=0))
    prepare_images(HAM10000, config(), raw, tmp_path / 'b')
    a, b = (prepared_path(config(), tmp_path / name) / 'records.csv' for name in 'ab')
    assert a.read_bytes() == b.read_bytes()


def test_original_bytes_and_facts_are_in_the_records(raw, tmp_path):
    import tensorflow_datasets as tfds

    image_file(raw, 5).write_bytes(encoded(5, 'PNG'))  # formats may be mixed, whatever the ending says
    prepare_images(HAM10000, config(), raw, tmp_path)
    builder = tfds.builder_from_directory(str(prepared_path(config(), tmp_path)))
    for split in builder.info.splits:
        for record in builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()}):
            number = int(record['name'][5:])
            assert record['image'] == image_file(raw, number).read_bytes()
            age = None if number == 3 else 40.0
            assert json.loads(record['facts']) == {
                'age': age,
                'sex': 'male',
                'localization': 'back',
                'dx_type': 'histo',
            }


def test_unreadable_images_stop_prepare_and_are_all_named(raw, tmp_path):
    good = image_file(raw, 1).read_bytes()
    image_file(raw, 0).write_bytes(b'')
    image_file(raw, 1).write_bytes(good[: len(good) // 2])
    image_file(raw, 12).write_bytes(b'not an image')
    with pytest.raises(DataError) as error:
        prepare_images(HAM10000, config(), raw, tmp_path)
    for number, reason in {0: 'empty', 1: 'truncated', 12: 'no known image format'}.items():
        assert any(f'ISIC_{number:03d}' in line and reason in line for line in str(error.value).splitlines())
    assert not is_prepared_images(config(), tmp_path)
    assert not list((tmp_path / 'tiny').glob('*/'))

    audit = prepare_images(HAM10000, config(), raw, tmp_path, skip_bad=True)
    assert audit.counts['skipped'] == len(audit['unreadable_images'].items) == 3
    assert len(all_records(load_images(config(), tmp_path))) == audit.counts['images'] == 67


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decompression_bombs_stop_prepare(raw, tmp_path, monkeypatch):
    image_file(raw, 0).write_bytes(encoded(0, 'PNG', (100, 100)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9_000)
    with pytest.raises(DataError, match=r'ISIC_000.*bomb'):
        prepare_images(HAM10000, config(), raw, tmp_path)


def test_unknown_diagnoses_stop_prepare_and_name_the_row(raw, tmp_path):
    edit_table(raw, lambda table: table.assign(dx=table.dx.where(table.index != 4, 'wart')))
    with pytest.raises(DataError, match=r'line 6: ISIC_004 \(wart\)'):
        prepare_images(HAM10000, config(), raw, tmp_path)
    assert prepare_images(HAM10000, config(), raw, tmp_path, skip_bad=True).counts['images'] == 69


def test_repeated_rows_stop_prepare(raw, tmp_path):
    edit_table(raw, lambda table: pd.concat([table, table.iloc[:1].assign(dx='mel')]))
    with pytest.raises(DataError, match=r'line 72: ISIC_000 \(mel\)'):
        prepare_images(HAM10000, config(), raw, tmp_path)


def test_rows_and_images_without_each_other_are_left_out_and_listed(raw, tmp_path):
    image_file(raw, 0).rename(raw / 'HAM10000_images_part_1' / 'ISIC_900.jpg')
    edit_table(raw, lambda table: table.assign(lesion_id=table.lesion_id.where(table.index != 7, '')))
    audit = prepare_images(HAM10000, config(), raw, tmp_path)
    assert audit['rows_without_image'].items == ['HAM10000_metadata.csv line 2: ISIC_000 (akiec)']
    assert audit['images_without_row'].items == ['HAM10000_images_part_1/ISIC_900.jpg']
    assert audit['rows_without_group'].items == ['HAM10000_metadata.csv line 9: ISIC_007 (akiec)']
    assert audit.counts['images'] == 69


@pytest.mark.parametrize('name', ['HAM10000_metadata.tab', 'HAM10000_metadata', 'ham10000_metadata.csv'])
def test_the_table_is_read_as_dataverse_has_it_and_in_small_letters(raw, tmp_path, name):
    prepare_images(HAM10000, config(), raw, tmp_path / 'csv')
    table = pd.read_csv(raw / 'HAM10000_metadata.csv', dtype=str)
    (raw / 'HAM10000_metadata.csv').unlink()
    table.to_csv(raw / name, sep='\t' if name.endswith('.tab') else ',', quoting=csv.QUOTE_ALL, index=False)
    prepare_images(HAM10000, config(), raw, tmp_path / 'other')
    one, other = (all_records(load_images(config(), tmp_path / name)) for name in ('csv', 'other'))
    pd.testing.assert_frame_equal(one, other)


def test_images_that_are_still_packed_stop_prepare(raw, tmp_path):
    (raw / 'HAM10000_segmentations.zip').write_bytes(b'')  # of no concern while every row has its image
    assert prepare_images(HAM10000, config(), raw, tmp_path / 'unpacked').counts['images'] == 70
    (raw / 'HAM10000_segmentations.zip').unlink()
    shutil.make_archive(str(raw / 'HAM10000_images_part_2'), 'zip', raw / 'HAM10000_images_part_2')
    shutil.rmtree(raw / 'HAM10000_images_part_2')
    with pytest.raises(DataError, match=r'35 rows without an image.*Unpack HAM10000_images_part_2\.zip\n.*ISIC_001'):
        prepare_images(HAM10000, config(), raw, tmp_path)


def test_an_archive_of_something_else_stops_nothing_where_hardly_an_image_is_missing(raw, tmp_path):
    (raw / 'HAM10000_segmentations.zip').write_bytes(b'')
    more = {f'ISIC_{number:03d}': f'HAM_{number:03d}' for number in range(100, 150)}
    for number, name in enumerate(more):
        (raw / f'{name}.jpg').write_bytes(encoded(100 + number))
    facts = {'dx': 'nv', 'dx_type': 'histo', 'age': '40', 'sex': 'male', 'localization': 'back'}
    rows = pd.DataFrame({'image_id': more.keys(), 'lesion_id': more.values()}).assign(**facts)
    edit_table(raw, lambda table: pd.concat([table, rows]))
    image_file(raw, 0).unlink()
    finding = prepare_images(HAM10000, config(), raw, tmp_path)['rows_without_image']
    assert finding.meaning == 'rows without an image, left out'
    assert finding.items == ['HAM10000_metadata.csv line 2: ISIC_000 (akiec)']


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        (lambda raw: (raw / 'HAM10000_metadata.csv').unlink(), 'has no HAM10000_metadata.csv'),
        (lambda raw: edit_table(raw, lambda t: t.drop(columns=['dx', 'age'])), r'lacks the column\(s\) dx, age'),
        (lambda raw: (raw / 'HAM10000_metadata.csv').write_bytes(b''), 'not a CSV'),
        (lambda raw: (raw / 'HAM10000_metadata.csv').write_bytes(b'\xff\xfe\x00\x81'), 'not a CSV'),
        (lambda raw: shutil.rmtree(raw), 'There is no'),
        (lambda raw: [shutil.rmtree(p) for p in raw.glob('*part*')], 'no readable image'),
        (lambda raw: edit_table(raw, lambda t: t[(t.dx != 'df') | t.index.isin([30, 31, 32])]), "'df' has 2 group"),
        (lambda raw: edit_table(raw, lambda t: t[t.dx != 'df']), 'no training images are left of df'),
    ],
)
def test_raw_sets_that_cannot_be_used_are_refused_with_a_sentence(raw, tmp_path, damage, sentence):
    damage(raw)
    with pytest.raises(DataError, match=sentence):
        prepare_images(HAM10000, config(), raw, tmp_path)
    assert not is_prepared_images(config(), tmp_path)


def test_of_folders_of_ones_own_the_one_without_a_readable_image_is_to_be_taken_away(tmp_path):
    for number in range(18):
        path = tmp_path / 'mine' / ('a', 'b', 'bad')[number % 3] / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'' if number % 3 == 2 else encoded(number))
    with pytest.raises(DataError, match=r'left of bad\. Add some, or do without: take its folder away'):
        prepare_images(FOLDERS, config(name='folders'), tmp_path / 'mine', tmp_path, skip_bad=True)


def test_a_set_without_some_of_its_classes_is_prepared_as_the_error_says(raw, tmp_path):
    edit_table(raw, lambda table: table[~table.dx.isin(['df', 'vasc'])])
    with pytest.raises(DataError, match='no training images are left of df, vasc') as error:
        prepare_images(HAM10000, config(), raw, tmp_path)
    assert "set config.dataset.name='folders'" in str(error.value)
    (pattern,) = re.findall("group_by='(.*)'", str(error.value))
    for row in pd.read_csv(raw / 'HAM10000_metadata.csv').itertuples():
        folder = tmp_path / 'mine' / row.dx / row.lesion_id
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(raw.rglob(f'{row.image_id}.jpg')), folder)
    audit = prepare_images(FOLDERS, config(group_by=pattern), tmp_path / 'mine', tmp_path)
    assert (audit.counts['images'], audit.counts['groups']) == (50, 25)


def test_identical_images_of_different_lesions_stay_in_one_split(raw, tmp_path):
    for number in range(40, 50, 2):  # five melanomas look alike to the byte
        image_file(raw, number).write_bytes(encoded(40))
    with pytest.raises(DataError, match="'mel' has 1 group"):
        prepare_images(HAM10000, config(), raw, tmp_path)
    image_file(raw, 46).write_bytes(encoded(46))
    image_file(raw, 48).write_bytes(encoded(48))
    audit = prepare_images(HAM10000, config(), raw, tmp_path)
    records = all_records(load_images(config(), tmp_path))
    assert records[records.name.isin(['ISIC_040', 'ISIC_042', 'ISIC_044'])].split.nunique() == 1
    assert audit.counts['exact_repeats'] == 2


def write_folders(raw: pathlib.Path) -> pathlib.Path:
    """Two classes, ten training and three test images each; repeats within and across, one contradiction."""
    for split, count in (('Train', 10), ('Test', 3)):
        for label in ('cat', 'dog'):
            folder = raw / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed = hash((split == 'Train', label == 'cat', number)) % 2**31
                (folder / f'{number}.jpg').write_bytes(encoded(seed))
    shutil.copy(raw / 'Train/cat/0.jpg', raw / 'Train/cat/1.jpg')
    shutil.copy(raw / 'Test/cat/0.jpg', raw / 'Train/cat/2.jpg')
    shutil.copy(raw / 'Test/dog/0.jpg', raw / 'Train/cat/3.jpg')
    return raw


def test_official_splits_are_kept_and_their_leaks_reported(tmp_path):
    raw = write_folders(tmp_path / 'folders')
    audit = prepare_images(FOLDERS, config(), raw, tmp_path)
    dataset = load_images(config(), tmp_path)
    names = {name: set(split.records.name) for name, split in dataset.splits.items()}
    assert names['test'] == {f'Test/{label}/{i}.jpg' for label in ('cat', 'dog') for i in range(3)}
    labels = [name.split('/')[1] for name in names['validation']]
    assert sorted(labels) == ['cat'] * 3 + ['dog'] * 3  # a quarter of ten, and the half rounded up
    training = {f'Train/{label}/{i}.jpg' for label in ('cat', 'dog') for i in range(10)}
    assert names['train'] == training - names['validation']
    assert names['validation'] < training
    assert audit.counts['exact_repeats'] == 3
    (within,) = audit['duplicates_within_split'].items
    assert within.startswith('Train/cat/0.jpg')
    assert {item.partition(' ')[0] for item in audit['duplicates_across_splits'].items} == {
        'Test/cat/0.jpg',
        'Test/dog/0.jpg',
    }
    (contradiction,) = audit['contradictory_labels'].items
    assert contradiction.startswith('Test/dog/0.jpg (dog, test) = Train/cat/3.jpg (cat, ')


def test_blanks_around_the_name_of_a_class_folder_are_no_part_of_the_class(tmp_path):
    raw = write_folders(tmp_path / 'folders')
    (raw / 'Train' / 'cat').rename(raw / 'Train' / 'cat ')
    (raw / 'Test' / 'dog').rename(raw / 'Test' / ' dog')
    prepare_images(FOLDERS, config(), raw, tmp_path)
    dataset = load_images(config(), tmp_path)
    assert dataset.info['class_names'] == ['cat', 'dog']
    records = all_records(dataset).set_index('name')
    assert records.label['Train/cat /0.jpg'] == records.label['Test/cat/0.jpg'] == 0
    assert records.label['Test/ dog/0.jpg'] == 1


def test_a_class_may_be_called_none(tmp_path):
    for number in range(20):
        folder = tmp_path / 'raw' / ('None', 'mole')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{number}.png').write_bytes(encoded(number, 'PNG'))
    prepare_images(FOLDERS, config(), tmp_path / 'raw', tmp_path / 'data')
    dataset = load_images(config(), tmp_path / 'data')
    assert dataset.info['class_names'] == ['None', 'mole']
    assert np.bincount(dataset.splits['train'].columns['label']).tolist() == [6, 6]


def test_blanks_around_the_name_of_a_class_do_no_harm_whoever_reads_it(tmp_path):
    def read(files, audit):
        found = FOLDERS.read(files, audit)
        images = [dataclasses.replace(image, label=f'{image.label} ') for image in found.images]
        return RawImages([f'{name} ' for name in found.class_names], images)

    raw = write_folders(tmp_path / 'folders')
    prepare_images(dataclasses.replace(FOLDERS, read=read), config(), raw, tmp_path)
    dataset = load_images(config(), tmp_path)
    records = all_records(dataset)
    assert dataset.info['class_names'] == ['cat', 'dog']
    assert (records.label == records.name.str.contains('dog')).all()


@pytest.mark.parametrize(
    ('drop', 'gone', 'copies'),
    [
        ({}, set(), {'Test/cat/0.jpg', 'Test/dog/0.jpg'}),
        ({'drop_duplicates': True}, {'1', '2', '3'}, set()),
        ({'drop_contradictory': True}, {'3'}, {'Test/cat/0.jpg'}),
        ({'drop_duplicates': True, 'drop_contradictory': True}, {'1', '2', '3'}, set()),
    ],
)
def test_dropping_takes_away_from_training_alone_and_what_is_left_of_test_there_is_noted(tmp_path, drop, gone, copies):
    raw = write_folders(tmp_path / 'folders')
    # Without validation drawn, all of Train is training.
    fractions = {'train': 0.8, 'validation': 0.0, 'test': 0.2}
    settings = config(split_fractions=fractions, **drop)
    prepare_images(FOLDERS, settings, raw, tmp_path)
    splits = load_images(settings, tmp_path).splits
    names = {name: set(split.records.name) for name, split in splits.items()}
    everything = {f'Train/{label}/{i}.jpg' for label in ('cat', 'dog') for i in range(10)}
    assert everything - names['train'] == {f'Train/cat/{i}.jpg' for i in gone}
    assert len(names['test']) == 6
    test = splits['test'].records
    assert set(test.name[test.get(IN_TRAINING, pd.Series(False, test.index))]) == copies


def test_preparations_live_side_by_side_and_sizes_share_one(raw, tmp_path):
    one, other = config(), config(split_seed=1)
    prepare_images(HAM10000, one, raw, tmp_path)
    assert is_prepared_images(config(image_size=(8, 8)), tmp_path)
    assert not is_prepared_images(other, tmp_path)
    with pytest.raises(DataError, match=r'not prepared.*experiments\.prepare'):
        load_images(other, tmp_path)
    prepare_images(HAM10000, other, raw, tmp_path)
    tables = [all_records(load_images(settings, tmp_path)).set_index('name').split for settings in (one, other)]
    assert (tables[0] != tables[1].reindex(tables[0].index)).any()
    assert load_images(config(image_size=(8, 8)), tmp_path).splits['test'].columns['image'].shape[1:] == (8, 8, 3)
    assert load_images(one, tmp_path).splits['test'].columns['image'].shape[1:] == (12, 16, 3)
    for change in ({'resize': 'stretch'}, {'resize': 'crop'}, {'resize': 'pad'}, {'channels': 1}):
        settings = config(image_size=(16, 16), **change)
        split = load_images(settings, tmp_path).splits['test']
        content = image_file(raw, int(split.records.name[0][5:])).read_bytes()
        expected = decode_image(content, Decoding.of(settings), '')
        np.testing.assert_array_equal(split.columns['image'][0], expected)


def test_preparing_again_does_nothing_until_the_raw_files_change(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    stored = prepared_path(config(), tmp_path) / 'audit.json'
    before = stored.stat().st_mtime_ns
    load_images(config(), tmp_path)
    assert prepare_images(HAM10000, config(), raw, tmp_path).counts['images'] == 70
    assert stored.stat().st_mtime_ns == before
    image_file(raw, 0).write_bytes(encoded(1000, 'PNG'))
    prepare_images(HAM10000, config(), raw, tmp_path)
    assert stored.stat().st_mtime_ns != before
    split = load_images(config(), tmp_path).splits  # the decoded images are not the old ones
    names = {name: part.records.name.tolist() for name, part in split.items()}
    (where,) = (name for name, members in names.items() if 'ISIC_000' in members)
    image = split[where].columns['image'][names[where].index('ISIC_000')]
    expected = decode_image(encoded(1000, 'PNG'), Decoding.of(config()), 'x')
    np.testing.assert_array_equal(image, expected)


def test_a_corrected_label_is_prepared_again_though_the_table_keeps_its_size(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    assert prepare_images(HAM10000, config(), raw, tmp_path).kept
    size = (raw / 'HAM10000_metadata.csv').stat().st_size
    edit_table(raw, lambda table: table.assign(dx=table.dx.mask(table.lesion_id == 'HAM_015', 'nv')))  # from df
    assert (raw / 'HAM10000_metadata.csv').stat().st_size == size
    assert not prepare_images(HAM10000, config(), raw, tmp_path).kept
    labels = all_records(load_images(config(), tmp_path)).set_index('name').label
    assert labels['ISIC_030'] == labels['ISIC_031'] == HAM10000_CLASSES.index('nv')


def test_other_labels_of_the_same_images_are_other_data_to_a_run(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    before = load_images(config(), tmp_path)
    edit_table(raw, lambda table: table.assign(dx=table.dx.replace({'mel': 'nv', 'nv': 'mel'})))
    prepare_images(HAM10000, config(), raw, tmp_path)
    after = load_images(config(), tmp_path)
    for name, split in before.splits.items():
        assert split.records.name.equals(after.splits[name].records.name)
        assert before.info['examples'][name] != after.info['examples'][name]


@pytest.mark.parametrize('none', [{}, {'test': 0.0}])
def test_a_split_without_a_fraction_is_not_drawn(raw, tmp_path, none):
    fractions = {'train': 0.8, 'validation': 0.2, **none}
    prepare_images(HAM10000, config(split_fractions=fractions), raw, tmp_path)
    assert set(load_images(config(split_fractions=fractions), tmp_path).splits) == {'train', 'validation'}


@pytest.mark.parametrize('reason', [errno.EROFS, errno.EACCES])
def test_prepared_data_on_a_disk_that_cannot_be_written_are_read(raw, tmp_path, monkeypatch, reason):
    prepare_images(HAM10000, config(), raw, tmp_path)
    before = load_images(config(), tmp_path).splits['test']

    def refuse(path, mode='r'):
        assert mode == 'w'
        raise OSError(reason, 'it cannot be written', str(path))

    monkeypatch.setattr(images, 'open', refuse, raising=False)
    assert prepare_images(HAM10000, config(), raw, tmp_path).kept
    after = load_images(config(), tmp_path).splits['test']
    np.testing.assert_array_equal(after.columns['image'], before.columns['image'])
    reason = errno.ENOSPC
    with pytest.raises(OSError, match='it cannot be written'):
        prepare_images(HAM10000, config(), raw, tmp_path)


def test_a_set_that_takes_the_place_of_one_from_elsewhere_says_so(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    moved, other = tmp_path / 'moved', tmp_path / 'other'
    shutil.copytree(raw, other)
    raw.rename(moved)
    assert prepare_images(HAM10000, config(), moved, tmp_path).kept
    edit_table(other, lambda table: table[1:])
    audit = prepare_images(HAM10000, config(), other, tmp_path)
    assert f'instead_of: {raw}' in str(audit)
    assert audit.counts['images'] == len(all_records(load_images(config(), tmp_path))) == 69


def test_folders_of_ones_own_lie_apart_for_each_task(tmp_path):
    moles, faces = ham10000.get_config(), faces_in_folders.get_config()
    moles.dataset.name = 'folders'
    raw = write_folders(tmp_path / 'raw')
    Lesion.prepare(moles, raw, tmp_path / 'data', skip_bad=False)
    assert Lesion.is_prepared(moles, tmp_path / 'data')
    assert not Expressions.is_prepared(faces, tmp_path / 'data')
    shutil.rmtree(raw / 'Test')
    Expressions.prepare(faces, raw, tmp_path / 'data', skip_bad=False)
    examples = [
        sum(map(len, task.load(settings, tmp_path / 'data').splits.values()))
        for task, settings in ((Lesion, moles), (Expressions, faces))
    ]
    assert examples == [26, 20]


def test_raw_files_are_asked_for_where_nothing_can_be_drawn(tmp_path):
    with pytest.raises(UsageError, match=r'set config\.dataset\.raw_dir .*--raw_dir.*doi\.org'):
        prepare_images(HAM10000, config(), None, tmp_path)


def test_without_raw_files_a_set_that_is_prepared_is_told_to_be(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    with pytest.raises(UsageError, match=r'/tiny is prepared already as config\.dataset asks for.*--raw_dir'):
        prepare_images(HAM10000, config(), None, tmp_path)
    with pytest.raises(UsageError, match=r'/tiny is prepared as train60\S+, and not as config\.dataset asks for'):
        prepare_images(HAM10000, config(split_seed=1), None, tmp_path)
    assert is_prepared_images(config(), tmp_path)


INTERRUPTED = """
import dataclasses, pathlib, sys, time
sys.path.insert(0, 'tests')
from common.data import builders
from lesion.datasets import SOURCES
from test_prepare_images import config

raw_dir, data_dir = map(pathlib.Path, sys.argv[1:])
reads = 0

def read(files, audit):
    def slow(name):
        global reads
        reads += 1
        if reads == 1 + 70 + 50:  # the table, every image to be checked, then all of train and some more
            print('halfway', file=sys.__stdout__, flush=True)
            time.sleep(60)
        return files.read(name)
    slow_files = dataclasses.replace(files, _read=lambda name: slow(name))
    return SOURCES['ham10000'].read(slow_files, audit)

builders.prepare_images(dataclasses.replace(SOURCES['ham10000'], read=read), config(), raw_dir, data_dir)
"""


def test_prepare_killed_halfway_leaves_nothing_that_passes_for_good(raw, tmp_path):
    command = [sys.executable, '-c', INTERRUPTED, str(raw), str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'halfway\n'
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / 'tiny' / 'incomplete').rglob('*.array_record*')), 'it was killed too early'
    assert not is_prepared_images(config(), tmp_path)

    prepare_images(HAM10000, config(), raw, tmp_path)
    assert len(all_records(load_images(config(), tmp_path))) == 70
    assert not (tmp_path / 'tiny' / 'incomplete').exists()


def test_leftovers_are_never_taken_for_the_new_data(raw, tmp_path):
    prepare_images(HAM10000, config(), raw, tmp_path)
    preparation = prepared_path(config(), tmp_path).parent
    (tmp_path / 'tiny' / 'incomplete' / 'tiny').mkdir(parents=True)
    preparation.rename(tmp_path / 'tiny' / 'incomplete' / 'tiny' / preparation.name)
    edit_table(raw, lambda table: table[1:])
    prepare_images(HAM10000, config(), raw, tmp_path)
    assert len(all_records(load_images(config(), tmp_path))) == 69


def test_two_at_once_prepare_once(raw, tmp_path):
    script = (
        'import sys, pathlib; sys.path.insert(0, "tests")\n'
        'from common.data.builders import prepare_images\n'
        'from lesion.datasets import SOURCES\n'
        'from test_prepare_images import config\n'
        'prepare_images(SOURCES["ham10000"], config(), *map(pathlib.Path, sys.argv[1:]))\n'
        'assert "tensorflow" not in sys.modules\n'
    )
    command = [sys.executable, '-c', script, str(raw), str(tmp_path)]
    quiet = {'cwd': REPOSITORY, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    processes = [subprocess.Popen(command, **quiet) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs == ['', ''], 'nothing is said where nobody watches'
    assert len(all_records(load_images(config(), tmp_path))) == 70


def test_the_demo_is_drawn_the_same_each_time_and_prepared_like_the_real_set(tmp_path):
    audit = prepare_images(SOURCES['demo'], config(name='demo'), None, tmp_path)
    assert audit.counts['images'] == sum(look.images for look in synthetic.LOOKS.values())
    assert not any(finding.items for finding in audit.findings)
    records = all_records(load_images(config(name='demo'), tmp_path))
    assert records.name.str.startswith('SYNTHETIC_').all()
    assert records.group.str.startswith('SYNTHETIC_LESION_').all()
    assert records.groupby('group').size().max() > 1
    again = tmp_path / 'again'
    again.mkdir()
    synthetic.draw_ham10000(again)
    first = {path.name: path.read_bytes() for path in (tmp_path / 'demo' / 'raw').rglob('*.*')}
    assert first == {path.name: path.read_bytes() for path in again.rglob('*.*')}
