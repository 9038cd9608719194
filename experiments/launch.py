"""What the launch scripts share: flags, and errors told in a sentence instead of a traceback."""

import errno
import os
import pathlib
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from common.errors import UsageError, UserError
from common.runtime import default_data_dir
from common.task import task_class

flags.disclaim_key_flags()  # --help of a script shows what is defined here among its own flags

# A disk that is full, by the system's words, which libraries pass on in errors of other types.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_REFUSED = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)

DATA_DIR_HELP = 'Folder of prepared data sets. Default: $TRIPTYCH_DATA, else ~/.cache/triptych/data.'


def define_config() -> flags.FlagHolder:
    """--config=FILE[:VARIANT], whose values any --config.KEY=VALUE overrides."""
    return config_flags.DEFINE_config_file(
        'config',
        None,
        'Config file, with a variant after a colon if it has any: lesion/configs/ham10000.py:cnn. Single values '
        'are changed with --config.KEY=VALUE, as in --config.batch_size=32 or --config.optimizer.learning_rate=3e-4.',
    )


def data_dir(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    """The folder that a --data_dir flag names, or the default."""
    return path(str(flag.value or default_data_dir()))


def path(text: str) -> pathlib.Path:
    """As a flag gives it: shells expand no ~ after an equals sign."""
    return pathlib.Path(text).expanduser()


def workdirs(flag: flags.FlagHolder[Any]) -> list[pathlib.Path]:
    """The folders that a --workdir flag names, one or a list.

    Raises:
      UsageError: if it is empty, as it is with a variable that the shell does not know.
    """
    names = flag.value if isinstance(flag.value, list) else [flag.value]
    if not names or not all(names):
        raise UsageError(f'--{flag.name} is empty; it must name the folder of a run')
    whole = path(','.join(names))  # a single folder may have commas in its name
    # os.path's question, for pathlib's raises where a list is too long for a name
    return [whole] if os.path.isdir(whole) else [*map(path, names)]


def prepare_if_needed(config: ConfigDict, data_dir: pathlib.Path, begun: bool = False) -> None:
    """Prepares the config's data set where it is not, or where `config.dataset.raw_dir` names raw files.

    Prepared from the same files before, it is left as it is; and so it is from any others for a run that has `begun`,
    which goes on with the data that it was trained on.
    """
    raw_dir = config.dataset.raw_dir
    if (raw_dir and not begun) or not task_class(config.task).is_prepared(config, data_dir):
        prepare(config, raw_dir, data_dir, skip_bad=False, again=False)


def prepare(config: ConfigDict, raw_dir: str, data_dir: pathlib.Path, skip_bad: bool, again: bool = True) -> None:
    """Prepares the config's data set and prints the audit; one that was there before only with `again`."""
    audit = task_class(config.task).prepare(config, pathlib.Path(raw_dir) if raw_dir else None, data_dir, skip_bad)
    if again or not audit.kept:
        print(audit)
    if audit.kept:
        print(f'The raw files are unchanged: the data prepared in {data_dir} are kept.')


def run(main: Callable[[], int | None]) -> None:
    """Runs a script's `main`; exit status 1 for an error of the user's data or files, 2 for one of usage."""

    def guarded(argv: list[str]) -> int | None:
        try:
            if argv[1:]:
                raise UsageError(f'unexpected argument {argv[1]!r}; flags are written --name=value')
            return main()
        except UserError as error:
            return _fail(error)
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError:  # nobody reads on, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except Exception as error:
            if any(words in str(error) for words in _FULL):
                first = str(error).strip().split('\n')[0][:300]
                return _fail(UserError(f'the disk is full ({first}). Make room, and give the same command again.'))
            if isinstance(error, OSError) and error.errno in _REFUSED:
                return _fail(UserError(str(error)))
            raise

    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *where: (
        f'warning: {message}\n' if category is UserWarning else plain(message, category, *where)
    )
    logging.set_verbosity(logging.WARNING)  # libraries report every file they write; --verbosity=0 shows it
    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags and loads the config file, telling what is wrong with either in the words of whoever noticed."""
    try:
        rest = flags.FLAGS(argv)
        if 'config' in flags.FLAGS:
            flags.FLAGS.config.get('task')  # a file that could not be read tells so only when it is used
        return rest
    except (AttributeError, KeyError) as error:  # of an override --config.KEY, or of the config file itself
        reason = error if isinstance(error, KeyError) else error.args[0]
        _stop(_no_value(str(reason.args[0]), argv) if isinstance(reason, KeyError) else str(reason))
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        _stop(str(error.args[0] if error.args and not isinstance(error, OSError) else error).strip())


def _no_value(words: str, argv: list[str]) -> str:
    """What is said of a key that the config lacks; `words` are the key, or hold it in quotes before a suggestion."""
    quoted = words if words.startswith("'") else f"'{words}'"
    key = quoted.split("'")[1]
    names = (argument.partition('=')[0] for argument in argv if argument.startswith('--config.'))
    flag = next((name for name in names if key in name.split('.')), None)
    place = f'{flag}: ' if flag else ''
    return f'{place}the config has no value {quoted}'


def _stop(text: str) -> NoReturn:
    sys.exit(_fail(UsageError(f'{text}\nSee --help.')))


def _fail(error: UserError) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1
