"""The ISIC sets in their publishers' layouts, folder and zip, with the faults that they can have."""

import io
import pathlib
import re
import shutil
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common.config import load_run
from common.data.audit import Audit
from common.data.builders import load_images, prepare_images
from common.errors import DataError, UsageError
from lesion.configs import isic9, isic2018, isic2019, isic2020
from lesion.datasets import SOURCES
from tests.conftest import run_script

CLASSES = ('MEL', 'NV', 'BCC')


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, 'JPEG')
    return buffer.getvalue()


def small(config: ConfigDict, **changes: object) -> ConfigDict:
    config.dataset.update(image_size=(8, 10), **changes)
    return config.dataset


def records_of(dataset: ConfigDict, data_dir: pathlib.Path) -> pd.DataFrame:
    """One row an image, by name: split, label and all that is kept of it."""
    loaded = load_images(dataset, data_dir)
    names = np.array(loaded.info['class_names'])
    parts = [p.records.assign(split=s, label=names[p.columns['label']]) for s, p in loaded.splits.items()]
    return pd.concat(parts).set_index('name').sort_index()


# Folders of nine classes, here three.


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> pathlib.Path:
    """Twelve training and three test images of each class, below an outer folder; 3 + 1 contradictions, 1 repeat."""
    outer = tmp_path / 'raw' / 'Skin cancer ISIC'
    seeds = iter(range(1000))
    for split, count in {'Train': 12, 'Test': 3}.items():
        for label in ('actinic keratosis', 'melanoma', 'nevus'):
            (outer / split / label).mkdir(parents=True)
            for number in range(count):
                (outer / split / label / f'ISIC_{number}.jpg').write_bytes(encoded(next(seeds)))
    for number in range(3):
        shutil.copy(outer / f'Train/melanoma/ISIC_{number}.jpg', outer / f'Train/nevus/ISIC_{number}.jpg')
    shutil.copy(outer / 'Test/actinic keratosis/ISIC_0.jpg', outer / 'Train/nevus/ISIC_3.jpg')
    shutil.copy(outer / 'Train/melanoma/ISIC_4.jpg', outer / 'Train/melanoma/ISIC_5.jpg')
    return tmp_path / 'raw'


def prepared_isic9(raw: pathlib.Path, data_dir: pathlib.Path, **changes: object) -> tuple[Audit, pd.DataFrame]:
    dataset = small(isic9.get_config(), **changes)
    return prepare_images(SOURCES['isic9'], dataset, raw, data_dir), records_of(dataset, data_dir)


def test_isic9_keeps_its_test_images_and_cuts_validation_by_content(folders, tmp_path):
    audit, records = prepared_isic9(folders, tmp_path)
    official = records.index.str.partition('/').get_level_values(0)
    assert ((official == 'Test') == (records.split == 'test')).all()
    assert set(records.split) == {'train', 'validation', 'test'}
    digests = [(folders / 'Skin cancer ISIC' / name).read_bytes() for name in records.index]
    drawn = records.assign(digest=digests)[records.split != 'test']
    assert drawn.groupby('digest').split.nunique().max() == 1
    assert len(drawn) == 36
    assert audit.counts['exact_repeats'] == 5
    by_pair = {pair: counts['sets'] for pair, counts in audit.counts['contradictions'].items()}
    assert by_pair == {'actinic keratosis = nevus': 1, 'melanoma = nevus': 3}


def test_folders_of_other_things_than_the_nine_diagnoses_are_refused(folders, tmp_path):
    (folders / 'Skin cancer ISIC' / 'Train' / 'melanoma').rename(folders / 'Skin cancer ISIC' / 'Train' / 'part_1')
    with pytest.raises(DataError, match=r'none of the nine diagnoses: part_1\. .*config\.dataset\.name to folders'):
        prepared_isic9(folders, tmp_path)


def test_a_set_prepared_with_other_values_is_named(folders, tmp_path):
    prepared_isic9(folders, tmp_path)
    with pytest.raises(UsageError, match=r'is prepared as train70-validation\S*, and not as config\.dataset asks for'):
        prepare_images(SOURCES['isic9'], small(isic9.get_config(), drop_contradictory=True), None, tmp_path)


def test_isic9_as_a_zip_is_the_same(folders, tmp_path):
    archive = shutil.make_archive(str(tmp_path / 'set'), 'zip', folders)
    from_folder, from_zip = (
        prepared_isic9(path, tmp_path / name)[1] for path, name in ((folders, 'a'), (pathlib.Path(archive), 'b'))
    )
    pd.testing.assert_frame_equal(from_folder, from_zip)


def test_dropping_contradictions_leaves_training_without_images_under_two_labels(folders, tmp_path):
    before = prepared_isic9(folders, tmp_path)[1]
    audit, after = prepared_isic9(folders, tmp_path, drop_contradictory=True)
    doubtful = [f'Train/{label}/ISIC_{number}.jpg' for label in ('melanoma', 'nevus') for number in range(3)]
    doubtful.append('Train/nevus/ISIC_3.jpg')
    gone = sorted(set(before.index) - set(after.index))
    assert gone == sorted(name for name in doubtful if before.split[name] == 'train')
    assert gone
    assert audit['drop_contradictory'].items == gone
    assert (before.split.drop(gone) == after.split).all()


@pytest.mark.parametrize('stray', ['sample.jpg', 'Test/unlabelled.jpg'])
def test_an_image_outside_of_the_class_folders_is_left_out_and_named(folders, tmp_path, stray):
    (folders / 'Skin cancer ISIC' / stray).write_bytes(encoded(5000))
    audit, records = prepared_isic9(folders, tmp_path)
    assert audit['images_without_class'].items == [stray]
    assert len(records) == 45
    assert set(records.label) == {'actinic keratosis', 'melanoma', 'nevus'}


def test_the_five_lines_of_the_readme_train_on_folders_of_ones_own(folders, tmp_path):
    readme = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()
    (lines,) = re.findall(r"```python\n([^`]*name='folders'[^`]*)```", readme)
    assert len([line for line in lines.splitlines() if line]) == 5
    (tmp_path / 'moles.py').write_text(lines.replace('my_images', str(folders)))
    small_model = ['--config.model.widths=(4,)', '--config.model.depth=(1,)', '--config.duration=4steps']
    flags = [f'--config={tmp_path}/moles.py', *small_model, '--config.batch_size=8']
    ended = run_script('train', *flags, f'--data_dir={tmp_path}/data', f'--workdir={tmp_path}/run')
    assert ended.status == 0, ended.stderr
    assert load_run(tmp_path / 'run').info['class_names'] == ['actinic keratosis', 'melanoma', 'nevus']
    assert load_run(tmp_path / 'run').info['image_shape'] == [96, 96, 3]


# The challenges: one-hot tables.


def one_hot(labels: Mapping[str, str], columns: tuple[str, ...] = CLASSES) -> pd.DataFrame:
    return pd.DataFrame([[name, *(float(label == c) for c in columns)] for name, label in labels.items()]).set_axis(
        ['image', *columns], axis=1
    )


def write_part(raw: pathlib.Path, part: str, count: int, first: int) -> dict[str, str]:
    """Images `ISIC_<number>` of all classes in turn and their ground truth, each in a folder of its own."""
    labels = {f'ISIC_{number:04d}': CLASSES[number % 3] for number in range(first, first + count)}
    inputs, truth = raw / f'ISIC2018_Task3_{part}_Input', raw / f'ISIC2018_Task3_{part}_GroundTruth'
    inputs.mkdir(parents=True)
    truth.mkdir()
    for name in labels:
        (inputs / f'{name}.jpg').write_bytes(encoded(int(name[5:])))
    one_hot(labels).to_csv(truth / f'{truth.name}.csv', index=False)
    return labels


@pytest.fixture
def challenge(tmp_path: pathlib.Path) -> pathlib.Path:
    """Sixty training images, two a lesion, nothing else."""
    raw = tmp_path / 'raw'
    labels = write_part(raw, 'Training', 60, first=0)
    # 0 and 3 show one lesion, 1 and 4 another, ...: labels agree.
    lesions = [f'HAM_{number // 6 * 3 + number % 3:03d}' for number in range(len(labels))]
    table = pd.DataFrame({'image': list(labels), 'lesion_id': lesions, 'diagnosis_confirm_type': 'histopathology'})
    table.to_csv(raw / 'ISIC2018_Task3_Training_LesionGroupings.csv', index=False)
    return raw


def truth_of(raw: pathlib.Path, part: str = 'Training') -> pathlib.Path:
    return raw / f'ISIC2018_Task3_{part}_GroundTruth' / f'ISIC2018_Task3_{part}_GroundTruth.csv'


def prepared_2018(raw: pathlib.Path, data_dir: pathlib.Path, skip_bad: bool = False) -> tuple[Audit, pd.DataFrame]:
    dataset = small(isic2018.get_config())
    return prepare_images(SOURCES['isic2018'], dataset, raw, data_dir, skip_bad), records_of(dataset, data_dir)


def test_training_images_alone_are_split_by_lesion(challenge, tmp_path):
    audit, records = prepared_2018(challenge, tmp_path)
    assert records.label.tolist() == [CLASSES[number % 3] for number in range(60)]
    assert set(records.split) == {'train', 'validation', 'test'}
    assert records.groupby('group').split.nunique().max() == 1
    assert audit.counts['groups'] == 30
    assert load_images(small(isic2018.get_config()), tmp_path).info['class_names'] == list(CLASSES)


def test_file_names_join_lesions_and_tear_none_apart(challenge, tmp_path):
    dataset = small(isic2018.get_config(), group_by='ISIC_000|ISIC_005')
    audit = prepare_images(SOURCES['isic2018'], dataset, challenge, tmp_path)
    groups = records_of(dataset, tmp_path).group
    # Images 0 to 9 are joined, and with them the lesions of which these are: 10 and 11 too. So are 48 to 59.
    assert groups[:12].nunique() == groups[48:].nunique() == 1
    assert audit.counts['groups'] == groups.nunique() == 2 + 18


def test_official_splits_stand_and_unlabelled_images_are_left_out(challenge, tmp_path):
    write_part(challenge, 'Validation', 6, first=100)
    write_part(challenge, 'Test', 9, first=200)
    truth_of(challenge, 'Test').unlink()
    audit, records = prepared_2018(challenge, tmp_path / 'a')
    assert (records.split[60:] == 'validation').all()
    assert set(records.split[:60]) == {'train', 'test'}
    assert len(audit['images_without_row'].items) == 9

    one_hot({f'ISIC_{number:04d}': 'NV' for number in range(200, 209)}).to_csv(truth_of(challenge, 'Test'), index=False)
    archive = shutil.make_archive(str(tmp_path / 'set'), 'zip', challenge)
    audit, records = prepared_2018(pathlib.Path(archive), tmp_path / 'b')
    assert records.split.value_counts().to_dict() == {'train': 60, 'validation': 6, 'test': 9}
    assert not audit['images_without_row'].items


def test_the_name_of_a_table_gives_the_split_and_not_that_of_its_folder(challenge, tmp_path):
    write_part(challenge, 'Validation', 6, first=100)
    truth_of(challenge, 'Validation').parent.rename(challenge / 'all that is for training')
    records = prepared_2018(challenge, tmp_path)[1]
    assert (records.split[60:] == 'validation').all()


def test_2019_brings_facts_and_classes_that_no_training_image_has(tmp_path):
    raw, columns = tmp_path / 'raw', ('MEL', 'NV', 'SCC', 'UNK')
    labels = {f'ISIC_{number:04d}': columns[number % 3] for number in range(30)}
    test = {'ISIC_0100': 'NV', 'ISIC_0101': 'UNK'}
    for part, names in {'Training': labels, 'Test': test}.items():
        (raw / f'ISIC_2019_{part}_Input').mkdir(parents=True)
        for name in names:
            (raw / f'ISIC_2019_{part}_Input' / f'{name}.jpg').write_bytes(encoded(int(name[5:])))
    one_hot(labels, columns).to_csv(raw / 'ISIC_2019_Training_GroundTruth.csv', index=False)
    weights = {'score_weight': 1.0, 'validation_weight': 0.0}
    one_hot(test, columns).assign(**weights).to_csv(raw / 'ISIC_2019_Test_GroundTruth.csv', index=False)
    facts = pd.DataFrame({'image': list(labels), 'age_approx': 55.0, 'anatom_site_general': 'anterior torso'})
    facts = facts.assign(lesion_id=[f'BCN_{n // 6}_{n % 3}' for n in range(30)], sex='female')
    facts.loc[0, ['age_approx', 'lesion_id', 'sex']] = None
    facts.to_csv(raw / 'ISIC_2019_Training_Metadata.csv', index=False)
    more = pd.DataFrame({'image': list(test), 'age_approx': 70.0, 'anatom_site_general': '', 'sex': 'male'})
    more.to_csv(raw / 'ISIC_2019_Test_Metadata.csv', index=False)

    dataset = small(isic2019.get_config())
    audit = prepare_images(SOURCES['isic2019'], dataset, raw, tmp_path)
    assert load_images(dataset, tmp_path).info['class_names'] == ['MEL', 'NV', 'SCC']
    assert audit['classes_without_training'].items == ['ISIC_0101 (UNK)']
    records = records_of(dataset, tmp_path)
    assert records.split['ISIC_0100'] == 'test'
    assert 'ISIC_0101' not in records.index
    assert records.group['ISIC_0000'] == 'ISIC_0000'  # its lesion is not known
    assert records.group['ISIC_0003'] == 'BCN_0_0'
    facts = records[['age', 'sex', 'localization']].astype(object).where(records.notna(), None)
    assert facts.loc['ISIC_0000'].tolist() == [None, None, 'anterior torso']
    assert facts.loc['ISIC_0003'].tolist() == [55.0, 'female', 'anterior torso']
    assert facts.loc['ISIC_0100'].tolist() == [70.0, 'male', None]


def edit(path: pathlib.Path, row: int, **values: object) -> None:
    table = pd.read_csv(path, dtype=str)
    for column, value in values.items():
        table.loc[row, column] = value
    table.to_csv(path, index=False)


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'NV': '1.0'}, r'line 2: ISIC_0000 \(MEL and NV\)'),
        ({'MEL': '0.0'}, r'line 2: ISIC_0000 \(no class\)'),
        ({'MEL': '0.7', 'NV': '0.3'}, r'line 2: ISIC_0000 \(MEL=0\.7 and NV=0\.3\)'),
        ({'MEL': 'yes'}, r'line 2: ISIC_0000 \(MEL=nan\)'),
        ({'image': 'ISIC_0003'}, r'rows that repeat an image\n.*line 5: ISIC_0003 \(MEL\)'),
    ],
)
def test_rows_without_exactly_one_class_stop_prepare_and_are_named(challenge, tmp_path, values, words):
    edit(truth_of(challenge), 0, **values)
    with pytest.raises(DataError, match=words):
        prepared_2018(challenge, tmp_path)
    assert 'ISIC_0000' not in prepared_2018(challenge, tmp_path, skip_bad=True)[1].index


def test_lines_are_counted_as_an_editor_counts_them(challenge, tmp_path):
    edit(truth_of(challenge), 1, NV='1.0', MEL='1.0')
    lines = truth_of(challenge).read_text().splitlines()
    truth_of(challenge).write_text('\n'.join([*lines[:2], '', *lines[2:], '', '']))
    with pytest.raises(DataError, match=r'line 4: ISIC_0001 \(MEL and NV\)'):
        prepared_2018(challenge, tmp_path)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda raw: shutil.rmtree(truth_of(raw).parent), r'has no \*GroundTruth\.csv'),
        (lambda raw: truth_of(raw).write_text('<html>'), r'lacks the column\(s\) image; it has <html>'),
        (lambda raw: truth_of(raw).write_bytes(b'\xff\xfe\x00\x81'), 'is not a CSV table'),
        (
            lambda raw: (raw / 'Test_GroundTruth.csv').write_text('image,NV\nISIC_0000,1.0\n'),
            r'GroundTruth\.csv in .* has other classes \(',
        ),
        (
            lambda raw: (raw / 'ISIC2018_Task3_Training_LesionGroupings.csv').write_text('name,lesion\na,b\n'),
            r'LesionGroupings\.csv.*lacks the column\(s\) image',
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_a_sentence(challenge, tmp_path, damage, words):
    damage(challenge)
    with pytest.raises(DataError, match=words):
        prepared_2018(challenge, tmp_path)


@pytest.mark.parametrize(
    ('name', 'more'),
    [
        ('ISIC_2020_Training_GroundTruth.csv', {}),
        ('ISIC_2020_Training_GroundTruth_v2.csv', {'lesion_id': 'IL_1'}),
        ('train.csv', {}),
    ],
)
def test_2020_is_split_by_patient(tmp_path, name, more):
    raw = tmp_path / 'raw'
    for part, numbers in {'train': range(40), 'test': range(100, 103)}.items():
        (raw / part).mkdir(parents=True)
        for number in numbers:
            (raw / part / f'ISIC_{number:07d}.jpg').write_bytes(encoded(number))
    malignant = [number // 2 % 2 for number in range(40)]
    table = pd.DataFrame({'image_name': [f'ISIC_{number:07d}' for number in range(40)]})
    patients = [f'IP_{number // 2:03d}' for number in range(40)]
    table = table.assign(patient_id=patients, **more, sex='female', age_approx=45.0)
    table = table.assign(anatom_site_general_challenge='torso', diagnosis='unknown')
    table = table.assign(benign_malignant=[('benign', 'malignant')[bad] for bad in malignant], target=malignant)
    table.to_csv(raw / name, index=False)
    dataset = small(isic2020.get_config())
    audit = prepare_images(SOURCES['isic2020'], dataset, raw, tmp_path / 'data')
    records = records_of(dataset, tmp_path / 'data')
    assert records.label.tolist() == table.benign_malignant.tolist()
    assert records.group.tolist() == table.patient_id.tolist()
    assert records.groupby('group').split.nunique().max() == 1
    assert records.loc['ISIC_0000000', ['age', 'sex', 'localization']].tolist() == [45.0, 'female', 'torso']
    assert len(audit['images_without_row'].items) == 3


def test_metadata_of_another_set_are_left_out_and_named(challenge, tmp_path):
    before = prepared_2018(challenge, tmp_path / 'a')[1]
    (challenge / 'HAM10000_metadata.csv').write_text('lesion_id,image_id,dx\nHAM_000,ISIC_0000,nv\n')
    audit, records = prepared_2018(challenge, tmp_path / 'b')
    assert audit['other_metadata'].items == ['HAM10000_metadata.csv']
    pd.testing.assert_frame_equal(records, before)


def test_without_groupings_every_image_is_a_lesion_of_its_own(challenge, tmp_path):
    (challenge / 'ISIC2018_Task3_Training_LesionGroupings.csv').unlink()
    audit, records = prepared_2018(challenge, tmp_path)
    assert audit.counts['groups'] == 60
    assert len(audit['rows_without_group'].items) == 60
    assert (records.group == records.index).all()
