"""`python -m eeg2speech studies`: which there are, getting them, and checking what was got."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eeg2speech.errors import UserError

if TYPE_CHECKING:
    from eeg2speech.data.base import SpeechStudy


def add_parser(commands: argparse._SubParsersAction) -> None:
    text = "list the studies (alone), `get` one, or `check` a folder"
    studies = commands.add_parser("studies", help=text, description=text)
    studies.add_argument("--data", type=Path, default=Path("data"), help="where they may be (default: %(default)s)")
    studies.set_defaults(handler=show)
    actions = studies.add_subparsers(metavar="action")
    text = "download a study, continuing where it stopped; where none can be downloaded, print how to get it by hand"
    get_ = actions.add_parser("get", help=text, description=text)
    get_.add_argument("name", help="as the list has it")
    get_.add_argument("--to", type=Path, help="the folder (default: data/NAME)")
    text = "another place: openneuro:ds004408, osf:ag3kj+h2tzn, or a copy on the Hugging Face hub, hub:owner/name"
    get_.add_argument("--from", dest="place", metavar="PLACE", help=text)
    text = "only what matches, such as 'sub-01/*'; may be repeated"
    get_.add_argument("--only", metavar="PATTERN", action="append", default=[], help=text)
    get_.set_defaults(handler=get)
    text = "read every recording and say what is there, what is missing and what does not fit"
    check_ = actions.add_parser("check", help=text, description=text)
    check_.add_argument("name", help="as the list has it")
    check_.add_argument("--dir", type=Path, help="the folder (default: data/NAME, or what the config says)")
    check_.add_argument("--config", type=Path, help="take the study's settings from here (for bids and folder)")
    text = "one setting of the study, as in --set study.subjects=all; may be repeated"
    check_.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)
    check_.set_defaults(handler=check)


def show(arguments: argparse.Namespace) -> None:
    """Every study with what a reader must know before using it."""
    from eeg2speech.config import STUDIES

    for name, study in sorted(STUDIES.items()):
        told = {
            "modality": _stated(study, "modality"),
            "size": _size(study),
            "licence": _stated(study, "licence"),
            "consent": study.consent,
            "citation": _stated(study, "citation"),
            "get": _how(name, study),
            "on disk": _on_disk(study, arguments.data / name),
        }
        print(name)
        for heading, text in told.items():
            print(f"  {heading + ':':10}{text}")


def get(arguments: argparse.Namespace) -> None:
    """Downloads, or prints the steps."""
    from eeg2speech.data import repositories

    study = named(arguments.name)
    folder = arguments.to or Path("data") / arguments.name
    place = arguments.place or study.place
    if place:
        print(f"{place} -> {folder}: {repositories.get(place, folder, arguments.only)}")
        print(f"python -m eeg2speech studies check {arguments.name} --dir {folder}")
    elif arguments.only:
        raise UserError(f"--only: there is no place to download {arguments.name} from; name one by --from")
    if study.steps and not arguments.place:
        print(study.steps.format(to=folder))


def check(arguments: argparse.Namespace) -> None:
    """Prints a row per recording, then notes. Raises UserError that counts what is missing or wrong."""
    from eeg2speech import config
    from eeg2speech.data.check import check as check_study

    study = named(arguments.name)
    if study.simulated:
        print(f"{arguments.name}: {study.steps}")
        return
    root = arguments.dir or (None if arguments.config else Path("data") / arguments.name)
    declared = config.load_study(arguments.name, arguments.config, arguments.overrides, root)
    found = check_study(declared)
    shown = found.table.drop(columns=["lag_ms", "heard"] if found.table["lag_ms"].isna().all() else [])
    if len(shown):
        print(shown.round(2).to_string(index=False, na_rep="-"))
    for note in found.notes:
        print(f"note: {note}")
    for name in found.missing:
        print(f"missing: {name}")
    for fault in found.faults:
        print(f"wrong: {fault}")
    if found.missing or found.faults:
        hint = f"; python -m eeg2speech studies get {arguments.name} says where the files are from"
        raise UserError(
            f"{declared.root}: files that are missing: {len(found.missing)}, things that are wrong: "
            f"{len(found.faults)}; each is named above{hint if found.missing and study.source else ''}"
        )
    print(f"{declared.root}: {len(shown)} recordings, nothing is missing or wrong")


def named(name: str) -> type[SpeechStudy]:
    """Raises UserError that lists the studies where there is none of this name."""
    from eeg2speech.config import STUDIES

    if name not in STUDIES:
        raise UserError(f"there is no study {name}; choose one of {', '.join(sorted(STUDIES))}")
    return STUDIES[name]


def _stated(study: type[SpeechStudy], fact: str) -> str:
    """What a study of the user's own files is, its config says."""
    return getattr(study, fact, "stated in its config")


def _size(study: type[SpeechStudy]) -> str:
    if not study.expected:
        return "stated in its config" if study.simulated else "whatever you have"
    units = {"subjects": "subjects", "channels": "channels", "hours": "hours"}
    return ", ".join(f"{study.expected[key]:g} {unit}" for key, unit in units.items() if key in study.expected)


def _how(name: str, study: type[SpeechStudy]) -> str:
    command = f"python -m eeg2speech studies get {name}"
    if study.place:
        return f"{command} (from {study.source or study.place})"
    if study.simulated:
        return study.steps
    return f"by hand, {command} says how" + (f" ({study.source})" if study.source else "")


def _on_disk(study: type[SpeechStudy], folder: Path) -> str:
    if study.simulated:
        return "in the folder of each run's data"
    if not study.recordings_at:
        return f"{folder}" if folder.is_dir() else f"no ({folder}), or wherever your config says"
    found = {path.with_suffix("") for pattern in study.recordings_at for path in folder.glob(pattern)}
    return f"{folder}, {len(found)} recordings" if found else f"no ({folder}); --data says where to look"
