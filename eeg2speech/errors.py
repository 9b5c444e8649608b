"""The one error a user's own input can raise."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Bad input, said in one sentence that names the file or field and the fix.

    Every command turns it into that sentence on standard error and exit code 2; whatever was
    computed before it is kept.
    """


class MissingFiles(UserError):
    """Files that a study needs; the sentence names the first of them, `files` all."""

    def __init__(self, files: Sequence[str], before: str, after: str, shown: int = 3) -> None:
        more = f" and {len(files) - shown} more" if len(files) > shown else ""
        super().__init__(f"{before}: {', '.join(files[:shown])}{more} not found{after}")
        self.files = tuple(files)
