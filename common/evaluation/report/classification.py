"""The report of an image classifier: what goes into metrics.json, and the sections of its page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.evaluation import plots
from common.evaluation.calibration import apply_temperature, reliability_curve
from common.evaluation.metrics import bootstrap_intervals, classification_metrics
from common.evaluation.report import measures
from common.evaluation.report.gallery import cards, right_and_wrong
from common.evaluation.report.page import threshold_text
from common.findings import Evidence, Gallery, Part, Plot, Report, Section, Table

HEADLINES = (
    'balanced_accuracy',
    'accuracy',
    'macro_f1',
    'macro_roc_auc',
    'log_loss',
    'expected_calibration_error',
)
SHOWN = 12  # images in a gallery
_FITTED = 'fitted on the validation split alone'


def classification_report(
    evidence: Evidence,
    class_names: Sequence[str],
    concerns: Sequence[str],
    partitions: Mapping[str, pd.Series],
) -> Report:
    """Judges logits float [n, classes] against labels; intervals resample whole groups of `split.records`.

    Args:
      evidence: predictions hold `logits`, the split's columns `label` and `image`.
      class_names: in label order.
      concerns: the classes that must not be missed, each with a section of its own.
      partitions: subgroups of the examples by title, see `measures.subgroups`.
    """
    logits, labels = evidence.predictions['logits'], np.asarray(evidence.split.columns['label'])
    probabilities, groups = apply_temperature(logits, 1.0), evidence.split.records['group'].to_numpy()
    metrics = classification_metrics(probabilities, labels, class_names)
    metrics['intervals_95'] = bootstrap_intervals(probabilities, labels, groups)
    ends = measures.recall_intervals(probabilities, labels, groups)
    for row, interval in zip(metrics['per_class'].values(), ends, strict=True):
        row['recall_interval_95'] = interval
    sections = [
        _confusion(metrics, class_names),
        _ranking(probabilities, labels, class_names),
    ]
    validation = None
    if evidence.calibration is not None:
        validation = evidence.calibration[0]['logits'], np.asarray(evidence.calibration[1].columns['label'])
        likewise = apply_temperature(validation[0], 1.0), validation[1]
        metrics['temperature_scaling'] = measures.temperature_scaling(logits, labels, validation)
        metrics['prediction_sets'] = measures.conformal_sets(probabilities, labels, likewise, class_names)
        sections += [_reliability(metrics, logits, labels), _prediction_sets(metrics['prediction_sets'])]
    else:
        sections.append(_uncalibrated(probabilities, labels))
    metrics['concerns'] = {
        name: found for name in concerns if (found := _concern(class_names.index(name), logits, labels, validation))
    }
    sections += [_finding(name, found) for name, found in metrics['concerns'].items()]
    metrics['subgroups'] = measures.subgroups(probabilities, labels, groups, partitions)
    if partitions:
        sections.append(_subgroups(metrics['subgroups']))
    sections += _galleries(evidence, probabilities, labels, class_names)
    return Report(metrics=metrics, headlines=HEADLINES, sections=sections)


def _confusion(metrics: Mapping[str, Any], class_names: Sequence[str]) -> Section:
    counts = np.array(metrics['confusion_matrix'])
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    truth, guess = np.unravel_index(wrong.argmax(), wrong.shape)
    worst = (
        f' The most frequent confusion: {wrong[truth, guess]:,} of the {counts[truth].sum():,} images of '
        f'{class_names[truth]} were taken for {class_names[guess]}.'
        if wrong.any()
        else ' No image was taken for another class.'
    )
    matrix = Plot(
        name='confusion_matrix',
        figure=plots.confusion_matrix(counts, class_names),
        caption='Rows are the true classes; right answers lie on the diagonal. Each cell has its count and its share '
        'of the row, which is also its shade.' + worst,
    )
    columns = ('precision', 'recall', 'interval', 'f1', 'roc_auc', 'support')
    cells = {
        name: row | {'interval': _ends_text(row['recall_interval_95'])} for name, row in metrics['per_class'].items()
    }
    rows = [(name, *(row[column] for column in columns)) for name, row in cells.items()]
    table = Table(
        columns=('class', 'precision', 'recall', '95% interval', 'F1', 'ROC AUC', 'images'),
        rows=rows,
        caption='Precision: how often a prediction of the class is right. Recall, or sensitivity: how much of the '
        'class is found; its interval takes the images of one group, such as a lesion, for one image. ROC AUC: the '
        'class against the rest.',
    )
    return Section('Which classes are confused', [matrix, table])


def _ranking(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Section:
    roc = Plot(
        name='roc_curves',
        figure=plots.roc_curves(probabilities, labels, class_names),
        caption='Each class against the rest, over all thresholds: the nearer to the upper left corner, the better; '
        'the dashed diagonal is guessing.',
    )
    precision_recall = Plot(
        name='precision_recall_curves',
        figure=plots.precision_recall_curves(probabilities, labels, class_names),
        caption='What a rare class costs in false alarms, which ROC curves hide: precision falls as more of the class '
        'is found. Guessing stays at the prevalence, in brackets.',
    )
    return Section('How well each class is told from the rest', [roc, precision_recall])


def _reliability(metrics: Mapping[str, Any], logits: np.ndarray, labels: np.ndarray) -> Section:
    scaling = metrics['temperature_scaling']
    curves = [reliability_curve(apply_temperature(logits, value), labels) for value in (1.0, scaling['temperature'])]
    before, after = (scaling[f'expected_calibration_error_{name}'] for name in ('before', 'after'))
    diagram = Plot(
        name='reliability',
        figure=plots.reliability_diagram(*curves),
        caption='Of the predictions made with a confidence of 80%, 80% should be right: on the dashed diagonal. '
        'Below it, the model is surer than it should be.',
    )
    rows = [
        (title, scaling[f'expected_calibration_error_{name}'], scaling[f'log_loss_{name}'])
        for title, name in (('as the model says', 'before'), ('after temperature scaling', 'after'))
    ]
    table = Table(
        columns=('probabilities', 'expected calibration error', 'log loss'),
        rows=rows,
        caption=f'Dividing the logits by one temperature, {scaling["temperature"]:.3f}, {_FITTED}, '
        f'{"mends" if after < before else "does not mend"} the calibration here. It changes no predicted class. '
        'All other figures of this report use the probabilities as the model says them.',
    )
    return Section('Whether the probabilities can be believed', [diagram, table])


def _uncalibrated(probabilities: np.ndarray, labels: np.ndarray) -> Section:
    diagram = Plot(
        name='reliability',
        figure=plots.reliability_diagram(reliability_curve(probabilities, labels)),
        caption='Of the predictions made with a confidence of 80%, 80% should be right: on the dashed diagonal.',
    )
    text = (
        'Temperature, prediction sets and decision thresholds are fitted on validation examples, which must be others '
        'than those reported on. There are none here: see the report on the test split.'
    )
    return Section('Whether the probabilities can be believed', [diagram, text])


def _prediction_sets(sets: Mapping[str, Any]) -> Section:
    text = (
        f'Instead of one answer, a prediction set holds every class whose probability is at least '
        f'{threshold_text(sets["threshold"])}. That threshold is {_FITTED}, so that the true class is in the set for '
        f'{sets["promised_coverage"]:.0%} of new images like those. Here it was for {sets["coverage"]:.1%}, with '
        f'{sets["mean_size"]:.2f} classes in a set on average.'
    )
    rows = [('all', sets['coverage'], sets['mean_size'], sets['examples'])]
    rows += [(name, row['coverage'], row['mean_size'], row['examples']) for name, row in sets['per_class'].items()]
    by_class = Table(
        columns=('true class', 'coverage', 'mean size', 'images'),
        rows=rows,
        caption='The promise holds over all images, not for each class: a class that is covered less is one whose '
        'sets should be trusted less.',
    )
    by_size = Table(
        columns=('classes in the set', 'images'),
        rows=[(str(size), count) for size, count in enumerate(sets['sets_by_size']) if count],
        caption='A set of one class is a clear answer; a large set says that the model does not know. An empty set '
        'says that the image is like none of the classes.',
    )
    return Section(f'Prediction sets at {sets["promised_coverage"]:.0%}', [text, by_class, by_size])


def _concern(
    index: int, logits: np.ndarray, labels: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any] | None:
    """None where the class, or every other, does not occur."""

    def one_class(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return apply_temperature(logits, 1.0)[:, index], labels == index

    here, there = one_class(logits, labels), one_class(*validation) if validation else None
    if any(part[1].all() or not part[1].any() for part in (here, there) if part is not None):
        return None
    return measures.finding_one_class(*here, there)


def _finding(name: str, found: Mapping[str, Any]) -> Section:
    parts: list[Part] = [
        Table(
            columns=('specificity of at least', 'sensitivity'),
            rows=[(f'{float(at):.0%}', value) for at, value in found['sensitivity_at_specificity'].items()],
            caption=f'What share of the {found["positives"]:,} images of {name} is found if that share of all other '
            'images must be spared; read off the ROC curve of these images.',
        )
    ]
    if found['thresholds']:
        keys = ('sensitivity', 'specificity', 'found', 'missed', 'false_alarms')
        parts.append(
            Table(
                columns=('aim', 'threshold', 'sensitivity', 'specificity', 'found', 'missed', 'false alarms'),
                rows=[
                    (
                        f'{row["wanted_sensitivity"]:.0%} found',
                        threshold_text(row['threshold']),
                        *(row[key] for key in keys),
                    )
                    for row in found['thresholds']
                ],
                caption=f'Call an image {name} where its probability of {name} (a column of predictions.csv) reaches '
                f'the threshold. The thresholds are {_FITTED}; beside them, what they did on these images.',
            )
        )
    return Section(f'Not missing {name}', parts)


def _subgroups(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Section:
    parts: list[Part] = []
    for title, rows in found.items():
        cells = []
        for name, row in rows.items():
            interval = 'too few' if row['few'] else _ends_text(row['interval_95'])
            cells.append((name, row['examples'], row['accuracy'], row['balanced_accuracy'], interval))
        columns = (title, 'images', 'accuracy', 'balanced accuracy', '95% interval')
        parts.append(Table(columns=columns, rows=cells))
    text = (
        'Balanced accuracy is the mean recall of the classes that occur in the subgroup. Subgroups differ in which '
        'classes they hold, so a lower figure need not mean a worse model; intervals that do not overlap deserve a '
        f'look. Below {measures.FEW} images, those of one lesion or patient counting as one, there is none.'
    )
    return Section('Results by subgroup', [text, *parts])


def _ends_text(ends: Sequence[float] | None) -> str | None:
    return f'{ends[0]:.3f} to {ends[1]:.3f}' if ends else None


def _galleries(
    evidence: Evidence, probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[Section]:
    rows = right_and_wrong(probabilities, labels, SHOWN)
    images, names = evidence.split.columns['image'], evidence.split.records['name'].tolist()
    every = np.concatenate(rows)
    made = cards(images, every, probabilities, labels, names, class_names, evidence.explain)
    right, wrong = made[: len(rows[0])], made[len(rows[0]) :]
    seen = (
        ' Beside each image, Grad-CAM: bright where the model found what speaks for the class that it predicted.'
        if made and len(made[0].images) > 1
        else ''
    )
    sections = []
    if right:
        caption = 'The most confident right answers of every class in turn.' + seen
        sections.append(Section('Correctly classified', [Gallery(cards=right, caption=caption)]))
    if wrong:
        caption = 'The mistakes that the model was surest of; some may be errors of the labels.' + seen
        sections.append(Section('Most confident mistakes', [Gallery(cards=wrong, caption=caption)]))
    return sections
