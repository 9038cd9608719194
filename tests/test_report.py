"""The report: its page shows what metrics.json holds, stays one safe file, and fits nothing on the test split."""

import dataclasses
import html.parser
import json
import pathlib
import re
import shutil
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk

from common.config import load_run
from common.data.dataset import Split
from common.errors import UsageError
from common.evaluation import plots
from common.evaluation.calibration import conformal_threshold, fit_temperature
from common.evaluation.judge import _check_same_examples
from common.evaluation.metrics import bootstrap_intervals
from common.evaluation.paired import paired_differences
from common.evaluation.predict import explain
from common.evaluation.report import measures
from common.evaluation.report.classification import classification_report
from common.evaluation.report.gallery import cards, overlay, right_and_wrong
from common.evaluation.report.page import label, threshold_text, write_page
from common.evaluation.report.run import averaged_section, run_section
from common.evaluation.restore import restore
from common.findings import Card, Evidence, Gallery, Report, Section, Table
from common.history import read_history
from common.task import Task
from lesion.configs import ham10000
from lesion.task import Lesion
from tests.conftest import Trained, run_script

NAMES = ['mel', '<script>alert(1)</script>', '"quoted" & $x$', "o'clock"]


class Reader(html.parser.HTMLParser):
    """Tags, attributes, and the text of every table row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(name, value or '') for name, value in attributes]
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self._in_cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data


def assert_self_contained(text: str) -> Reader:
    reader = Reader(text)
    assert reader.tags.isdisjoint({'script', 'iframe', 'object', 'embed', 'form', 'base'})
    for name, value in reader.attributes:
        assert not name.startswith('on'), name
        if name in ('src', 'href', 'srcset', 'action', 'data'):
            assert value.startswith(('data:', '#')), value[:80]
    assert not re.search(r'https?://|url\(|@import', re.sub(r'data:image/\w+;base64,[\w+/=]+', '', text))
    return reader


def example(seed: int, size: int = 240, shift: int = 0) -> tuple[np.ndarray, Split]:
    """Logits and a split whose classes and file names are hostile."""
    random = np.random.default_rng(seed)
    labels = ((np.arange(size) + shift) % len(NAMES)).astype(np.int32)
    logits = random.normal(0, 1.5, (size, len(NAMES))) + 2 * np.eye(len(NAMES))[labels]
    images = random.integers(0, 256, (size, 6, 8, 3), np.uint8)
    names = [f'<img src=x onerror=alert({row})>.jpg' for row in range(size)]
    records = pd.DataFrame({'name': names, 'group': names, 'sex': random.choice(['<b>m', 'f', None], size)})
    return logits, Split(name='test', columns={'image': images, 'label': labels}, records=records)


def report_of(directory: pathlib.Path, test: tuple[np.ndarray, Split], validation: tuple[np.ndarray, Split]) -> Report:
    evidence = Evidence(
        predictions={'logits': test[0]},
        split=test[1],
        calibration=({'logits': validation[0]}, validation[1]),
        directory=directory,
        explain=lambda rows, classes: [np.ones((len(rows), 2, 2), np.float32)],
    )
    return classification_report(evidence, NAMES, ['mel'], {'sex': test[1].records['sex']})


def page_of(report: Report, directory: pathlib.Path) -> str:
    return write_page(report, directory, title='<title>', subtitle='a < b', notice='No diagnosis.').read_text()


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> tuple[Report, str, pathlib.Path]:
    """A report, its page, and the folder with both."""
    directory = tmp_path_factory.mktemp('report')
    report = report_of(directory, example(0), example(1))
    return report, page_of(report, directory), directory


def test_hostile_names_stay_text_and_the_file_needs_no_network(made):
    _, text, directory = made
    reader = assert_self_contained(text)
    assert any('<script>alert(1)</script>' in row[0] for row in reader.rows)
    assert any('onerror=alert(' in piece for piece in reader.texts)
    assert any(row[0] == '<b>m' for row in reader.rows)
    assert 'No diagnosis.' in text
    for name in ('confusion_matrix', 'roc_curves', 'precision_recall_curves', 'reliability'):
        assert (directory / f'{name}.png').stat().st_size > 1000


def test_nothing_is_fitted_on_the_split_that_is_judged(made, tmp_path):
    def fitted(metrics):
        thresholds = [row['threshold'] for row in metrics['concerns']['mel']['thresholds']]
        return metrics['temperature_scaling']['temperature'], metrics['prediction_sets']['threshold'], thresholds

    plain = made[0].metrics
    relabelled = report_of(tmp_path, example(0, shift=1), example(1)).metrics
    other = report_of(tmp_path, example(0), example(2)).metrics
    assert fitted(plain) == fitted(relabelled)
    assert plain['prediction_sets']['coverage'] != relabelled['prediction_sets']['coverage']
    assert all(here != there for here, there in zip(fitted(plain), fitted(other), strict=True))
    logits, split = example(1)
    assert fitted(plain)[0] == fit_temperature(logits, split.columns['label'])
    assert fitted(plain)[1] == conformal_threshold(softmax(logits, axis=1), split.columns['label'], 0.9)


def grouped(split: Split) -> tuple[Split, np.ndarray]:
    """The same split with three images of the same class to a lesion, and the lesions."""
    groups = np.arange(len(split)) % 80
    return dataclasses.replace(split, records=split.records.assign(group=groups)), groups


def test_intervals_take_the_images_of_a_group_together(tmp_path):
    logits, split = example(0)
    split, groups = grouped(split)
    probabilities, labels = softmax(logits, axis=1), split.columns['label']
    metrics = report_of(tmp_path, (logits, split), example(1)).metrics
    assert metrics['intervals_95'] == bootstrap_intervals(probabilities, labels, groups)
    recalls = [row['recall_interval_95'] for row in metrics['per_class'].values()]
    assert recalls == measures.recall_intervals(probabilities, labels, groups)
    for name, rows in split.records.fillna('unknown').groupby('sex').indices.items():
        found = metrics['subgroups']['sex'][name]
        few = len(np.unique(groups[rows])) < 30
        interval = bootstrap_intervals(probabilities[rows], labels[rows], groups[rows])['balanced_accuracy']
        assert (found['few'], found['interval_95']) == (few, None if few else interval)
    assert not all(row['few'] for row in metrics['subgroups']['sex'].values())


def test_sentences_say_what_the_figures_say(tmp_path):
    labels = np.repeat([0, 3], [5, 4]).astype(np.int32)
    logits, split = example(0, size=9)
    split = dataclasses.replace(split, columns={**split.columns, 'label': labels})
    said = 3.0 * np.eye(4)[[0, 0, 3, 3, 3, 3, 3, 3, 0]]
    sections = report_of(tmp_path, (said, split), example(1)).sections
    cells = [text.get_text().partition('\n')[0] for text in sections[0].parts[0].figure.axes[0].texts]
    assert cells[:4] == ['2', '0', '0', '3']  # of mel
    assert "most frequent confusion: 3 of the 5 images of mel were taken for o'clock." in sections[0].parts[0].caption
    for factor, words in ((8.0, ', mends the'), (0.5, ', mends the'), (-1.0, ', does not mend the')):
        logits, split = example(0)
        unsure = factor * logits if factor > 0 else logits
        other, validation = example(1, shift=factor < 0)  # wrong answers there are no measure of those here
        section = report_of(tmp_path, (unsure, split), (abs(factor) * other, validation)).sections[2]
        assert words in section.parts[1].caption


def test_temperature_and_prediction_sets_do_what_they_say(made):
    (logits, split), metrics = example(0), made[0].metrics
    probabilities, labels = softmax(logits, axis=1), split.columns['label']
    scaling = metrics['temperature_scaling']
    for name, temperature in (('before', 1.0), ('after', scaling['temperature'])):
        expected = sk.log_loss(labels, softmax(logits / temperature, axis=1))
        assert scaling[f'log_loss_{name}'] == pytest.approx(expected)
    sets = metrics['prediction_sets']
    held = probabilities >= sets['threshold']
    for index, name in enumerate(NAMES):
        rows, found = labels == index, sets['per_class'][name]
        assert found['coverage'] == pytest.approx(held[rows, index].mean())
        assert found['mean_size'] == pytest.approx(held[rows].sum(axis=1).mean())


def test_without_a_validation_split_nothing_is_fitted(tmp_path):
    logits, split = example(0)
    evidence = Evidence(predictions={'logits': logits}, split=split, calibration=None, directory=tmp_path)
    report = classification_report(evidence, NAMES, ['mel'], {})
    metrics = report.metrics
    assert 'There are none here' in page_of(report, tmp_path)
    assert metrics['concerns']['mel']['thresholds'] == []
    assert not {'temperature_scaling', 'prediction_sets'} & set(metrics)


def test_intervals_of_recall_are_wilsons_over_groups():
    labels = np.repeat([0, 1, 2], [9, 4, 6])
    found = np.array([0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 1, 1, 1, 0, 2, 0, 0, 2, 2])
    apart = measures.recall_intervals(np.eye(4)[found], labels, np.arange(19))
    for interval, right, count in zip(apart, (6, 4, 3), (9, 4, 6), strict=False):
        ends = stats.binomtest(right, count).proportion_ci(0.95, method='wilson')
        np.testing.assert_allclose(interval, ends, rtol=1e-6)
    assert apart[3] is None
    pairs = measures.recall_intervals(np.eye(4)[found], labels, np.r_[np.arange(13), 20, 20, 21, 21, 22, 22])
    assert pairs[:2] == apart[:2]
    assert pairs[2][0] < apart[2][0] < apart[2][1] < pairs[2][1]  # six images of three lesions


def test_intervals_of_recall_keep_between_none_and_all():
    for count in range(1, 200):
        for right in (0, 1):
            ((low, high), _) = measures.recall_intervals(
                np.tile(np.eye(2)[1 - right], (count, 1)), np.zeros(count, int), np.arange(count)
            )
            assert 0 <= low < high <= 1


def test_intervals_of_recall_hold_the_truth_of_groups_of_unequal_sizes():
    random, inside = np.random.default_rng(0), 0
    for _ in range(500):
        groups = np.repeat(np.arange(60), random.geometric(0.1, 60))
        right = (random.random(60) < 0.7)[groups]  # the images of a group are as good as copies
        ((low, high), _) = measures.recall_intervals(np.eye(2)[1 - right], np.zeros(len(groups), int), groups)
        inside += low <= 0.7 <= high
    assert inside / 500 == pytest.approx(0.95, abs=0.03)


def test_figures_of_the_page_are_those_of_the_metrics(made):
    report, text, _ = made
    reader = Reader(text)
    metrics = json.loads(json.dumps(report.metrics, allow_nan=False))
    rows = {row[0]: row for row in reader.rows}

    for name in report.headlines:
        assert f'{metrics[name]:.3f}' in reader.texts
        if name in metrics['intervals_95']:
            assert '{:.3f} to {:.3f}'.format(*metrics['intervals_95'][name]) in reader.texts
    assert set(report.headlines) - set(metrics['intervals_95']) == {'expected_calibration_error'}
    for name, values in metrics['per_class'].items():
        shown = [f'{values[key]:.3f}' for key in ('precision', 'recall', 'f1', 'roc_auc')]
        shown.insert(2, '{:.3f} to {:.3f}'.format(*values['recall_interval_95']))
        assert [name, *shown, str(values['support'])] in reader.rows
        sets = metrics['prediction_sets']['per_class'][name]
        assert [name, f'{sets["coverage"]:.3f}', f'{sets["mean_size"]:.3f}', str(sets['examples'])] in reader.rows
    scaling = metrics['temperature_scaling']
    assert rows['after temperature scaling'][1:] == [
        f'{scaling["expected_calibration_error_after"]:.3f}',
        f'{scaling["log_loss_after"]:.3f}',
    ]
    for found in metrics['concerns']['mel']['thresholds']:
        counts = [str(found[key]) for key in ('found', 'missed', 'false_alarms')]
        shown = [threshold_text(found['threshold']), *(f'{found[key]:.3f}' for key in ('sensitivity', 'specificity'))]
        assert [f'{found["wanted_sensitivity"]:.0%} found', *shown, *counts] in reader.rows
    for name, values in metrics['subgroups']['sex'].items():
        assert rows[name][:4] == [
            name,
            str(values['examples']),
            f'{values["accuracy"]:.3f}',
            f'{values["balanced_accuracy"]:.3f}',
        ]


def test_decisions_at_a_threshold_are_counted_by_hand():
    random = np.random.default_rng(0)
    positives, there = random.random(300) < 0.3, random.random(200) < 0.3
    scores, scores_there = random.normal(size=300) + positives, random.normal(size=200) + there
    found = measures.finding_one_class(scores, positives, (scores_there, there))
    for row in found['thresholds']:
        assert np.mean(scores_there[there] >= row['threshold']) >= row['wanted_sensitivity']
        (spared, alarms), (missed, hits) = sk.confusion_matrix(positives, scores >= row['threshold'])
        assert (row['missed'], row['found'], row['false_alarms']) == (missed, hits, alarms)
        assert row['sensitivity'] == pytest.approx(hits / (hits + missed))
        assert row['specificity'] == pytest.approx(spared / (spared + alarms))


@pytest.mark.parametrize(
    ('value', 'text'), [(8.9971e-05, '8.99e-05'), (0.12399, '0.123'), (0.5, '0.500'), (0.99999, '0.999'), (0.0, '0.00')]
)
def test_a_threshold_is_shown_so_that_it_can_be_applied(value, text):
    assert threshold_text(value) == text
    assert float(text) <= value


def test_subgroups_agree_with_pandas_and_scikit_learn():
    logits, split = example(3)
    probabilities, labels = softmax(logits, axis=1), split.columns['label']
    age = pd.Series(np.random.default_rng(0).choice([1.0, 30.0, 45.0, np.nan], len(labels), p=[0.05, 0.4, 0.5, 0.05]))
    records = split.records.assign(age=age, localization='back').replace({'sex': {'f': 'unknown'}})
    partitions = Lesion.subgroups(None, records)
    assert list(partitions) == ['age', 'sex', 'site']
    found = measures.subgroups(probabilities, labels, records['group'].to_numpy(), partitions)
    assert list(found['age']) == ['under 20', '20 to 39', '40 to 59', 'unknown']
    assert list(found['sex']) == ['<b>m', 'unknown']
    assert found['sex']['unknown']['examples'] == (records['sex'] != '<b>m').sum()
    table = pd.DataFrame({'age': age, 'label': labels, 'predicted': probabilities.argmax(1)})
    for name, low in (('under 20', 1.0), ('20 to 39', 30.0), ('40 to 59', 45.0)):
        rows, values = table[table.age == low], found['age'][name]
        assert values['examples'] == len(rows)
        assert values['accuracy'] == pytest.approx((rows.label == rows.predicted).mean())
        assert values['balanced_accuracy'] == pytest.approx(sk.balanced_accuracy_score(rows.label, rows.predicted))
        assert values['few'] == (len(rows) < 30) == (values['interval_95'] is None)
    low, high = found['age']['40 to 59']['interval_95']
    assert low < found['age']['40 to 59']['balanced_accuracy'] < high
    edges = pd.DataFrame({'age': [0.0, 19.0, 20.0, 40.0, 60.0, 80.0, np.nan]})
    bands = ['under 20', 'under 20', '20 to 39', '40 to 59', '60 to 79', '80 and older']
    assert Lesion.subgroups(None, edges)['age'].to_list()[:-1] == bands
    patients = measures.subgroups(probabilities, labels, np.arange(len(labels)) % 29, partitions)
    assert all(row['few'] and row['interval_95'] is None for row in patients['age'].values())


def test_galleries_take_the_surest_of_every_class_and_the_surest_mistakes():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.95, 0.05], [0.3, 0.7], [0.99, 0.01]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    right, wrong = right_and_wrong(probabilities, labels, 3)
    assert right.tolist() == [5, 0, 2]
    assert wrong.tolist() == [3, 4]
    assert [rows.tolist() for rows in right_and_wrong(probabilities[:3], labels[:3], 9)] == [[0, 1, 2], []]


def test_a_card_says_what_is_true_and_what_was_said_and_shows_what_spoke_for_that():
    asked = []

    def explain(rows, classes):
        asked.append((rows.tolist(), classes.tolist()))
        return [np.zeros((len(rows), 2, 2))]

    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 0])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    (card,) = cards(images, np.array([1]), probabilities, labels, ['a.jpg', 'b.jpg'], ['cat', 'dog'], explain)
    assert asked == [([1], [1])]
    assert card.title == 'true class: cat'
    assert card.lines == ['predicted dog, 80.0%', 'probability of cat: 20.0%', 'b.jpg']


@pytest.mark.parametrize('name', ['mel', 'MEL', 'Melanoma', 'malignant'])
def test_what_is_malign_has_a_section_of_its_own(tmp_path, name):
    info = {'class_names': ['benign', name], 'class_counts': [1, 1], 'pixel_mean': [0.0], 'pixel_deviation': [1.0]}
    (logits, split), config = example(0, size=8), ham10000.get_config()
    split = dataclasses.replace(split, columns={**split.columns, 'label': np.arange(8) % 2})
    evidence = Evidence(predictions={'logits': logits[:, :2]}, split=split, calibration=None, directory=tmp_path)
    assert list(Lesion(config, info).report(evidence).metrics['concerns']) == [name]


def test_an_overlay_leaves_cold_places_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    shown = overlay(image, heat)
    np.testing.assert_array_equal(shown[1:], image[1:])
    assert (shown[0, 0] != image[0, 0]).any()


def test_undefined_figures_are_dashes_and_metrics_read_as_people_write_them(tmp_path):
    table = Table(columns=('a', 'b', 'c'), rows=[('x', None, 12345)])
    card = Card(images=[np.zeros((2, 2, 3), np.uint8)], title='t', lines=['l'])
    sections = [Section('S', ['text', table, Gallery(cards=[card], caption='c')])]
    path = write_page(
        Report(metrics={'macro_roc_auc': 0.5}, sections=sections), tmp_path, title='t', subtitle='s', notice='n'
    )
    reader = assert_self_contained(path.read_text())
    assert ['x', '–', '12,345'] in reader.rows
    assert 'Macro ROC AUC' in reader.texts
    assert label('naive_rmse') == 'Naive RMSE'


# Through the scripts.


@pytest.fixture
def runs(trained: Trained, tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A finished run, and one of another seed."""
    first, second = shutil.copytree(trained.workdir, tmp_path / 'first'), tmp_path / 'second'
    flags = (*trained.arguments, '--config.seed=1', f'--workdir={second}')
    ended = run_script('train', *flags)
    assert ended.status == 0, ended.stderr
    return first, second


def test_evaluation_writes_the_same_report_twice_and_averages_runs(script, trained, runs):
    first, second = runs
    probabilities = []
    for run in runs:
        assert script('evaluate', f'--workdir={run}').status == 0
        probabilities.append(pd.read_csv(run / 'evaluation/test/predictions.csv').iloc[:, 3:].to_numpy())
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.01

    before = (first / 'evaluation/test/report.html').read_bytes()
    assert script('evaluate', f'--workdir={first}').status == 0
    assert (first / 'evaluation/test/report.html').read_bytes() == before
    reader = assert_self_contained(before.decode())
    assert any('no diagnosis' in piece for piece in reader.texts)
    titles = [piece for piece in reader.texts if piece.startswith(('Which', 'Not missing', 'Results by', 'How '))]
    assert {'Which classes are confused', 'Not missing mel', 'Results by subgroup', 'How first was trained'} <= set(
        titles
    )

    with mock.patch('common.evaluation.judge.explain', wraps=explain) as explained:
        ended = script('evaluate', f'--workdir={first},{second}')
    assert ended.status == 0, ended.stderr
    assert {call.args[0].workdir for call in explained.call_args_list} == {first, second}
    together = first / 'evaluation/test-ensemble-of-2'
    assert str(together) in ended.stdout
    averaged = pd.read_csv(together / 'predictions.csv')
    np.testing.assert_allclose(averaged.iloc[:, 3:], np.mean(probabilities, axis=0), atol=1.1e-6)
    metrics = json.loads((together / 'metrics.json').read_text())
    assert [run['workdir'] for run in metrics['runs']] == [str(first), str(second)]
    assert metrics['accuracy'] == pytest.approx((averaged.label == averaged.predicted).mean())
    assert_self_contained((together / 'report.html').read_text())

    images = ','.join(str(next(trained.raw_dir.rglob(f'{name}.jpg'))) for name in averaged.image[:3])
    output, broken = first / 'predicted.csv', first / 'broken.jpg'
    broken.write_bytes(b'no image')
    ended = script('predict', f'--workdir={first},{second}', f'--inputs={images},{broken}', f'--output={output}')
    assert ended.status == 0, ended.stderr
    assert ended.stdout.count(f'{broken}: not a readable image') == 1  # read for both runs at once
    np.testing.assert_allclose(pd.read_csv(output).iloc[:, 3:], averaged.iloc[:3, 3:], atol=1.1e-6)


def test_two_runs_are_compared_on_the_same_examples(script, runs):
    plain = []
    for run in runs:
        assert script('evaluate', f'--workdir={run}', '--views=flip').status == 0
        plain.append(json.loads((run / 'evaluation/test/metrics.json').read_text()))
    averaged = [figures['test_time_augmentation'] for figures in plain]
    for figures, more in ((averaged, ['--views=flip']), (plain, [])):
        ended = script('evaluate', f'--workdir={runs[0]}', f'--against={runs[1]}', *more)
        assert ended.status == 0, ended.stderr
        title, *lines = ended.stdout.splitlines()
        assert str(runs[1]) in title
        assert {line.split()[0] for line in lines} == set(figures[0]['intervals_95'])
        for name, difference, low, high in (re.sub(r'[\[\],]', '', line).split() for line in lines):
            assert float(difference) == pytest.approx(figures[0][name] - figures[1][name], abs=6e-5)
            assert float(low) <= float(high)
    ended = script('evaluate', f'--workdir={runs[0]}', f'--against={runs[0]}')
    assert ended.stdout.count('+0.0000  [+0.0000, +0.0000]') == len(lines)


def test_runs_on_other_images_or_of_a_task_without_comparison_are_not_compared(trained):
    task, (logits, split) = restore(trained.workdir).task, example(0)
    other = dataclasses.replace(split, records=split.records.iloc[::-1].reset_index(drop=True))
    with pytest.raises(UsageError, match='the two test splits differ in their images'):
        task.differences(({'logits': logits}, split), ({'logits': logits}, other))
    with pytest.raises(UsageError, match="the task 'lesion' has no comparison"):
        Task.differences(task, ({}, split), ({}, split))


def test_differences_are_of_whole_groups(trained):
    task, (logits, split) = restore(trained.workdir).task, example(0)
    split, groups = grouped(split)
    found = task.differences(({'logits': logits}, split), ({'logits': logits[::-1]}, split))
    sides = (softmax(logits, axis=1), softmax(logits[::-1], axis=1))
    assert found == paired_differences(*sides, split.columns['label'], groups)


def test_figures_averaged_over_views_stand_right_of_the_plain_ones():
    plain, averaged = (
        Report(metrics={'accuracy': value, 'intervals_95': {'accuracy': [value - 0.1, value + 0.1]}})
        for value in (0.6, 0.7)
    )
    (table,) = averaged_section('flip', plain, averaged).parts
    assert table.rows == [('Accuracy', '0.600 (0.500 to 0.700)', '0.700 (0.600 to 0.800)')]


def test_learning_curves_say_where_training_and_validation_cannot_be_compared(trained):
    balanced = restore(trained.workdir)
    config = balanced.record.config.copy_and_resolve_references()
    config.data.sampling = 'uniform'
    uniform = dataclasses.replace(balanced, record=dataclasses.replace(balanced.record, config=config))
    captions = [run_section(run, 1).parts[0].caption for run in (balanced, uniform)]
    assert ['all classes equally often' in caption for caption in captions] == [True, False]


def test_learning_curves_mark_the_checkpoint_that_is_judged(trained):
    metric = load_run(trained.workdir).config.monitor.metric
    best = max(record[f'validation/{metric}'] for record in read_history(trained.workdir) if 'epoch' in record)
    legend = run_section(restore(trained.workdir), 1).parts[0].figure.axes[-1].get_legend()
    assert legend.get_texts()[-1].get_text().startswith(f'Best: {best:.4g} at')


def test_so_do_those_that_training_draws(trained, script, tmp_path):
    run = shutil.copytree(trained.workdir, tmp_path / 'run')
    with mock.patch('common.evaluation.plots.learning_curves', wraps=plots.learning_curves) as drawn:
        assert script('train', *trained.arguments, f'--workdir={run}').status == 0
    assert drawn.call_args.kwargs == {'larger_is_better': True}


def changed(run: pathlib.Path, copy: pathlib.Path, change) -> pathlib.Path:
    shutil.copytree(run, copy)
    record = json.loads((copy / 'config.json').read_text())
    change(record)
    (copy / 'config.json').write_text(json.dumps(record))
    return copy


def test_files_are_read_for_every_run_of_an_ensemble_as_it_was_trained(script, trained, tmp_path):
    def crop(record):
        record['config']['dataset']['resize'] = 'crop'

    other, said = changed(trained.workdir, tmp_path / 'other', crop), []
    for workdir in (trained.workdir, other, f'{trained.workdir},{other}'):
        output = tmp_path / 'out.csv'
        ended = script('predict', f'--workdir={workdir}', f'--inputs={trained.raw_dir}/*/*0.jpg', f'--output={output}')
        assert ended.status == 0, ended.stderr
        said.append(pd.read_csv(output).iloc[:, 3:].to_numpy())
    assert np.abs(said[0] - said[1]).max() > 1e-3
    np.testing.assert_allclose(said[2], np.mean(said[:2], axis=0), atol=1e-6)


def test_runs_of_other_classes_or_another_split_are_not_averaged(script, trained, tmp_path):
    def rename(record):
        record['info']['class_names'][0] = 'wart'

    other = changed(trained.workdir, tmp_path / 'other', rename)
    for name, more in (('evaluate', []), ('predict', [f'--inputs={next(trained.raw_dir.rglob("*.jpg"))}'])):
        ended = script(name, f'--workdir={trained.workdir},{other}', *more)
        assert ended.status == 2
        assert f'{other} and {trained.workdir} do not go together' in ended.stderr
        assert 'they differ in class_names' in ended.stderr

    flags = ('--config=lesion/configs/demo.py', '--config.dataset.split_seed=1')
    raw_and_data = (f'--raw_dir={trained.raw_dir}', f'--data_dir={trained.data_dir}')
    assert script('prepare', *flags, *raw_and_data).status == 0

    def split_again(record):
        config = record['config']
        config['dataset']['split_seed'] = 1
        record['info'] = json.loads(json.dumps(Lesion.load(ConfigDict(config), trained.data_dir).info))

    other = changed(trained.workdir, tmp_path / 'resplit', split_again)
    ended = script('evaluate', f'--workdir={trained.workdir},{other}')
    assert ended.status == 2
    assert 'splits differ in their examples' in ended.stderr


def test_runs_that_share_the_test_split_alone_are_not_averaged(trained):
    run = restore(trained.workdir)
    splits = Lesion.load(run.record.config, trained.data_dir).splits
    for name, split in splits.items():
        other = dataclasses.replace(split, records=split.records.iloc[::-1].reset_index(drop=True))
        with pytest.raises(UsageError, match=f'their {name} splits differ'):
            _check_same_examples(splits, {**splits, name: other}, run, run)


def test_walking_forward_takes_one_run(script, trained):
    ended = script('evaluate', f'--workdir={trained.workdir},{trained.workdir}', '--walk_forward=2')
    assert ended.status == 2
    assert 'give one --workdir' in ended.stderr
