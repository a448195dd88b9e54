"""Objects on shared storage, through fsspec: each is stored under its name once, as a whole, and then never changes.

    URL/store.safetensors   marks the place as a store, and shows before any computing that it can be written
    URL/NAME.safetensors    an object: a bundle of files (see `bundle.py`)

Storage that many machines share has no locks that can be relied on, and none are needed: a reader finds a whole object
or none, and of several clients that store the same object the first one wins. Where the storage itself does not
guarantee that, the checksums show an object that was written in part: it counts as missing, and is stored again.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final
from urllib.parse import urlsplit

from casemate.engine.bundle import about_bundle, pack, unpack
from casemate.errors import CasemateError, MissingExtraError, StoreError, missing_extra
from casemate.files import cache_folder, make_folder, writing
from casemate.progress import NULL_OBSERVER, Advance, Observer

T = TypeVar("T")

_SUFFIX = ".safetensors"
_MARK = "store"
_SCHEMA = 1
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of a request that fails; a request is tried once more than there are pauses."""
_AGAIN = 1.0
"""Seconds after which a damaged object is read once more: it may just be being written."""
_SMALL = 64 << 20
"""Bytes up to which an object is stored by one request of its whole content."""
_HEAD = 1 << 16
"""Bytes that are read to see what an object is about; more if its head is longer."""
_LEFT = 86_400
"""Seconds after which the temporary files that a killed process left are removed."""
_MOST_WORDS = 300
"""Largest number of characters shown of an error's message, which may quote a whole page of a server's."""
_NO_FOLDERS = ("s3", "s3a", "gs", "gcs", "abfs", "az", "abfss", "adl", "oss", "r2", "hf", "memory")
"""Protocols of storage without folders; to create one there could create a bucket."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra that installs what a protocol needs; of others fsspec says what to install."""
_S3 = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}
"""Limits of botocore, whose own wait many minutes for a network that does not answer; requests are repeated here."""
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError")
_FINAL = (*_CREDENTIALS, "ParamValidationError", "InvalidRegionError", "NoRegionError", "DefaultCredentialsError")
"""Errors, by the names of their classes in libraries that may not be installed, that do not pass by waiting."""
_FINAL_CODES = (errno.ENOSPC, errno.EROFS, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EDQUOT, errno.ENAMETOOLONG)


_ONE_SLASH = re.compile(r"(\w[\w+.-]+):/")
"""The beginning of a URL that has lost a slash; one letter alone is a drive of Windows."""


def is_url(location: Path | str) -> bool:
    """Whether the location of a store is a URL, and not a folder.

    Raises `StoreError` for one that is neither: an empty text, a URL that lacks a slash, or a URL given as a path.
    """
    if isinstance(location, str):
        if not location.strip():
            raise StoreError(
                f"the store is named by an empty text, {location!r}; expected a folder, or a URL such as "
                "s3://bucket/prefix; name none for the default store"
            )
        if "://" not in location and (found := _ONE_SLASH.match(location)):
            raise StoreError(
                f"{location!r} is no URL, which has two slashes after the colon; expected {found[1]}://... for shared "
                f"storage (file:///mnt/shared has three, since its path begins with one), or the plain path of a folder"
            )
        return "://" in location
    head, colon, rest = str(location).partition(":/")
    if colon and len(head) > 1 and head.isalnum() and not rest.startswith("/"):
        raise StoreError(f"the path {location} looks like a URL, of which a path loses a slash: give it as text")
    return False


@final
class Objects:
    """The objects under a URL. Nothing is read or written before the first call of a method.

    Every method raises `StoreError` if the storage does not answer after several attempts, or refuses the request, and
    `MissingExtraError` if the package for the URL's protocol is not installed.

    Args:
        url: such as s3://bucket/prefix, file:///mnt/shared or any other that fsspec knows.
        observer: receives the progress of transfers, and messages on damaged objects and repeated requests.
    """

    def __init__(self, url: str, observer: Observer = NULL_OBSERVER) -> None:
        protocol, _, place = url.partition("://")
        if not protocol or not place.strip("/") or "::" in url:
            raise StoreError(f"{url!r} is no place for a store; expected a URL such as s3://bucket/prefix")
        try:
            has_password = bool(urlsplit(url).password)
        except ValueError as error:  # a bracket, as of an address of IPv6, that is not closed
            raise StoreError(f"{url!r} is no URL ({error}); expected one such as s3://bucket/prefix") from error
        if has_password:
            raise StoreError(
                f"the {protocol}:// URL of the store contains a password, which messages and reports would show; leave "
                "it out, and give it in the environment or in fsspec's configuration"
            )
        if protocol in ("file", "local"):
            if not place.startswith("/"):
                raise StoreError(
                    f"{url} names no place that other machines could know, since its path is relative; expected "
                    f"{protocol}:///{place} with three slashes, or for a folder of this machine the plain path {place}"
                )
            place = os.path.abspath(place)  # noqa: PTH100 (resolves no links)
        self.url = f"{protocol}://{place.rstrip('/')}"
        self.protocol = protocol
        self.observer = observer
        self._is_marked = False

    @cached_property
    def root(self) -> Path:
        """The folder of this machine, in the user's cache directory, for copies of these objects and for locks."""
        return make_folder(cache_folder() / "shared" / hashlib.sha256(self.url.encode()).hexdigest()[:16])

    @cached_property
    def _fs(self) -> Any:
        import fsspec
        from fsspec.config import conf

        options = {}
        if self.protocol in _EXTRAS:
            users = conf.get(self.protocol, {}).get("config_kwargs", {})
            options = {"config_kwargs": _S3 | users}
        try:
            return fsspec.url_to_fs(self.url, **options)[0]
        except ImportError as error:
            if self.protocol in _EXTRAS:
                raise missing_extra(f"the store {self.url}", _EXTRAS[self.protocol]) from error
            raise MissingExtraError(f"the store {self.url} needs another package: {_words(error)}") from error
        except ValueError as error:
            if self.protocol not in fsspec.available_protocols():
                raise StoreError(
                    f"{self.url}: unknown protocol {self.protocol}; expected a folder, or a URL such as "
                    "s3://bucket/prefix or file:///mnt/shared"
                ) from error
            raise self._error("cannot use", self.url, error) from error
        except Exception as error:  # an optional package's constructor may raise anything
            raise self._error("cannot use", self.url, error) from error

    @cached_property
    def _base(self) -> str:
        return self._fs._strip_protocol(self.url).rstrip("/")

    def place(self, name: str) -> str:
        """The URL of the object `name`, for messages."""
        return f"{self.url}/{name}{_SUFFIX}"

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}{_SUFFIX}"

    # Reading ----------------------------------------------------------------------------------------------------------
    def listing(self, folder: str) -> dict[str, int]:
        """The size in bytes of every object whose name begins with `folder` and a slash, by name, in one request."""

        def found() -> dict[str, Any]:
            self._fs.invalidate_cache()
            return self._fs.find(f"{self._base}/{folder}", detail=True)

        try:
            held = self._tried("cannot list", f"{self.url}/{folder}", found)
        except FileNotFoundError:
            return {}
        names: dict[str, int] = {}
        for path, info in held.items():
            name = path.removeprefix(f"{self._base}/").removesuffix(_SUFFIX)
            if path.endswith(_SUFFIX) and not name.rpartition("/")[2].startswith("."):
                names[name] = int(info.get("size") or 0)
        return dict(sorted(names.items()))

    @contextmanager
    def get(self, name: str) -> Iterator[Path | None]:
        """Context that fetches an object and yields a temporary folder with its files; None if there is none.

        The folder is on the file system of `root`, so that what is of use can be moved out of it. A damaged object
        counts as missing; the observer receives a message.
        """
        with self._temporary() as folder:
            yield folder if self._fetched(name, folder) else None

    def _fetched(self, name: str, folder: Path) -> bool:
        from casemate.arrays import UnsoundError

        for last in (False, True):
            bundle = folder.with_suffix(".fetched")
            try:
                self._download(name, bundle)
                if unpack(bundle, folder).get("object") != name:
                    raise UnsoundError("it is another object, under this name")
                return True
            except FileNotFoundError:
                return False
            except UnsoundError as error:
                if last:
                    self.observer.message(f"{self.place(name)} is damaged ({error}); it counts as missing")
                    return False
            except OSError as error:
                raise StoreError(f"cannot write into {folder}: {error.strerror or error}; free some space") from error
            finally:
                bundle.unlink(missing_ok=True)
            shutil.rmtree(folder)
            folder.mkdir()
            time.sleep(_AGAIN)
        return False

    def _download(self, name: str, target: Path) -> None:
        with self.observer.work(f"Fetching {name}", 0) as advance:
            callback = _callback(advance, shutil.disk_usage(target.parent).free)

            def fetch() -> None:
                self._fs.get_file(self._path(name), str(target), callback=callback)

            self._tried("cannot read", self.place(name), fetch)

    def expect_store(self) -> None:
        """Raise `StoreError` if nothing was ever stored here, as under a URL with a spelling mistake."""
        with self.get(_MARK) as found:
            if found is None:
                raise StoreError(f"{self.url} is no store, since nothing was ever stored there; check the URL")

    def about(self, name: str, size: int) -> dict[str, Any] | None:
        """What an object of `size` bytes says about its files, of which only its first bytes are read.

        None if it is not there, or damaged; of damage the observer receives a message.
        """
        from casemate.arrays import UnsoundError

        needed: dict[str, Any] | int = _HEAD
        try:
            while isinstance(needed, int):
                end = min(size, needed)
                head = self._tried(
                    "cannot read",
                    self.place(name),
                    lambda end=end: self._fs.cat_file(self._path(name), start=0, end=end),
                )
                needed = about_bundle(head, size)
        except FileNotFoundError:
            return None
        except UnsoundError as error:
            self.observer.message(f"{self.place(name)} is damaged: {error}")
            return None
        return needed if needed.get("object") == name else None

    # Writing ----------------------------------------------------------------------------------------------------------
    def expect_writable(self) -> None:
        """Raise `StoreError` if objects cannot be stored, before anything is computed that would be."""
        if self._is_marked:
            return
        with self._temporary() as folder:
            bundle = folder / "bundle"
            pack({}, bundle, {"object": _MARK, "schema": _SCHEMA})
            self._create(_MARK, bundle)
        self._is_marked = True

    @contextmanager
    def stored(
        self,
        name: str,
        files: Mapping[str, Path],
        about: Mapping[str, Any],
        *,
        is_usable: Callable[[Path], bool] = lambda found: True,
    ) -> Iterator[Path | None]:
        """Context that stores files, by name, as an object, and yields None if the object now has these files.

        If it was there already, the first one stays: yields a temporary folder with its files, as `get` does. An object
        is replaced if it is damaged, or if its files in that folder are of no use according to `is_usable`.
        """
        with self._temporary() as temporary:
            bundle = temporary.with_suffix(".bundle")
            try:
                pack(files, bundle, {**about, "object": name})
                if self._create(name, bundle):
                    theirs = None
                elif self._fetched(name, temporary) and is_usable(temporary):
                    theirs = temporary
                else:
                    self._upload(name, bundle, replace=True)
                    theirs = None
            except OSError as error:
                raise StoreError(f"cannot write {bundle}: {error.strerror or error}; free some space") from error
            finally:
                bundle.unlink(missing_ok=True)
            yield theirs

    def _create(self, name: str, bundle: Path) -> bool:
        """Store an object unless there is one with this name; return whether it was stored."""
        try:
            self._upload(name, bundle, replace=False)
        except FileExistsError:
            return False
        return True

    def _upload(self, name: str, bundle: Path, *, replace: bool) -> None:
        size, path = bundle.stat().st_size, self._path(name)
        with self.observer.work(f"Storing {name}", size if size > _SMALL else 0) as advance:

            def send(mode: str) -> None:
                if self.protocol in ("file", "local"):
                    _write_file(bundle, Path(path), replace=mode == "overwrite")
                    return
                if self.protocol not in _NO_FOLDERS:
                    self._fs.makedirs(self._fs._parent(path), exist_ok=True)
                if size <= _SMALL:
                    self._fs.pipe_file(path, bundle.read_bytes(), mode=mode)
                else:
                    self._fs.put_file(str(bundle), path, mode=mode, callback=_callback(advance))

            def send_unless_there() -> None:
                if replace:
                    send("overwrite")
                    return
                try:
                    send("create")
                except (FileExistsError, PermissionError, FileNotFoundError):
                    raise
                except Exception as error:  # of storage whose refusal of a second object looks like any other error
                    self._fs.invalidate_cache()  # a list from before another client stored it
                    if self._fs.exists(path):
                        raise FileExistsError(path) from error
                    if not isinstance(error, NotImplementedError) and getattr(error, "errno", None) != errno.ENOSYS:
                        raise
                    send("overwrite")

            try:
                self._tried("cannot store", self.place(name), send_unless_there)
            except FileNotFoundError as error:
                raise self._error("cannot store", self.place(name), error) from error

    def remove(self, name: str) -> None:
        """Remove an object, on purpose; one that is not there is none."""
        with suppress(FileNotFoundError):
            self._tried("cannot remove", self.place(name), lambda: self._fs.rm_file(self._path(name)))

    # Both -------------------------------------------------------------------------------------------------------------
    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Context of an empty folder below `root`; what processes that were killed left there is removed."""
        home = make_folder(self.root / "moving")
        for left in home.iterdir():
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tried(self, failed: str, what: str, request: Callable[[], T]) -> T:
        """The result of a request, which is repeated after growing pauses if it fails for a reason that may pass.

        Raises `FileNotFoundError` and `FileExistsError` as they are, since callers know what they mean.
        """
        for pause in (*_PAUSES, None):
            try:
                return request()
            except (CasemateError, FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # a file system's package may raise anything
                if pause is None or _is_final(error):
                    raise self._error(failed, what, error) from error
                self.observer.message(f"{failed} {what} now ({_words(error)}); trying again in {pause:g} s")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _error(self, failed: str, what: str, error: Exception) -> StoreError:
        """The error of a request: what failed, the storage's own words, and what to do."""
        if isinstance(error, PermissionError) or _named(error, _CREDENTIALS):
            advice = "check the credentials, and that they allow it"
            if self.protocol in _EXTRAS:
                advice = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and what they allow"
        elif isinstance(error, FileNotFoundError):
            advice = "create the bucket first, or check the URL"
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space there"
        elif _is_final(error):
            advice = "check the URL"
        else:
            advice = "check the network, and run the same command again"
        return StoreError(f"{failed} {what}: {_words(error)}; {advice}, or use another store")


def _write_file(source: Path, target: Path, *, replace: bool) -> None:
    """Copy a file, whole or not at all; raises `FileExistsError` if it is there, unless `replace`."""
    whole = target if replace else target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(whole) as temporary:  # also if it is there: the caller may want to know whether it could be written
        shutil.copyfile(source, temporary)
    if replace:
        return
    try:
        os.link(whole, target)  # fails if it exists, unlike a rename
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links
        if target.exists():
            raise FileExistsError(target) from error
        whole.replace(target)
    finally:
        whole.unlink(missing_ok=True)


def _callback(advance: Advance, room: int | None = None) -> Any:
    """Fsspec's observer of a transfer, which reports its bytes; one of more than `room` bytes is refused."""
    from fsspec.callbacks import Callback

    class Reporting(Callback):
        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            if room is not None and size is not None and size > room:
                raise StoreError(f"an object of {size:,} bytes does not fit on this machine's disk; free some space")

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            advance(inc, f"{self.value / 1e6:.1f} MB")

    return Reporting()


def _named(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(each.__name__ in names for each in type(error).__mro__)


def _is_final(error: Exception) -> bool:
    """Whether an error of a request is one that does not pass by waiting."""
    kinds = (PermissionError, FileNotFoundError, ImportError, NotImplementedError, TypeError, ValueError, MemoryError)
    return isinstance(error, kinds) or getattr(error, "errno", None) in _FINAL_CODES or _named(error, _FINAL)


def _words(error: Exception) -> str:
    """An error's message on one line, not too long."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split()).rstrip(".")
    return text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]}..."
