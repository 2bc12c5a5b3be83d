"""The one family of errors a user can meet. Each message says what was wrong with what, and how to mend it."""


class SkrrError(Exception):
    """Base of every error this package raises on purpose; the command line prints it on one line and exits 2."""


class PlanError(SkrrError):
    """A plan is malformed, breaks a rule, or does not fit the encoder."""


class CheckpointError(SkrrError):
    """A checkpoint is missing, damaged, of an unknown architecture, or lacks a tensor."""


class BundleError(SkrrError):
    """A bundle is missing, damaged, or of a version this release cannot read."""


class OutputError(SkrrError):
    """An output cannot be written: it exists already, or the disk is full."""


class InputError(SkrrError):
    """An option, a prompt or a tensor given to us is not acceptable."""


class DependencyError(SkrrError):
    """An optional package is needed and absent; the message names the extra that brings it."""
