"""Test-time augmentation: the views themselves, their average, and the figures beside the plain ones."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from jax.scipy.special import logsumexp
from scipy.special import softmax

from common.classification import ClassificationTask
from common.data.dataset import Split
from common.evaluation.calibration import fit_temperature
from common.evaluation.judge import judge
from common.evaluation.predict import predict
from common.evaluation.restore import restore
from common.evaluation.views import CROP, VIEWS, dihedral, flip, ten_crop
from common.members import Members, average
from common.task import Task
from tests.conftest import Trained, run_script

RANDOM = np.random.default_rng(0)


def images(height: int = 12, width: int = 12, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (2, height, width, channels), np.uint8)


def test_the_mirror_image_of_the_mirror_image_is_the_image() -> None:
    image = images(5, 8)
    plain, mirrored = flip(image)
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(mirrored, image[:, :, ::-1])
    np.testing.assert_array_equal(flip(mirrored)[1], image)


def test_ten_crops_are_five_places_and_their_mirror_images_at_full_size() -> None:
    image = images(12, 18)
    crops = ten_crop(image)
    assert [crop.shape for crop in crops] == [image.shape] * 10
    height, width = round(12 * CROP), round(18 * CROP)
    places = [(0, 0), (0, 18 - width), (12 - height, 0), (12 - height, 18 - width)]
    places.append(((12 - height) // 2, (18 - width) // 2))
    for number, (y, x) in enumerate(places):
        expected = enlarge(enlarge(image[:, y : y + height, x : x + width].astype(float), 12, axis=1), 18, axis=2)
        np.testing.assert_allclose(crops[2 * number], expected, atol=1e-3)
        np.testing.assert_array_equal(crops[2 * number + 1], crops[2 * number][:, :, ::-1])


def enlarge(values: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Linear interpolation between the centres of pixels, constant beyond the outermost."""
    short = values.shape[axis]
    centres = (np.arange(length) + 0.5) * short / length - 0.5
    return np.apply_along_axis(lambda line: np.interp(centres, np.arange(short), line), axis, values)


def test_dihedral_views_of_a_square_are_its_eight_symmetries() -> None:
    image = images(6, 6)
    views = {np.asarray(view).tobytes() for view in dihedral(image)}
    assert len(views) == 8
    for view in dihedral(image):  # a group: from each of them, the same eight
        assert {np.asarray(other).tobytes() for other in dihedral(view)} == views
    assert np.ascontiguousarray(image.swapaxes(1, 2)).tobytes() in views


def test_dihedral_views_of_a_rectangle_keep_its_shape() -> None:
    image = images(4, 6)
    assert [view.shape for view in dihedral(image)] == [image.shape] * 4
    assert len({np.asarray(view).tobytes() for view in dihedral(image)}) == 4


@pytest.mark.parametrize('name', VIEWS)
def test_views_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    image = images()
    together, alone = jax.jit(VIEWS[name])(image), jax.jit(VIEWS[name])(image[1:])
    for both, one in zip(together, alone, strict=True):
        # Resizing is a product, and a processor may sum it in another order for another number of rows.
        np.testing.assert_allclose(both[1:], one, rtol=1e-6, atol=1e-6 * np.abs(one).max())


def test_the_average_is_that_of_probabilities() -> None:
    logits = RANDOM.normal(0, 5, (10, 3, 7)).astype(np.float32)
    averaged = ClassificationTask.average(None, {'logits': logits})['logits']  # type: ignore[arg-type]
    np.testing.assert_allclose(softmax(averaged, -1), softmax(logits, -1).mean(0), atol=1e-6)
    np.testing.assert_allclose(logsumexp(averaged, axis=-1), 0, atol=1e-5)


def test_members_of_an_ensemble_are_averaged_as_views_and_runs_are() -> None:
    logits, loss = RANDOM.normal(0, 5, (2, 6, 7)).astype(np.float32), RANDOM.random((2, 6)).astype(np.float32)

    class Average:
        average = ClassificationTask.average

    said = [{'logits': one, 'loss': of_one} for one, of_one in zip(logits, loss, strict=True)]
    together = Members([0, 1], by_group=False).combine(Average(), said, [np.arange(6)] * 2)  # type: ignore[arg-type]
    np.testing.assert_allclose(softmax(together['logits'], -1), softmax(logits, -1).mean(0), atol=1e-6)
    np.testing.assert_allclose(together['loss'], loss.mean(0), rtol=1e-6)
    assert average(Average(), said[:1]) is said[0]  # type: ignore[arg-type]


def test_without_views_of_its_own_a_task_refuses_them(trained: Trained) -> None:
    run = restore(trained.workdir)
    with pytest.raises(Exception, match="--views=flip: the task 'lesion' has no views"):
        Task.views(run.task, 'flip', {})


def test_evaluation_averages_the_model_over_views(trained: Trained) -> None:
    run = restore(trained.workdir)
    pixels = images(16, 16)[[0, 1, 1]]
    split = Split(name='inputs', columns={'image': pixels}, records=pd.DataFrame({'name': ['a', 'b', 'c']}))
    mirrored = Split(name='inputs', columns={'image': pixels[:, :, ::-1].copy()}, records=split.records)
    both = [run.task.probabilities(predict(run, part)) for part in (split, mirrored)]
    averaged = run.task.probabilities(predict(run, split, views='flip'))
    np.testing.assert_allclose(averaged, np.mean(both, axis=0), atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_averaged_figures_stand_beside_the_plain_ones(trained: Trained, tmp_path: pathlib.Path) -> None:
    run = shutil.copytree(trained.workdir, tmp_path / 'run')
    workdir, folder = f'--workdir={run}', run / 'evaluation' / 'validation'
    ended = run_script('evaluate', workdir, '--split=validation', f'--data_dir={trained.data_dir}')
    assert ended.status == 0, ended.stderr
    plain = json.loads((folder / 'metrics.json').read_text())
    assert 'test_time_augmentation' not in plain
    ended = run_script('evaluate', workdir, '--split=validation', f'--data_dir={trained.data_dir}', '--views=dihedral')
    assert ended.status == 0, ended.stderr
    result = json.loads((folder / 'metrics.json').read_text())
    averaged = result.pop('test_time_augmentation')
    assert result == plain
    assert averaged['views'] == 'dihedral'
    assert set(averaged['intervals_95']) == set(plain['intervals_95'])
    assert averaged['log_loss'] != plain['log_loss']
    table = pd.read_csv(folder / 'dihedral' / 'predictions.csv')
    assert averaged['accuracy'] == pytest.approx((table.label == table.predicted).mean())
    assert 'averaged over views (dihedral)' in ended.stdout
    page = (folder / 'report.html').read_text()
    for figures in (plain, averaged):
        low, high = figures['intervals_95']['accuracy']
        assert f'<td>{figures["accuracy"]:.3f} ({low:.3f} to {high:.3f})</td>' in page
        assert f'{figures["accuracy"]:.4f}  [{low:.4f}, {high:.4f}]' in ended.stdout


def test_what_is_fitted_for_views_is_fitted_on_views_of_the_validation_split(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(trained.workdir, tmp_path / 'run')
    folder, _ = judge([copy], 'test', 'best', trained.data_dir, views='flip')
    result, run = json.loads((folder / 'metrics.json').read_text()), restore(copy)
    validation = type(run.task).load(run.record.config, trained.data_dir).splits['validation']
    for views, figures in ((None, result), ('flip', result['test_time_augmentation'])):
        said = predict(run, validation, views=views)['logits']
        expected = fit_temperature(said, validation.columns['label'])
        assert figures['temperature_scaling']['temperature'] == pytest.approx(expected, rel=1e-6)
    assert figures['temperature_scaling'] != result['temperature_scaling']
