"""The findings of `prepare`: what was wrong with the raw files, printed and stored beside the data."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from common.errors import DataError

SHOWN = 5  # items of a finding that are printed; the stored audit has them all
SHOWN_FATAL = 20  # items of a fatal finding in the error, which is all that a refused `prepare` leaves


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of fault."""

    kind: str  # a short name in snake case, e.g. 'unreadable_images'
    meaning: str  # a phrase for people, e.g. 'images that cannot be decoded'
    items: Sequence[str]  # one string per fault, naming file and row
    fatal: bool = False  # whether `prepare` stops on it unless told to skip bad files


class Audit:
    """Collects findings; empty ones are kept as a zero, so that a clean bill of health can be read as such.

    Attributes:
      kept: whether `prepare` found the data prepared from the very same files, and has done nothing.
    """

    def __init__(self, title: str):
        self.title = title
        self.kept = False
        self.counts: dict[str, Any] = {}
        self.findings: list[Finding] = []

    def count(self, **numbers: object) -> None:
        """Records JSON-able facts, e.g. `images=10015`; a dict of dicts is printed as a table."""
        self.counts.update(numbers)

    def add(self, kind: str, meaning: str, items: Sequence[str], *, fatal: bool = False) -> None:
        self.findings.append(Finding(kind, meaning, list(items), fatal))

    def __getitem__(self, kind: str) -> Finding:
        return next(finding for finding in self.findings if finding.kind == kind)

    def refuse_bad(self) -> None:
        """Raises DataError naming every fatal finding, and how to go on without the files concerned."""
        bad = [finding for finding in self.findings if finding.fatal and finding.items]
        if bad:
            text = '\n'.join(finding_lines(finding, SHOWN_FATAL) for finding in bad)
            raise DataError(
                f'{self.title}: faults in the raw files.\n{text}\n'
                f'Mend them, or run experiments.prepare with --skip_bad.'
            )

    def __str__(self) -> str:
        lines = [f'Audit of {self.title}']
        for name, value in self.counts.items():
            lines += _table(name, value) if value and isinstance(value, Mapping) else [f'  {name}: {value}']
        lines += [finding_lines(finding) for finding in self.findings if finding.items]
        clean = [finding.meaning for finding in self.findings if not finding.items]
        if clean:
            lines.append('  none of these:')
            lines += [f'    {meaning}' for meaning in clean]
        return '\n'.join(lines)

    def save(self, path: pathlib.Path) -> None:
        content = {
            'title': self.title,
            'counts': self.counts,
            'findings': [dataclasses.asdict(finding) for finding in self.findings],
        }
        path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')

    @classmethod
    def load(cls, path: pathlib.Path) -> 'Audit':
        content = json.loads(path.read_text(encoding='utf-8'))
        audit = cls(content['title'])
        audit.counts = content['counts']
        audit.findings = [Finding(**finding) for finding in content['findings']]
        return audit

    @classmethod
    def begin(cls, title: str, path: pathlib.Path, raw_files: pathlib.Path, signature: str) -> 'Audit':
        """A new audit of raw files with that signature; or the one stored in `path`, if it is of the same files."""
        audit, place = cls(title), str(raw_files.resolve())
        if path.exists():
            stored = cls.load(path)
            if stored.counts['raw_signature'] == signature:
                stored.kept = True
                return stored
            if stored.counts['raw_files'] != place:
                audit.count(instead_of=stored.counts['raw_files'])
        audit.count(prepared_in=str(path.parent), raw_files=place, raw_signature=signature)
        return audit


def finding_lines(finding: Finding, shown: int = SHOWN) -> str:
    """How many faults of which kind, and the first of them."""
    lines = [f'  {len(finding.items)} {finding.meaning}']
    lines += [f'    {item}' for item in finding.items[:shown]]
    if len(finding.items) > shown:
        lines.append(f'    ... and {len(finding.items) - shown} more')
    return '\n'.join(lines)


def _table(name: str, rows: Mapping[str, Any]) -> list[str]:
    text = pd.DataFrame.from_dict(rows, orient='index').to_string()
    return [f'  {name}:', *(f'    {line}' for line in text.splitlines())]


def audit_labelled(audit: Audit, table: pd.DataFrame) -> None:
    """Adds what can be wrong between examples: repeats, contradictions and leaks from split to split.

    `table` has one row per example with `name`, `label`, `group`, `split` and `digest` (equal for equal content).
    """
    within: list[str] = []
    across: list[str] = []
    contradictory: list[str] = []
    pairs: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _, twins in table[table.digest.duplicated(keep=False)].groupby('digest', sort=False):
        text = ' = '.join(f'{row.name} ({row.label}, {row.split})' for row in twins.itertuples(index=False))
        (within if twins.split.nunique() == 1 else across).append(text)
        if twins.label.nunique() > 1:
            contradictory.append(text)
            pairs[' = '.join(sorted(twins.label.unique()))].update(['sets', *twins.split])
    repeats = int(table.digest.duplicated().sum())
    audit.count(exact_repeats=repeats)
    if pairs:
        audit.count(contradictions=pd.DataFrame.from_dict(pairs, orient='index').fillna(0).astype(int).to_dict('index'))
    audit.add('duplicates_within_split', 'sets of byte-identical images within a split', within)
    audit.add('duplicates_across_splits', 'sets of byte-identical images across splits', across)
    audit.add('contradictory_labels', 'sets of byte-identical images with contradictory labels', contradictory)
    several = table[table.groupby('group').split.transform('nunique') > 1]
    splits_of = several.groupby('group').split.unique()
    straddling = [f'{group} ({", ".join(sorted(splits))})' for group, splits in splits_of.items()]
    audit.add('straddling_groups', 'groups with images in several splits', straddling)
