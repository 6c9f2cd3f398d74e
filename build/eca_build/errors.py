"""The one error of the build step."""


class BuildError(Exception):
    """What was wrong with the inputs or the result, as one sentence; the command line exits with 2."""
