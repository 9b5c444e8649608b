"""Where published recordings lie, and what files there are: OpenNeuro, OSF, the Hugging Face hub.

A place is written `openneuro:ds004408`, `osf:ag3kj+h2tzn` (projects laid over each other) or
`hub:owner/name`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

from eeg2speech.data import download
from eeg2speech.data.download import RemoteFile
from eeg2speech.errors import UserError
from eeg2speech.files import require_free_space

OPENNEURO = "https://s3.amazonaws.com/openneuro.org"
OSF = "https://api.osf.io/v2"
OSF_TOKEN = "OSF_TOKEN"
"""The variable in which osfclient, too, looks for a personal token. OSF answers strangers 100 times an hour."""
PLACES = {"openneuro": r"ds\d{6}", "osf": r"[a-z0-9]+(\+[a-z0-9]+)*", "hub": r"[\w.-]+/[\w.-]+"}
MD5 = re.compile(r"[0-9a-f]{32}")
SILENT_S = 10.0
MAX_LISTING_BYTES = 64 << 20


def get(place: str, folder: Path, only: Sequence[str] = ()) -> str:
    """Downloads what matches one of the patterns `only` (all, where there are none); says what came.

    Raises UserError where the place is not written as above, nothing matches, or a transfer fails.
    """
    kind, _, name = place.partition(":")
    if kind not in PLACES or not re.fullmatch(PLACES[kind], name):
        raise UserError(f"{place!r} is no place; write openneuro:ds004408, osf:ag3kj or hub:owner/name")
    if kind == "hub":
        return _snapshot(name, folder, only)
    files = list(openneuro(name) if kind == "openneuro" else osf(name.split("+")))
    chosen = [file for file in files if not only or any(fnmatch(file.path, pattern) for pattern in only)]
    if not chosen:
        raise UserError(f"{place}: none of its {len(files)} files matches {', '.join(only) or 'anything'}; see --only")
    came = download.transfer(chosen, folder)
    unsure = sum(not file.algorithm for file in chosen)
    told = f"; of {unsure} the server tells no hash, so only the length was compared" if unsure else ", hashes compared"
    return f"{came} of {len(chosen)} files came, the others were there{told}"


def openneuro(data_set: str) -> Iterator[RemoteFile]:
    """The latest version, listed by the S3 bucket that OpenNeuro publishes to.

    The ETag of an object is its MD5 unless it was uploaded in parts.
    """
    prefix, after = f"{data_set}/", ""
    while True:
        query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": after} if after else {})
        url = f"{OPENNEURO}?{urllib.parse.urlencode(query)}"
        try:
            page = ElementTree.fromstring(_read(url))
        except ElementTree.ParseError as error:
            raise UserError(f"{url}: this list of files cannot be read ({error}); try again later") from error
        space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
        for entry in page.iter(f"{space}Contents"):
            key = entry.findtext(f"{space}Key", "")
            tag = entry.findtext(f"{space}ETag", "").strip('"')
            path = key.removeprefix(prefix)
            if path and not path.endswith("/"):
                known = ("md5", tag) if MD5.fullmatch(tag) else ("", "")
                size = int(entry.findtext(f"{space}Size", "0"))
                yield RemoteFile(path, f"{OPENNEURO}/{urllib.parse.quote(key)}", size, *known)
        after = page.findtext(f"{space}NextContinuationToken", "")
        if not after:
            return


def osf(projects: Sequence[str]) -> Iterator[RemoteFile]:
    """Files of OSF projects, listed folder by folder; of two of one path the first project's is taken."""
    seen: set[str] = set()
    for project in projects:
        pending = [f"{OSF}/nodes/{project}/files/osfstorage/?page%5Bsize%5D=100"]
        while pending:
            url = pending.pop()
            try:
                page = json.loads(_read(url, os.environ.get(OSF_TOKEN, "")))
                for entry in page["data"]:
                    about = entry["attributes"]
                    if about["kind"] == "folder":
                        pending.append(entry["relationships"]["files"]["links"]["related"]["href"])
                        continue
                    path = about["materialized_path"].strip("/")
                    if path not in seen:
                        seen.add(path)
                        hashes = about.get("extra", {}).get("hashes", {})
                        known = next(((name, hashes[name]) for name in ("sha256", "md5") if hashes.get(name)), ("", ""))
                        yield RemoteFile(path, entry["links"]["download"], int(about["size"]), *known)
                if page["links"].get("next"):
                    pending.append(page["links"]["next"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{url}: this list of files cannot be read ({error!r}); try again later") from error


def _read(url: str, token: str = "") -> bytes:
    """What an address answers; waits where it asks for that. Raises UserError naming it."""
    for attempt in range(download.TRIES):
        request = download.request(url)
        if token:
            # unredirected: a token is for the host that it was given to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=download.TIMEOUT_S) as answer:
                return answer.read(MAX_LISTING_BYTES)
        except urllib.error.HTTPError as error:
            if error.code not in download.BUSY:
                raise UserError(f"{url}: the server says {error.code} {error.reason}; is the name right?") from error
            said, pause = f"{error.code} {error.reason}", download.retry_after_s(error)
        except download.BROKEN as error:
            said, pause = str(getattr(error, "reason", error)) or type(error).__name__, 0.0
        pause = max(pause, download.PAUSE_S * 2**attempt)
        if attempt < download.TRIES - 1:
            if pause > SILENT_S:
                hint = f" (a token in {OSF_TOKEN} makes OSF answer more often)" if url.startswith(OSF) else ""
                print(f"{url}: {said}; asking again in {pause:.0f} s{hint}", file=sys.stderr)
            time.sleep(pause)
    raise UserError(f"{url}: {said}, {download.TRIES} times in a row; is the network up? run the same command again")


def _snapshot(name: str, folder: Path, only: Sequence[str]) -> str:
    """A data set of the hub: huggingface_hub transfers and continues, and every file is hashed afterwards."""
    from huggingface_hub import HfApi

    hub, patterns = HfApi(), list(only) or None
    try:
        revision = hub.dataset_info(name).sha
        dry = hub.snapshot_download(
            name, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=patterns, dry_run=True
        )
        if not dry:
            raise UserError(f"hub:{name}: no file matches {', '.join(only) or 'anything'}; see --only")
        require_free_space(folder, sum(file.file_size or 0 for file in dry if file.will_download))
        hub.snapshot_download(name, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=patterns)
        verified = hub.verify_repo_checksums(name, repo_type="dataset", revision=revision, local_dir=folder)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - which HTTP library is under huggingface_hub differs by version
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"hub:{name}: the hub refuses or cannot be reached ({' '.join(str(error).split())[:200]}); check the name, "
            "log in by `hf auth login` where it is private, and run the same command to continue"
        ) from error
    if verified.mismatches:
        wrong = folder / verified.mismatches[0]["path"]
        wrong.unlink()
        raise UserError(f"{wrong}: has another hash than the hub says, and was deleted; run the same command again")
    return f"{sum(file.will_download for file in dry)} of {len(dry)} files came, the others were there, hashes compared"
