"""A study's models and records at a URL, for machines that share no folder. What is not whole there is not there.

Any URL of fsspec: `s3://bucket/study`, `gs://...`, `abfs://...`, `file:///mnt/share/study`, each with its package.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leanwatt.cache import COSTS, SPENT, alone, draft_of, is_whole, publish
from leanwatt.errors import StoreError, StudyError
from leanwatt.recipe import digest
from leanwatt.starter import cache_folder

PART = ".part"
CONFIG = "config.json"


@dataclass(frozen=True)
class Mirror:
    """Folders of stages below `variants`, records and predictions beside it, as in a store."""

    url: str

    @property
    def here(self) -> Path:
        """This machine's copy of what its jobs needed; it may be removed while nothing runs."""
        return cache_folder() / "mirrors" / digest(self.url)

    def bring(self, folder: Path) -> bool:
        """Have a stage here; False where it is neither here nor there."""
        with _told(self.url), alone(folder):
            if is_whole(folder):
                return True
            if not self._has(folder):
                return False
            with draft_of(folder) as draft:
                self._fetch(folder, draft)
                publish(draft, folder)
            return True

    def bring_stages(self, folders: Sequence[Path], parent: int | None) -> None:
        """The last stage that is there, and the one at `parent` before it; of others costs and configuration."""
        with _told(self.url):
            there = [place for place, folder in enumerate(folders) if is_whole(folder) or self._has(folder)]
        last = max(there, default=-1)
        for place, folder in enumerate(folders[: last + 1]):
            if place in (last, parent):
                self.bring(folder)
            elif place in there and not is_whole(folder):
                self._bring_costs(folder)

    def send(self, folder: Path) -> None:
        """A whole stage; the file that says so goes last."""
        with _told(self.url):
            if not is_whole(folder) or self._has(folder):
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / COSTS)
            for path in files:
                self._put(path, f"variants/{folder.name}/{path.relative_to(folder).as_posix()}")
            self._put_whole(folder / COSTS, f"variants/{folder.name}/{COSTS}")

    def keep(self, store: Path, record_id: str) -> None:
        """A record and its predictions, which go first."""
        with _told(self.url):
            for name in (f"predictions/{record_id}.parquet", f"records/{record_id}.json"):
                if (store / name).is_file():
                    self._put_whole(store / name, name)

    def bring_records(self, store: Path) -> None:
        """What is there and not here: a study may go on on another machine."""
        with _told(self.url):
            for kind in ("predictions", "records"):
                for path in self._files(f"{self._root}/{kind}"):
                    target = store / kind / path.rpartition("/")[2]
                    if not target.exists() and not path.endswith(PART):
                        draft = target.with_name(f".{target.name}.{os.getpid()}")
                        self._system.get_file(path, str(draft))
                        draft.replace(target)

    def _bring_costs(self, folder: Path) -> None:
        with _told(self.url), alone(folder):
            folder.mkdir(exist_ok=True)
            for far, near in ((COSTS, SPENT), (CONFIG, CONFIG)):
                self._system.get_file(f"{self._root}/variants/{folder.name}/{far}", str(folder / near))

    def _has(self, folder: Path) -> bool:
        return bool(self._system.exists(f"{self._root}/variants/{folder.name}/{COSTS}"))

    def _fetch(self, folder: Path, draft: Path) -> None:
        whole = f"{self._root}/variants/{folder.name}/"
        for path in self._files(whole):
            target = draft / path.removeprefix(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(path, str(target))

    def _put(self, path: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(path), target)

    def _put_whole(self, path: Path, name: str) -> None:
        """Under another name first: on a plain disk half a file would be seen."""
        self._put(path, name + PART)
        self._system.mv(f"{self._root}/{name}{PART}", f"{self._root}/{name}")

    def _files(self, place: str) -> list[str]:
        return [str(path) for path in self._system.find(place)] if self._system.exists(place) else []

    @property
    def _root(self) -> str:
        return str(self._opened[1]).rstrip("/")

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """Not kept in what is sent to other machines."""
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StudyError(f"executor store: '{_public(self.url)}' cannot be used ({error}).") from error
        return system, root

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)


def _public(url: str) -> str:
    """Without a name and password."""
    return re.sub(r"//[^/@]*@", "//...@", url)


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{_public(url)}: cannot be read or written ({type(error).__name__}: {error}). What was finished is safe."
        ) from error
