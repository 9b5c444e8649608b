"""The base of every configuration class."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, and an unknown key is an error: a misspelt option must never be ignored.

    Each part's config class stands in the same file as the code it builds; `eeg2speech.config`
    nests them as the objects nest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def is_unset(value: object) -> bool:
    """For `exclude_if` of a field that came later: runs from before keep their hashes."""
    return value is None


def is_off(value: object) -> bool:
    """The same for a lever: it is written out only where it is pulled."""
    return not value
