"""Errors for the person at the terminal: launch scripts print their text, without a traceback."""


class UserError(Exception):
    """Something the user can mend; the message names the file, row or key and says what to do (exit status 1)."""


class UsageError(UserError):
    """A wrong flag or config value (exit status 2)."""


class DataError(UserError):
    """Raw or prepared data are missing, unreadable or contradict themselves."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated or belongs to another model or config."""


class TrainingDivergedError(UserError):
    """A loss, or the metric by which checkpoints are judged, became NaN or infinite."""
