"""A store on S3: every change by a writer names the state that it changes, so that a late request changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from fsspec.asyn import sync

from repaudit.store.storage.remote import RemoteStorage, reached
from repaudit.store.storage.storage import ChangedError, Fence, Parts

_ATTEMPTS: Final = 5
_ONE_REQUEST: Final = 2**32
"""Bytes up to which an object is replaced by one request: only that can be conditional."""


def _is_refusal(error: OSError) -> bool:
    """Return whether a request was refused because its condition did not hold."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    return code == "PreconditionFailed" or isinstance(error, FileExistsError | FileNotFoundError)


class S3Storage(RemoteStorage):
    """An S3 bucket, or a part of one, written by conditional requests.

    A fenced write first learns the object's version (its ETag; or that there is none), then checks the fence, then
    puts on the condition that the version is still that. A request that arrives after the next holder wrote the object
    is refused by the service.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        super().__init__(filesystem, root, url)
        self._versions: dict[str, str | None] = {}

    def put(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Write one object."""
        self.put_many({key: parts}, fence)

    def put_many(self, objects: Mapping[str, Parts], fence: Fence | None = None) -> None:
        """Write several objects; all of them are stored when this returns."""
        if fence is None:
            super().put_many(objects)
            return
        pending = {key: b"".join(parts) for key, parts in objects.items()}
        for _ in range(_ATTEMPTS):
            fence.check()
            pending = self._put_known(pending)
            if not pending:
                return
            self._learn(list(pending))
        raise ChangedError(f"{self.url}: {', '.join(pending)} kept changing while they were written")

    def note(self, key: str) -> None:
        """Note the present version of an object, before it is read, as the one that the next `swap` replaces."""
        self._learn([key])

    def swap(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Replace the noted version of an object, or raise ChangedError if it is no longer that."""
        if fence is not None:
            fence.check()
        if self._put_known({key: b"".join(parts)}):
            if fence is not None:
                fence.check()
            raise ChangedError(f"{self.url}: {key} was changed by somebody else")

    def delete(self, key: str, fence: Fence | None = None) -> None:
        """Remove one object, if it exists."""
        if fence is None:
            super().delete(key)
            return
        with reached(self.url):
            version = self._gather([self._version(key)])[0]
        fence.check()
        self._delete_versions({self.path(key): version} if version else {})

    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        """Remove every object below `prefix`."""
        if fence is None:
            super().delete_prefix(prefix)
            return
        with reached(self.url):
            self.filesystem.invalidate_cache()
            found = self.filesystem.find(self.path(prefix), detail=True)
        fence.check()
        self._delete_versions({path: info["ETag"] for path, info in found.items()})

    def _put_known(self, objects: Mapping[str, bytes]) -> dict[str, bytes]:
        """Put each object on the condition that its version is the known one; return those refused."""
        with reached(self.url):
            put = self._gather([self._put_one(key, data) for key, data in objects.items()])
        return {key: data for (key, data), done in zip(objects.items(), put, strict=True) if not done}

    async def _put_one(self, key: str, data: bytes) -> bool:
        version = self._versions.get(key)
        try:
            if version is None:
                done = await self.filesystem._pipe_file(self.path(key), data, mode="create")
            else:
                done = await self.filesystem._pipe_file(self.path(key), data, chunksize=_ONE_REQUEST, IfMatch=version)
        except OSError as error:
            if _is_refusal(error):
                return False
            raise
        if key in self._versions:  # one that is written again and again, unlike the chunks of a step
            self._versions[key] = (done or {}).get("ETag")
        return True

    def _learn(self, keys: Sequence[str]) -> None:
        with reached(self.url):
            self._versions |= dict(zip(keys, self._gather([self._version(key) for key in keys]), strict=True))

    async def _version(self, key: str) -> str | None:
        try:
            return str((await self.filesystem._info(self.path(key), refresh=True))["ETag"])
        except (FileNotFoundError, KeyError):
            return None

    def _delete_versions(self, versions: Mapping[str, str]) -> None:
        with reached(self.url):
            self._gather([self._delete_one(path, version) for path, version in versions.items()])

    async def _delete_one(self, path: str, version: str) -> None:
        bucket, key, _ = self.filesystem.split_path(path)
        try:
            await self.filesystem._call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)
        except OSError as error:
            if not _is_refusal(error):  # else it is another one by now, or none
                raise
        finally:
            self.filesystem.invalidate_cache(path)

    def _gather(self, coroutines: Sequence[Awaitable[Any]]) -> list[Any]:
        async def gather() -> list[Any]:
            return list(await asyncio.gather(*coroutines))

        return list(sync(self.filesystem.loop, gather))
