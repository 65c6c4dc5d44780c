"""Files of data: where they are looked for, and how they are downloaded, checked and kept.

Three environment variables: OPTIKIT_DATA is a folder of the user's own files, always looked in
first; OPTIKIT_CACHE holds downloads (by default `optikit` in $XDG_CACHE_HOME or ~/.cache);
OPTIKIT_OFFLINE=1 forbids the network.
"""

import hashlib
import os
import pathlib
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request

DATA_VARIABLE, CACHE_VARIABLE = "OPTIKIT_DATA", "OPTIKIT_CACHE"
OFFLINE_VARIABLE = "OPTIKIT_OFFLINE"
PATIENCE_SECONDS = 60  # for an answer, not for the whole of a download
_BLOCK = 1 << 20


def data_folder() -> pathlib.Path | None:
    """The user's folder of data, if one is set."""
    given = os.environ.get(DATA_VARIABLE)
    return pathlib.Path(given) if given else None


def cache_folder() -> pathlib.Path:
    """Where downloads are kept; it may not exist yet."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return pathlib.Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "optikit"


def offline() -> bool:
    """Whether the network may not be used."""
    return os.environ.get(OFFLINE_VARIABLE, "").lower() not in ("", "0", "no", "false")


def data_file(name: str) -> pathlib.Path:
    """A file of the data directory.

    Raises:
      FileNotFoundError: the directory is not set, or does not hold the file.
    """
    directory = data_folder()
    if directory is None:
        msg = f"{name} is read from a data directory: set {DATA_VARIABLE} to its folder."
        raise FileNotFoundError(msg)
    path = directory / name
    if not path.is_file():
        msg = f"{path} does not exist: {DATA_VARIABLE} is '{directory}'."
        raise FileNotFoundError(msg)
    return path


def address(given: str, known: set[str]) -> tuple[str, dict[str, str]]:
    """An address without its fragment, and the options in that: `#sha256=...&target=price`.

    Raises:
      ValueError: an option that is not among those known.
    """
    bare, _, fragment = given.partition("#")
    options = dict(urllib.parse.parse_qsl(fragment, keep_blank_values=True))
    unknown = sorted(set(options) - known) or ([fragment] if not options else [])
    if fragment and unknown:
        names = " and ".join(sorted(known))
        verb = "are" if len(known) > 1 else "is"
        msg = f"{given}: unknown option {unknown[0]!r} after '#': known {verb} {names}."
        raise ValueError(msg)
    return bare, options


def content(place: str, sha256: str | None = None) -> bytes:
    """The bytes of `file:PATH` or behind a web address."""
    if place.startswith("file:"):
        return find_file(place.removeprefix("file:"), sha256).read_bytes()
    return fetch(place, sha256).read_bytes()


def find_file(given: str, sha256: str | None = None) -> pathlib.Path:
    """A file by its path: absolute, or relative to the data folder or else the working directory.

    Raises:
      FileNotFoundError: it is in neither; the message says where it was looked for.
      ValueError: its content does not have the checksum.
    """
    path = pathlib.Path(given).expanduser()
    folder = data_folder()
    places = [path] if path.is_absolute() else [pathlib.Path.cwd() / path]
    if folder is not None and not path.is_absolute():
        places.insert(0, folder / path)
    for place in places:
        if place.is_file():
            return verified(place, sha256)
    looked = " and ".join(map(str, places))
    hint = "" if folder or path.is_absolute() else f"; {DATA_VARIABLE} is not set"
    msg = f"no data file {given!r}: looked for {looked}{hint}. Give its path, or put it there."
    raise FileNotFoundError(msg)


def verified(path: pathlib.Path, sha256: str | None) -> pathlib.Path:
    """The path, if its content has the checksum or none is asked for.

    Raises:
      ValueError: it has another.
    """
    if sha256 is not None:
        found = file_checksum(path)
        if found != sha256.lower():
            msg = (
                f"{path} is not the file that was asked for: its sha256 is {found}, expected "
                f"{sha256.lower()}. Delete it to fetch it again, or correct the checksum."
            )
            raise ValueError(msg)
    return path


def file_checksum(path: pathlib.Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, sha256: str | None = None) -> pathlib.Path:
    """The file behind an address, from the data folder, the cache or the network, in that order.

    The checksum of a first download is kept beside the file and demanded from then on, so that a
    study never continues on other data under the same address.

    Args:
      url: http or https.
      sha256: the content's, in hexadecimal; without one the first download is trusted.

    Raises:
      ValueError: not a web address, or a content with another checksum.
      FileNotFoundError: the file is not here and OPTIKIT_OFFLINE forbids fetching it.
      ConnectionError: the server did not deliver it.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        msg = f"{url!r} is no web address: write http://... or https://..."
        raise ValueError(msg)
    name = _file_name(parts.path)
    folder = data_folder()
    if folder is not None and (folder / name).is_file():
        return verified(folder / name, sha256)
    path = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    note = path.with_name(f"{path.name}.sha256")
    if path.is_file():
        if sha256 is None and note.is_file():
            sha256 = note.read_text(encoding="ascii").strip()
        return verified(path, sha256)
    if offline():
        own = f"{folder / name}" if folder else f"a folder that {DATA_VARIABLE} names, as {name}"
        msg = (
            f"{url} is not here and {OFFLINE_VARIABLE} forbids fetching it: looked for {path}. "
            f"Unset the variable, or put the file in {own}."
        )
        raise FileNotFoundError(msg)
    found = _download(url, path, sha256)
    note.write_text(f"{found}\n", encoding="ascii")
    return path


def _file_name(path: str) -> str:
    last = urllib.parse.unquote(path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".") or "download"


def _download(url: str, path: pathlib.Path, sha256: str | None) -> str:
    """Fetch into place in one atomic step; the checksum of what came."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = pathlib.Path(temporary)
    digest, received = hashlib.sha256(), 0
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer,
        ):
            promised = answer.headers.get("Content-Length")
            while block := answer.read(_BLOCK):
                digest.update(block)
                file.write(block)
                received += len(block)
        if promised is not None and received != int(promised):
            msg = f"{url}: {received} of {promised} bytes arrived. Try again."
            raise ConnectionError(msg)
        if sha256 is not None and digest.hexdigest() != sha256.lower():
            msg = (
                f"{url} delivered another file: its sha256 is {digest.hexdigest()}, expected "
                f"{sha256.lower()}. Nothing was kept."
            )
            raise ValueError(msg)
        part.replace(path)
    except urllib.error.URLError as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else error.reason
        msg = (
            f"{url} could not be fetched ({reason}). Check the address and the network, or put the "
            f"file into the folder that {DATA_VARIABLE} names."
        )
        raise ConnectionError(msg) from error
    except TimeoutError as error:
        msg = f"{url}: no answer within {PATIENCE_SECONDS} s."
        raise ConnectionError(msg) from error
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()
