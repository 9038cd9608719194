"""The readers of face sets: both layouts of FER2013, its official splits, faults, votes, and groups of people."""

import csv
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common.data.audit import Audit
from common.data.builders import load_images, prepare_images
from common.data.dataset import Dataset
from common.data.images import Decoding, decode_image
from common.data.raw import RawFiles, open_raw
from common.errors import DataError, UsageError
from common.findings import Evidence
from expressions.configs import ckplus, fer2013, folders
from expressions.datasets import SOURCES
from expressions.synthetic import LOOKS, draw_face, draw_fer2013
from expressions.task import Expressions

# As on the page of the Kaggle competition.
FER2013_CLASSES = ('angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral')
USAGES = {'Training': 'train', 'PublicTest': 'validation', 'PrivateTest': 'test'}

Row = tuple[int, np.ndarray, str]  # emotion, pixels, Usage


def draw_rows(usages: Sequence[str] = ('Training', 'Training', 'PublicTest', 'PrivateTest')) -> list[Row]:
    random = np.random.default_rng(0)
    labels = range(len(FER2013_CLASSES))
    return [(label, random.integers(0, 256, (48, 48), np.uint8), usage) for label in labels for usage in usages]


def write_table(
    folder: pathlib.Path, rows: Sequence[Row], end: str = '', header: str = 'emotion,pixels,Usage'
) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    named = [
        {'emotion': str(label), 'pixels': ' '.join(map(str, pixels.ravel())), 'Usage': usage}
        for label, pixels, usage in rows
    ]
    lines = [','.join(row[column] for column in header.split(',')) for row in named]
    (folder / 'fer2013.csv').write_text('\n'.join([header, *lines, end]))
    return folder


def write_folders(folder: pathlib.Path, rows: Sequence[Row], official_names: bool = True) -> pathlib.Path:
    for number, (label, pixels, usage) in enumerate(rows):
        name = f'{usage if official_names else "face"}_{number}.png'
        path = folder / ('train' if usage == 'Training' else 'test') / FER2013_CLASSES[label] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def write_votes(folder: pathlib.Path, rows: Sequence[Row], votes: Sequence[Sequence[object]]) -> None:
    columns = 'neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF'
    with open(folder / 'fer2013new.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['Usage', 'Image name', *columns.split(',')])
        writer.writerows([usage, '', *counts] for (_, _, usage), counts in zip(rows, votes, strict=True))


def config_of(**dataset: object) -> ConfigDict:
    config = fer2013.get_config()
    config.dataset.update(dataset)
    return config


def prepare(folder: pathlib.Path, data_dir: pathlib.Path, **dataset: object) -> Dataset:
    config = config_of(**dataset)
    prepare_images(SOURCES[config.dataset.name], config.dataset, folder, data_dir)
    return load_images(config.dataset, data_dir)


def content(dataset: Dataset) -> dict[str, set[tuple[bytes, str]]]:
    names = dataset.info['class_names']
    return {
        name: {
            (image.tobytes(), names[label])
            for image, label in zip(split.columns['image'], split.columns['label'], strict=True)
        }
        for name, split in dataset.splits.items()
    }


def test_table_and_folders_give_the_same_data_set(tmp_path: pathlib.Path) -> None:
    rows = draw_rows()
    table = prepare(write_table(tmp_path / 'table', rows), tmp_path / 'a')
    folders = prepare(write_folders(tmp_path / 'folders', rows), tmp_path / 'b')
    assert {**table.info, 'examples': None} == {**folders.info, 'examples': None}  # which go by the names of images
    assert table.info['class_names'] == list(FER2013_CLASSES)
    assert content(table) == content(folders)
    for usage, split in USAGES.items():
        written = {(pixels.tobytes(), FER2013_CLASSES[label]) for label, pixels, where in rows if where == usage}
        assert content(table)[split] == written


def test_without_a_private_test_no_test_split_is_cut_from_training(tmp_path: pathlib.Path) -> None:
    rows = draw_rows(('Training', 'Training', 'PublicTest'))
    dataset = prepare(write_folders(tmp_path / 'folders', rows), tmp_path / 'data')
    assert {name: len(split) for name, split in dataset.splits.items()} == {'train': 14, 'validation': 7}


def test_a_test_split_is_cut_where_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    rows = draw_rows(('Training',) * 4 + ('PublicTest',))
    fractions = ConfigDict({'train': 0.5, 'validation': 0.25, 'test': 0.25})
    dataset = prepare(write_table(tmp_path / 'table', rows), tmp_path / 'data', split_fractions=fractions)
    assert {len(dataset.splits[name]) for name in ('validation', 'test')} == {7}


def test_folders_without_official_names_are_the_splits_they_say(tmp_path: pathlib.Path) -> None:
    rows = draw_rows(('Training',) * 9 + ('PrivateTest',))
    dataset = prepare(write_folders(tmp_path / 'folders', rows, official_names=False), tmp_path / 'data')
    assert len(dataset.splits['test']) == 7
    assert content(dataset)['test'] == {(p.tobytes(), FER2013_CLASSES[e]) for e, p, u in rows if u == 'PrivateTest'}
    assert {name: len(dataset.splits[name]) for name in ('train', 'validation')} == {'train': 56, 'validation': 7}


@pytest.mark.parametrize(
    ('header', 'end', 'pixels'),
    [
        ('emotion,pixels,Usage', '0,1 2 3', 3),
        ('emotion,Usage,pixels', '0,Training', 0),  # as in icml_face_data.csv
        ('pixels,Usage,emotion', '1 2 3,Training', 3),
    ],
)
def test_a_truncated_line_is_named_and_can_be_skipped(
    tmp_path: pathlib.Path, header: str, end: str, pixels: int
) -> None:
    rows = draw_rows()
    folder = write_table(tmp_path / 'table', rows, end, header)
    config = config_of()
    fault = rf'fer2013\.csv line {len(rows) + 2}: .*truncated, after {pixels} of 2304 pixels'
    with pytest.raises(DataError, match=fault):
        prepare_images(SOURCES['fer2013'], config.dataset, folder, tmp_path / 'data')
    audit = prepare_images(SOURCES['fer2013'], config.dataset, folder, tmp_path / 'data', skip_bad=True)
    assert audit.counts['images'] == len(rows)
    assert audit.counts['skipped'] == 1


@pytest.mark.parametrize(
    ('line', 'fault'),
    [
        ('7,' + ' '.join(['0'] * 2304) + ',Training', "emotion is '7'"),
        ('0,' + ' '.join(['0'] * 2303) + ',Training', '2303 pixels instead of 2304'),
        ('0,' + ' '.join(['256'] * 2304) + ',Training', 'a pixel is not a whole number from 0 to 255'),
        ('0,' + ' '.join(['0'] * 2304) + ',Train', "Usage is 'Train'"),
    ],
)
def test_bad_rows_are_named(tmp_path: pathlib.Path, line: str, fault: str) -> None:
    folder = write_table(tmp_path / 'table', draw_rows(), end=line)
    with pytest.raises(DataError, match=rf'line 30: {fault}'):
        prepare_images(SOURCES['fer2013'], config_of().dataset, folder, tmp_path / 'data')


def test_a_table_is_read_for_its_columns_and_for_its_rows_and_no_more(tmp_path: pathlib.Path) -> None:
    names = []
    with open_raw(write_table(tmp_path / 'table', draw_rows())) as raw:

        def read(name: str) -> bytes:
            names.append(name)
            return raw.read(name)

        SOURCES['fer2013'].read(RawFiles(raw.path, raw.sizes, read), Audit('faces'))
    assert names == ['fer2013.csv'] * 2


def test_blank_lines_are_no_rows(tmp_path: pathlib.Path) -> None:
    folder = write_table(tmp_path / 'table', draw_rows(), end='\n\n')
    table = (folder / 'fer2013.csv').read_text()
    (folder / 'fer2013.csv').write_text(table.replace('\n', '\n\n', 3))
    write_votes(folder, draw_rows(), [[1] * 10] * len(draw_rows()))
    assert len(prepare(folder, tmp_path / 'data').splits['train']) == 14


def test_a_lone_table_is_a_raw_data_set(tmp_path: pathlib.Path) -> None:
    folder = write_table(tmp_path / 'table', draw_rows())
    assert len(prepare(folder / 'fer2013.csv', tmp_path / 'data').splits['train']) == 14


def test_among_the_tables_of_the_competition_the_one_with_all_columns_is_read(tmp_path: pathlib.Path) -> None:
    rows = draw_rows()
    folder = write_table(tmp_path / 'table', rows)
    lines = (folder / 'fer2013.csv').read_text().splitlines()[1:]
    columns = [line.split(',') for line in lines if line]
    tables = {
        'example_submission.csv': ['emotion', '1'],
        'icml_face_data.csv': ['\ufeffemotion, Usage, pixels', *(f'{e},{u},{p}' for e, p, u in columns)],
        'test.csv': ['pixels', *(p for _, p, _ in columns)],
        'train.csv': ['emotion,pixels', *(f'{e},{p}' for e, p, _ in columns)],
    }
    for name, text in tables.items():
        (folder / name).write_text('\n'.join(text))
    both = prepare(folder, tmp_path / 'both')
    (folder / 'fer2013.csv').unlink()
    assert content(prepare(folder, tmp_path / 'competition')) == content(both)
    assert {len(split) for split in both.splits.values()} == {7, 14}

    (folder / 'icml_face_data.csv').unlink()
    (folder / 'fer2013.tar.gz').write_bytes(b'')
    with pytest.raises(DataError, match=r'train\.csv lacks the column\(s\) usage\. Unpack fer2013\.tar\.gz\.'):
        prepare(folder, tmp_path / 'data')


def test_a_table_of_ones_own_does_not_stand_in_for_that_of_fer2013(tmp_path: pathlib.Path) -> None:
    folder = write_table(tmp_path / 'table', draw_rows())
    lines = (folder / 'fer2013.csv').read_text().splitlines()
    (folder / 'cleaned.csv').write_text('\n'.join(lines[:20]))
    assert len(prepare(folder, tmp_path / 'data').splits['train']) == 14


def test_a_table_of_something_else_beside_folders_is_passed_over(tmp_path: pathlib.Path) -> None:
    folder = write_folders(tmp_path / 'folders', draw_rows())
    (folder / 'labels.csv').write_text('image,label\n')
    assert len(prepare(folder, tmp_path / 'data').splits['train']) == 14


def test_drop_duplicates_takes_from_training_what_stands_in_validation_or_test(tmp_path: pathlib.Path) -> None:
    rows = draw_rows()
    public, private = rows[2], rows[3]
    rows += [(1, public[1], 'Training'), (2, private[1], 'Training')]
    folder = write_table(tmp_path / 'table', rows)
    kept, dropped = (prepare(folder, tmp_path / 'data', drop_duplicates=drop) for drop in (False, True))
    assert len(kept.splits['train']) == 16
    assert len(dropped.splits['train']) == 14
    for name in ('validation', 'test'):
        assert content(kept)[name] == content(dropped)[name]
        assert not {p for p, _ in content(dropped)[name]} & {p for p, _ in content(dropped)['train']}

        # While they are there, the report judges the images that training has seen apart from the others.
        parts = [subgroups(dataset, name, tmp_path) for dataset in (kept, dropped)]
        assert {key: row['examples'] for key, row in parts[0]['the very image in training'].items()} == {
            'yes': 1,
            'no': len(kept.splits[name]) - 1,
        }
        assert parts[1] == {}
    assert subgroups(kept, 'train', tmp_path) == {}


def subgroups(dataset: Dataset, split: str, directory: pathlib.Path) -> Mapping[str, Any]:
    """Of the report on what a model says that takes every face for the same."""
    examples = dataset.splits[split]
    logits = np.zeros((len(examples), 7), np.float32)
    evidence = Evidence(predictions={'logits': logits}, split=examples, calibration=None, directory=directory)
    return Expressions(config_of(), {**dataset.info, 'class_counts': [1] * 7}).report(evidence).metrics['subgroups']


@pytest.mark.parametrize('lone', ['', 'fer2013.csv'])
def test_votes_become_soft_targets_and_the_label_stands_in_where_there_are_none(
    tmp_path: pathlib.Path, lone: str
) -> None:
    rows = draw_rows()
    votes = [[0] * 10 for _ in rows]
    votes[0] = [1, 2, 3, 4, 5, 6, 7, 9, 9, 9]  # contempt, unknown and NF do not count
    folder = write_table(tmp_path / 'table', rows)
    write_votes(folder, rows, votes)
    config = config_of()
    config.loss.soft_targets = True
    audit = Expressions.prepare(config, folder / lone, tmp_path / 'data', skip_bad=False)
    assert len(audit['rows_without_votes'].items) == len(rows) - 1
    split = Expressions.load(config, tmp_path / 'data').splits['train']
    assert split.columns['votes'].dtype == np.float32
    in_their_order = [5, 6, 7, 2, 4, 3, 1]
    np.testing.assert_allclose(split.columns['votes'][0], np.array(in_their_order) / sum(in_their_order), rtol=1e-6)
    np.testing.assert_array_equal(split.columns['votes'][1:], np.eye(7)[split.columns['label'][1:]])


def test_names_and_votes_go_by_the_row_where_a_bad_one_is_left_out(tmp_path: pathlib.Path) -> None:
    rows = draw_rows()
    folder = write_table(tmp_path / 'table', rows)
    lines = (folder / 'fer2013.csv').read_text().split('\n')
    (folder / 'fer2013.csv').write_text('\n'.join([lines[0], lines[1].replace('0,', '7,', 1), *lines[2:]]))
    write_votes(folder, rows, [[number] * 10 for number in range(len(rows))])
    config = config_of()
    prepare_images(SOURCES['fer2013'], config.dataset, folder, tmp_path / 'data', skip_bad=True)
    records = load_images(config.dataset, tmp_path / 'data').splits['train'].records
    assert len(records) == 13
    assert (records['name'] == [f'fer{votes:07d}' for votes in records['votes_angry']]).all()


def test_soft_targets_are_what_the_loss_compares_with(tmp_path: pathlib.Path) -> None:
    config = config_of()
    config.loss.soft_targets = True
    info = {
        'class_names': FER2013_CLASSES,
        'class_counts': [1] * 7,
        'pixel_mean': [0.0],
        'pixel_deviation': [1.0],
    }
    votes = np.full((2, 7), 1 / 7, np.float32)
    batch = {'image': np.zeros((2, 48, 48, 1), np.uint8), 'label': np.zeros(2, np.int32), 'votes': votes}
    np.testing.assert_array_equal(Expressions(config, info).preprocess(batch, {}, None)['target'], votes)
    config.loss.soft_targets = False
    target = Expressions(config, info).preprocess(batch, {}, None)['target']
    np.testing.assert_array_equal(target, np.eye(7)[[0, 0]])


def test_votes_of_another_table_are_refused(tmp_path: pathlib.Path) -> None:
    rows = draw_rows()
    folder = write_table(tmp_path / 'table', rows)
    write_votes(folder, rows[1:], [[1] * 10] * (len(rows) - 1))
    with pytest.raises(DataError, match=r'fer2013new\.csv line 3: Usage is PublicTest.*line 3 is for train'):
        prepare_images(SOURCES['fer2013'], config_of().dataset, folder, tmp_path / 'data')


@pytest.mark.parametrize('vote', ['', '4.0', 'many'])
def test_votes_that_are_no_numbers_are_named(tmp_path: pathlib.Path, vote: str) -> None:
    rows = draw_rows()
    folder = write_table(tmp_path / 'table', rows)
    write_votes(folder, rows, [[1] * 10, [vote] * 10, *[[1] * 10] * (len(rows) - 2)])
    with pytest.raises(DataError, match=r'fer2013new\.csv line 3: votes must be whole numbers'):
        prepare_images(SOURCES['fer2013'], config_of().dataset, folder, tmp_path / 'data')


def test_soft_targets_without_votes_say_what_to_do(tmp_path: pathlib.Path) -> None:
    config = config_of()
    config.loss.soft_targets = True
    Expressions.prepare(config, write_table(tmp_path / 'table', draw_rows()), tmp_path / 'data', skip_bad=False)
    with pytest.raises(DataError, match=r'put fer2013new\.csv beside fer2013\.csv .* with that table as --raw_dir'):
        Expressions.load(config, tmp_path / 'data')


def test_unknown_class_folders_are_refused(tmp_path: pathlib.Path) -> None:
    folder = write_folders(tmp_path / 'folders', draw_rows())
    (folder / 'train' / 'angry').rename(folder / 'train' / 'anger')
    with pytest.raises(DataError, match=r'no class of FER2013: anger; .*expressions/configs/folders\.py'):
        prepare_images(SOURCES['fer2013'], config_of().dataset, folder, tmp_path / 'data')


def test_no_person_of_ckplus_is_in_two_splits(tmp_path: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    shown_by = {'anger': range(3), 'contempt': range(3, 6), 'happy': range(10)}
    for label, people in shown_by.items():
        (tmp_path / 'CK+48' / label).mkdir(parents=True)
        for person in people:
            for frame in range(3):
                path = tmp_path / 'CK+48' / label / f'S{person:03d}_001_{frame:08d}.png'
                Image.fromarray(random.integers(0, 256, (48, 48), np.uint8)).save(path)
    fractions = ConfigDict({'train': 0.5, 'validation': 0.25, 'test': 0.25})
    config = ckplus.get_config()
    config.dataset.split_fractions = fractions
    prepare_images(SOURCES['ckplus'], config.dataset, tmp_path / 'CK+48', tmp_path / 'data')
    dataset = load_images(config.dataset, tmp_path / 'data')
    assert dataset.info['class_names'] == ['anger', 'contempt', 'happy']
    groups = [set(split.records.group) for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_persons_in_both_of_the_folders_that_give_the_split_are_refused_and_named(tmp_path: pathlib.Path) -> None:
    raw, random = tmp_path / 'mine', np.random.default_rng(0)
    for split, people in (('train', range(8)), ('test', range(7, 10))):
        for label, person in itertools.product(('calm', 'cross'), people):
            (raw / split / label).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(random.integers(0, 256, (48, 48), np.uint8))
            image.save(raw / split / label / f'p{person}_{label}.png')
    dataset = folders.get_config().dataset
    dataset.group_by = '^p[0-9]+'
    with pytest.raises(DataError, match=r'1 group\(s\) have images in several .*p7_calm\.png \(.*test.*--skip_bad'):
        prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')
    audit = prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data', skip_bad=True)
    assert len(audit['straddling_groups'].items) == 1


def test_names_that_do_not_tell_whose_an_image_is_are_listed_and_all_without_refused(tmp_path: pathlib.Path) -> None:
    raw = tmp_path / 'mine'
    random = np.random.default_rng(0)
    for label in ('calm', 'cross'):
        (raw / label).mkdir(parents=True)
        for name in (*(f'{label}{person}_{frame}' for person in range(4) for frame in range(2)), 'scan'):
            Image.fromarray(random.integers(0, 256, (48, 48), np.uint8)).save(raw / label / f'{name}.png')
    dataset = folders.get_config().dataset
    dataset.group_by = '^[a-z]+[0-9]'
    audit = prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')
    assert audit['names_without_group'].items == ['calm/scan.png', 'cross/scan.png']
    splits = load_images(dataset, tmp_path / 'data').splits.values()
    groups = [group for split in splits for group in set(split.records.group)]
    people = [f'{label}/{label}{person}_0.png' for label in ('calm', 'cross') for person in range(4)]
    assert sorted(groups) == sorted([*people, 'calm/scan.png', 'cross/scan.png'])  # each named after its first image
    for pattern, fault in (('^subject', 'which no name has in it'), ('face_(', 'no regular expression')):
        dataset.group_by = pattern
        with pytest.raises(UsageError, match=fault):
            prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')


def test_a_pattern_finds_folders_below_those_of_the_classes_and_without_one_the_audit_names_them(
    tmp_path: pathlib.Path,
) -> None:
    raw, random = tmp_path / 'mine', np.random.default_rng(0)
    for label, person, frame in itertools.product(('calm', 'cross'), range(6), range(2)):
        (raw / label / f'person {person}').mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random.integers(0, 256, (48, 48), np.uint8))
        image.save(raw / label / f'person {person}' / f'IMG{person}{frame}.png')
    for pattern in ('^person [0-9]', '^[^/]+/'):
        dataset = folders.get_config().dataset
        dataset.group_by = pattern
        audit = prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')
        assert audit.counts['groups'] == 6
        people = [set(split.records.group) for split in load_images(dataset, tmp_path / 'data').splits.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 6
    dataset.group_by = '^calm'
    with pytest.raises(UsageError, match=r"no name has in it, as \['person 0/IMG00\.png', "):
        prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')
    dataset.group_by = ''
    finding = prepare_images(SOURCES['folders'], dataset, raw, tmp_path / 'data')['folders_in_classes']
    assert finding.items == [f'{label}/person {person}' for label in ('calm', 'cross') for person in range(6)]
    assert "config.dataset.group_by='^[^/]+/'" in finding.meaning


def test_drawn_faces_are_the_same_every_time_and_of_every_class(tmp_path: pathlib.Path) -> None:
    texts = []
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        draw_fer2013(tmp_path / name)
        texts.append((tmp_path / name / 'fer2013.csv').read_bytes())
    assert texts[0] == texts[1]
    with open(tmp_path / 'a' / 'fer2013.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [sum(row['emotion'] == str(number) for row in rows) for number in range(7)] == [look.faces for look in LOOKS]
    assert {row['Usage'] for row in rows} == set(USAGES)
    assert 'synthetic' in SOURCES['synthetic_faces'].title


def test_no_two_drawn_faces_are_equal() -> None:
    random = np.random.default_rng(0)
    faces = [draw_face(LOOKS[3], random) for _ in range(5)]
    assert len({face.tobytes() for face in faces}) == 5
    assert all(face.shape == (48, 48) and face.dtype == np.uint8 and face.std() > 10 for face in faces)


def test_pixels_of_the_table_survive_their_encoding(tmp_path: pathlib.Path) -> None:
    rows = draw_rows(('Training', 'PublicTest'))
    dataset = prepare(write_table(tmp_path / 'table', rows), tmp_path / 'data')
    written = [pixels[..., None] for _, pixels, usage in rows if usage == 'Training']
    np.testing.assert_array_equal(dataset.splits['train'].columns['image'], written)
    png = tmp_path / 'face.png'
    Image.fromarray(rows[0][1]).save(png)
    decoded = decode_image(png.read_bytes(), Decoding.of(config_of().dataset), 'face')
    np.testing.assert_array_equal(decoded[..., 0], rows[0][1])
