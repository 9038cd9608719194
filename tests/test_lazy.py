"""Slow libraries wait until something of them is used."""

import subprocess
import sys

from common.lazy import lazy
from tests.conftest import REPOSITORY


def test_a_module_is_imported_when_something_of_it_is_used():
    code = (
        'import sys; from common.lazy import lazy; m = lazy("email.charset"); '
        'print("email.charset" in sys.modules, m.QP, "email.charset" in sys.modules)'
    )
    said = subprocess.check_output([sys.executable, '-c', code], cwd=REPOSITORY, text=True)
    assert said.split() == ['False', '1', 'True']
    assert lazy('math').pi > 3


def test_training_starts_without_what_only_reports_need():
    code = 'import sys, experiments.train, lesion.task, stocks.task; print(*sys.modules)'
    loaded = set(subprocess.check_output([sys.executable, '-c', code], cwd=REPOSITORY, text=True).split())
    assert not loaded & {'sklearn', 'matplotlib', 'scipy.stats', 'tensorflow'}
