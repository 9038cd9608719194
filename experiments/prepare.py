"""Reads a raw data set, audits it, and writes it in the form that training reads.

python -m experiments.prepare --config=lesion/configs/ham10000.py --raw_dir=RAW [--data_dir=DATA]
"""

from absl import flags

from experiments import launch

_CONFIG = launch.define_config()
_RAW_DIR = flags.DEFINE_string('raw_dir', None, 'Folder or zip as published. Default: config.dataset.raw_dir.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, launch.DATA_DIR_HELP)
_SKIP_BAD = flags.DEFINE_bool('skip_bad', False, 'Leave bad files and rows out, instead of stopping at them.')


def main() -> None:
    config = _CONFIG.value
    launch.prepare(config, _RAW_DIR.value or config.dataset.raw_dir, launch.data_dir(_DATA_DIR), _SKIP_BAD.value)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    launch.run(main)
