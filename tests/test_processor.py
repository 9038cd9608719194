"""What is told of the processor is what the system lists."""

import pytest

from common import processor as module


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """What `processor` says where the system lists `text`."""

    def say(text):
        file = tmp_path / 'cpuinfo'
        file.write_text(text)
        monkeypatch.setattr(module, '_CPUINFO', file)
        return module.processor.__wrapped__()

    return say


def test_model_and_telling_features_are_read(listed):
    text = 'processor\t: 0\nmodel name\t: Some Make 9\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16x\n'
    assert listed(text) == {'model': 'Some Make 9', 'features': 'avx2 avx512f avx512_bf16'}


def test_elsewhere_nothing_is_assumed(listed, monkeypatch, tmp_path):
    assert listed('processor\t: 0\nFeatures\t: fp asimd\n')['features'] == ''
    monkeypatch.setattr(module, '_CPUINFO', tmp_path / 'missing')
    assert module.processor.__wrapped__()['features'] == ''
