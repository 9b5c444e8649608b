"""The one error a user's own input can raise."""


class UserError(Exception):
    """Bad input, said in one sentence that names the file or field and the fix.

    Every command turns it into that sentence on standard error and exit code 2; whatever was
    computed before it is kept.
    """
