"""Figures show the numbers they are given, stay legible, and are saved whole with equal bytes."""

import importlib
import sys

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from common.evaluation import plots
from common.evaluation.calibration import reliability_curve

NAMES = ['actinic keratosis', 'benign keratosis-like lesion', 'melanoma']
HISTORY = [
    {'epoch': 1, 'train/loss': 1.0, 'validation/loss': 1.1, 'validation/balanced_accuracy': float('nan')},
    {'epoch': 1.5, 'train/loss': 0.7},
    {'epoch': 2, 'train/loss': 0.5, 'validation/loss': 0.9, 'validation/balanced_accuracy': 0.7},
    {'epoch': 3, 'train/loss': 0.2, 'validation/loss': 1.2, 'validation/balanced_accuracy': 0.4},
]


def simulate(num_classes=3):
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=200)
    logits = rng.normal(size=(200, num_classes)) + np.eye(num_classes)[labels]
    return special.softmax(logits, axis=1), labels


def one_of_each():
    probabilities, labels = simulate()
    curve = reliability_curve(probabilities, labels)
    return {
        'confusion_matrix': plots.confusion_matrix(np.arange(9).reshape(3, 3), NAMES),
        'learning_curves': plots.learning_curves(HISTORY, 'balanced_accuracy'),
        'roc_curves': plots.roc_curves(probabilities, labels, NAMES),
        'precision_recall_curves': plots.precision_recall_curves(probabilities, labels, NAMES),
        'reliability_diagram': plots.reliability_diagram(curve, curve),
    }


def test_equal_figures_are_equal_files_without_a_date(tmp_path):
    written = []
    for folder in ('first', 'second'):
        (tmp_path / folder).mkdir()
        for name, figure in one_of_each().items():
            plots.save(figure, tmp_path / folder / f'{name}.png')
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())})
    assert len(written[0]) == 5
    assert written[0] == written[1]
    assert not any(word in data for data in written[0].values() for word in (b'Date', b'atplotlib v'))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'figure.png'
    path.write_bytes(b'old')
    figure = plots.confusion_matrix([[1, 0], [0, 1]], ['a', 'b'])
    figure.axes[0].set_title('$\\unknown$')
    with pytest.raises(ValueError, match='unknown'):
        plots.save(figure, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('figure.png', b'old')]


def test_nothing_needs_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    importlib.reload(plots)
    one_of_each()


def test_confusion_matrix_cells_hold_counts_and_row_percent():
    figure = plots.confusion_matrix([[1500, 500], [0, 0]], ['down', 'up'])
    assert [text.get_text() for text in figure.axes[0].texts] == ['1,500\n75%', '500\n25%', '0', '0']
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['down', 'up']


@pytest.mark.parametrize('num_classes', [2, 7, 10])
def test_confusion_matrix_text_fits_its_cell_and_the_figure(num_classes):
    names = [f'rather long class name {i}' for i in range(num_classes)]
    figure = plots.confusion_matrix(np.full((num_classes, num_classes), 12345), names)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    width, height = np.ptp(axes.transData.transform([[0, 0], [1, 1]]), axis=0)
    for text in axes.texts:
        assert text.get_window_extent().width < width
        assert text.get_window_extent().height < height
    inside = figure.bbox
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        box = label.get_window_extent()
        assert inside.x0 <= box.x0
        assert inside.y0 <= box.y0
        assert box.x1 <= inside.x1


def test_learning_curves_mark_the_best_epoch_and_pass_over_gaps():
    figure = plots.learning_curves(HISTORY, 'balanced_accuracy')
    loss, metric = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 1.0], [1.5, 0.7], [2, 0.5], [3, 0.2]])
    np.testing.assert_array_equal(loss.lines[1].get_xydata(), [[1, 1.1], [2, 0.9], [3, 1.2]])
    assert metric.get_legend().get_texts()[-1].get_text() == 'Best: 0.7 at epoch 2'


def test_a_single_evaluation_is_a_point_of_the_learning_curves():
    (axes,) = plots.learning_curves([{'epoch': 0.0093896, 'train/loss': 2.0, 'validation/loss': 3.0}], 'loss').axes
    assert [line.get_marker() for line in axes.lines if line.get_label() in ('Train', 'Validation')] == ['o', 'o']
    assert 'Best: 3 at epoch 0.00939' in [text.get_text() for text in axes.get_legend().get_texts()]


def test_learning_curves_of_a_loss_by_step_are_one_panel_with_the_lowest_marked():
    history = [{'step': 100 * i, 'validation/loss': abs(i - 3) + 0.5} for i in range(6)]
    (axes,) = plots.learning_curves(history, 'loss', larger_is_better=False).axes
    assert axes.get_legend().get_texts()[-1].get_text() == 'Best: 0.5 at step 300'
    assert axes.get_xlabel() == 'Step'


def test_curves_are_labelled_with_scikit_learns_areas():
    probabilities, labels = simulate()
    legends = [
        [text.get_text() for text in draw(probabilities, labels, NAMES).legends[0].get_texts()]
        for draw in (plots.roc_curves, plots.precision_recall_curves)
    ]
    for index, name in enumerate(NAMES):
        positives, scores = labels == index, probabilities[:, index]
        assert legends[0][index] == f'{name}  {sk.roc_auc_score(positives, scores):.3f}'
        average = sk.average_precision_score(positives, scores)
        assert legends[1][index] == f'{name}  {average:.3f} ({positives.mean():.3f})'


def test_classes_without_positives_have_no_curve():
    probabilities, labels = simulate()
    labels = np.where(labels == 2, 0, labels)
    for draw in (plots.roc_curves, plots.precision_recall_curves):
        assert len(draw(probabilities, labels, NAMES).legends[0].get_texts()) == 2


def test_ten_long_names_stay_inside_the_figure_and_look_different():
    probabilities, labels = simulate(num_classes=10)
    names = [f'a really rather long class name number {i}' for i in range(10)]
    figure = plots.precision_recall_curves(probabilities, labels, names)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0
    assert box.y1 <= figure.bbox.y1
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == 10


def test_reliability_diagram_draws_the_curve_and_its_error():
    probabilities, labels = simulate()
    curve = reliability_curve(probabilities, labels)
    top, bottom = plots.reliability_diagram(curve).axes
    np.testing.assert_array_equal(top.lines[1].get_xydata(), np.stack([curve.confidence, curve.accuracy], 1))
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(1)
    assert top.get_legend().get_texts()[0].get_text().startswith('Model, calibration error 0.')

    after = reliability_curve(probabilities**2 / (probabilities**2).sum(1, keepdims=True), labels)
    drawn = plots.reliability_diagram(curve, after).axes[0]
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == [
        f'Before calibration, calibration error {curve.error:.3f}',
        f'After calibration, calibration error {after.error:.3f}',
    ]
    assert f'{curve.error:.3f}' != f'{after.error:.3f}'
