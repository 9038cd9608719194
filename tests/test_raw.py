"""Raw files: a folder and a zip read alike, and what is neither is refused with a sentence."""

import concurrent.futures
import os
import pathlib
import zipfile

import pytest

from common.data.audit import Audit
from common.data.folders import read_folders
from common.data.raw import images_by_stem, open_raw
from common.errors import DataError

FILES = {'b/2.jpg': b'two', 'a/1.jpg': b'one', 'table.csv': b'x,y\n', '.DS_Store': b'junk', '__MACOSX/a/1.jpg': b'junk'}


def write(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: pathlib.Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> pathlib.Path:
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize('nesting', ['', 'published as/'])
def test_folder_and_zip_read_alike_with_or_without_a_folder_around(tmp_path, nesting):
    files = {nesting + name: content for name, content in FILES.items()}
    folder, archive = write(tmp_path / 'folder', files), write_zip(tmp_path / 'set.zip', files)
    with open_raw(folder) as from_folder, open_raw(archive) as from_zip:
        assert from_folder.names == from_zip.names == ['a/1.jpg', 'b/2.jpg', 'table.csv']
        assert [from_folder.read(name) for name in from_folder.names] == [b'one', b'two', b'x,y\n']
        assert [from_zip.read(name) for name in from_zip.names] == [b'one', b'two', b'x,y\n']
        assert from_folder.signature() == from_zip.signature()


def test_links_are_followed_once_around(tmp_path):
    elsewhere = write(tmp_path / 'elsewhere', {'1.jpg': b'', 'deep/2.jpg': b''})
    (elsewhere / 'back').symlink_to(tmp_path / 'raw')
    folder = write(tmp_path / 'raw', {'nevus/1.jpg': b''})
    (folder / 'melanoma').symlink_to(elsewhere)
    (folder / 'nevus/2.jpg').symlink_to(elsewhere / '1.jpg')
    (folder / 'nevus/gone.jpg').symlink_to(tmp_path / 'nowhere')
    (folder / 'nevus/loop').symlink_to('loop')
    with open_raw(folder) as raw:
        assert raw.names == ['melanoma/1.jpg', 'melanoma/deep/2.jpg', 'nevus/1.jpg', 'nevus/2.jpg']


def test_a_lone_table_has_beside_it_only_what_is_named(tmp_path):
    folder = write(tmp_path, {'a.csv': b'x,y\n', 'b.csv': b'', 'c.csv': b''})
    for beside, names in {(): ['a.csv'], ('b.csv', 'd.csv'): ['a.csv', 'b.csv']}.items():
        with open_raw(folder / 'a.csv', beside) as raw:
            assert raw.names == names
            assert raw.read('a.csv') == b'x,y\n'


def test_signature_changes_with_a_file(tmp_path):
    files = {**FILES, 'prices.csv.gz': b'1'}
    folder = write(tmp_path, files)
    with open_raw(folder) as raw:
        before = raw.signature()
    for name, content in {'a/1.jpg': b'longer', 'table.csv': b'x,z\n', 'prices.csv.gz': b'2'}.items():
        (folder / name).write_bytes(content)
        with open_raw(folder) as raw:
            assert raw.signature() != before
        (folder / name).write_bytes(files[name])


def test_a_zip_may_be_read_by_many_threads(tmp_path):
    files = {f'{i}.bin': bytes([i]) * 50_000 for i in range(100)}
    with (
        open_raw(write_zip(tmp_path / 'set.zip', files)) as raw,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        contents = pool.map(raw.read, files)
        assert dict(zip(files, contents, strict=True)) == files


def test_what_is_missing_empty_or_no_zip_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.zip').write_text('a web page with an error')
    (tmp_path / 'other.tar.gz').write_bytes(b'')
    write_zip(tmp_path / 'empty.zip', {})
    truncated = write_zip(tmp_path / 'truncated.zip', {'a': bytes(1000)}, zipfile.ZIP_STORED)
    truncated.write_bytes(truncated.read_bytes()[:500])
    damaged = write_zip(tmp_path / 'damaged.zip', {'a': b'', 'b': b''})
    damaged.write_bytes(damaged.read_bytes().replace(b'PK\1\2', b'PK\0\0'))  # the entries of its directory
    for name, sentence in {
        'absent': 'There is no',
        'empty': 'is empty',
        'empty.zip': 'is empty',
        'text.zip': 'nor a zip',
        'other.tar.gz': 'Unpack',
        'truncated.zip': 'truncated',
        'damaged.zip': 'damaged',
    }.items():
        with pytest.raises(DataError, match=sentence) as error, open_raw(tmp_path / name):
            pass
        assert name in str(error.value)


def test_a_name_that_is_not_utf8_is_told_as_far_as_it_can_be(tmp_path):
    write(tmp_path, {'cat/1.jpg': b''})
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b'/cat/m\xe9lanome.jpg')).write_bytes(b'')
    with pytest.raises(DataError, match=r"m.*lanome\.jpg' is not written in UTF-8") as error, open_raw(tmp_path):
        pass
    str(error.value).encode()


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / 'set.zip', {'good.jpg': b'fine', 'bad.jpg': b'A' * 1000}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b'A' * 1000, b'A' * 999 + b'B'))
    with open_raw(path) as raw:
        assert raw.read('good.jpg') == b'fine'
        with pytest.raises(DataError, match=r'bad\.jpg'):
            raw.read('bad.jpg')


def test_images_are_found_by_stem_and_second_copies_are_reported(tmp_path):
    folder = write(tmp_path, {'one/X.jpg': b'1', 'two/X.JPG': b'1', 'two/Y.png': b'2', 'two/notes.txt': b''})
    audit = Audit('a set')
    with open_raw(folder) as raw:
        assert images_by_stem(raw, audit) == {'X': 'one/X.jpg', 'Y': 'two/Y.png'}
    assert audit['repeated_files'].items == ['two/X.JPG (used: one/X.jpg)']


def labelled(folder: pathlib.Path) -> tuple[dict[str, tuple[str, str | None]], Audit]:
    """Label and split of the images that are found, by name."""
    audit = Audit('a set')
    with open_raw(folder) as raw:
        found = read_folders(raw, audit)
    assert found.class_names == sorted({image.label for image in found.images})
    assert len({image.name for image in found.images}) == len(found.images)
    return {image.name: (image.label, image.split) for image in found.images}, audit


@pytest.mark.parametrize('beside', ['', 'labels.csv', 'sample.jpg'])
@pytest.mark.parametrize('top', ['', 'Some set/', 'a/b/'])
def test_class_folders_below_split_folders_give_labels_and_official_splits(tmp_path, top, beside):
    names = ('Train/nevus/1.jpg', 'Train/melanoma/1.jpg', 'Test/nevus/2.png')
    folder = write(tmp_path, {top + name: b'' for name in names})
    (folder / top / 'Train/readme.txt').write_text('hello')
    if beside:
        (folder / beside).write_text('beside all')
    found, audit = labelled(folder)
    assert found == {
        'Test/nevus/2.png': ('nevus', 'test'),
        'Train/melanoma/1.jpg': ('melanoma', 'train'),
        'Train/nevus/1.jpg': ('nevus', 'train'),
    }
    stray = [beside] if beside == 'sample.jpg' else []
    assert audit['images_without_class'].items == stray
    others = {name.rpartition('/')[2] for name in audit['other_files'].items}
    assert others == {'readme.txt', beside} - {'', *stray}


@pytest.mark.parametrize(
    'folders',
    [
        {'training_set': 'train', 'test_set': 'test'},
        {'Train Set': 'train', 'Dev': 'validation'},
        {'train2017': 'train', 'val2017': 'validation'},
        {'Training': 'train', 'PublicTest': 'validation', 'PrivateTest': 'test'},
    ],
)
def test_splits_go_by_many_names(tmp_path, folders):
    found, _ = labelled(write(tmp_path, {f'{folder}/{label}/1.jpg': b'' for folder in folders for label in 'ab'}))
    assert found == {f'{folder}/{label}/1.jpg': (label, split) for folder, split in folders.items() for label in 'ab'}


def test_splits_that_look_like_classes_are_refused(tmp_path):
    splits = {f'{folder}/{label}/1.jpg': b'' for folder in ('train', 'test') for label in ('cat', 'dog')}
    more = write(tmp_path / 'more', {**splits, 'images_extra/1.jpg': b''})
    with pytest.raises(
        DataError, match=r'splits \(test, train\) beside others \(images_extra\)\. Take.*right into them'
    ):
        labelled(more)
    unknown = write(tmp_path / 'unknown', {name.replace('/', '_part/', 1): b'' for name in splits})
    with pytest.raises(DataError, match=r'test_part, train_part hold the same folders, cat, dog, .*name them train'):
        labelled(unknown)


@pytest.mark.parametrize('below', [('side_left', 'side_right'), ('1', '2')])
def test_classes_may_all_hold_the_same_folders_and_the_audit_says_so(tmp_path, below):
    found, audit = labelled(write(tmp_path, {f'{label}/{folder}/1.jpg': b'' for label in 'ab' for folder in below}))
    assert found == {f'{label}/{folder}/1.jpg': (label, None) for label in 'ab' for folder in below}
    assert audit['alike_folders'].items == ['a', 'b']


def test_a_class_may_be_called_train(tmp_path):
    found, _ = labelled(write(tmp_path, {'bus/1.jpg': b'', 'train/1.jpg': b'', 'train/steam/2.jpg': b''}))
    assert {label for label, _ in found.values()} == {'bus', 'train'}


def test_plain_class_folders_have_no_split(tmp_path):
    folder = write(tmp_path, {'cat/a.jpg': b'', 'dog/deep/b.jpg': b'', 'stray.jpg': b''})
    audit = Audit('a set')
    with open_raw(folder) as raw:
        found = read_folders(raw, audit)
    assert {(image.label, image.split) for image in found.images} == {('cat', None), ('dog', None)}
    assert audit['images_without_class'].items == ['stray.jpg']


def test_fewer_than_two_class_folders_are_refused(tmp_path):
    with open_raw(write(tmp_path, {'a.jpg': b'', 'b.jpg': b''})) as raw, pytest.raises(DataError, match='expected'):
        read_folders(raw, Audit('a set'))
