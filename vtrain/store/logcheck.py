"""What can be said of a rounding log without zarr: which segments are complete, and that zarr may decode a segment.

Everything is hostile input (protocol §7.1): metadata must be exactly what :mod:`vtrain.store.logformat` writes, every
shard must be there, nothing else may be, and all sizes are bounded before anything is read.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtrain.errors import LogError, PathError, VersionError
from vtrain.store.atomic import TEMPORARY, remove_temporaries, remove_tree, storage_errors
from vtrain.store.canonical import unique_keys
from vtrain.store.layout import parse_step, safe_open, step_name
from vtrain.store.logformat import (
    ENCODING_VERSION,
    FORMAT_VERSION,
    OFFSETS,
    SPECS,
    array_metadata,
    check_shard,
    group_metadata,
)
from vtrain.store.steplog import SITE_COLUMNS

_MAX_METADATA_BYTES = 16 * 1024
_MAX_SEGMENTS = 1_000_000
# Other releases of zarr may leave these out or add them; only these values mean nothing.
_NEUTRAL: dict[str, Any] = {"attributes": {}, "storage_transformers": [], "dimension_names": None}


def segments(root_dir: Path) -> list[int]:
    """The steps that end the complete segments of the log `root_dir`, ascending.

    Raises:
        LogError: the log is missing, has too many segments, or has a name that is not the log's.
        StorageError: the disk fails.
    """
    complete = [step for step, whole in _found(root_dir) if whole]
    return sorted(complete)


def discard_after(root_dir: Path, step: int) -> None:
    """Remove all segments after `step`, incomplete ones, and temporary files; for the writer alone, on resuming.

    Raises:
        LogError: as :func:`segments`.
        StorageError: the disk refuses.
    """
    for found, whole in sorted(_found(root_dir), reverse=True):
        if found > step or not whole:
            remove_tree(root_dir / step_name(found))
    remove_temporaries(root_dir)


def _found(root_dir: Path) -> list[tuple[int, bool]]:
    """Each segment's step, and whether it is complete: its metadata is written last."""
    result = []
    for name in _names(root_dir, _MAX_SEGMENTS):
        if name == "zarr.json" or TEMPORARY in name:
            continue
        step = parse_step(name)
        if step is None:
            raise LogError(f"{root_dir}: unexpected name {name!r}; expected segments named by their last step")
        result.append((step, (root_dir / name / "zarr.json").is_file()))
    return result


@dataclass(frozen=True)
class SegmentFiles:
    """A segment whose metadata and file names are checked.

    Attributes:
        root_dir: the log.
        step: the step that names the segment, its last.
        first: its first step.
        rows: each array's rows; ``sites`` has six rows a site, as it is flattened.
    """

    root_dir: Path
    step: int
    first: int
    rows: dict[str, int]

    def where(self, relative: str) -> str:
        """Names a file of the segment in messages."""
        return f"{self.root_dir / step_name(self.step) / relative}"

    def shard_rows(self, name: str, number: int) -> int:
        """Rows in shard `number` of array `name`."""
        return min(SPECS[name].shard, self.rows[name] - number * SPECS[name].shard)

    def shard(self, name: str, number: int) -> bytes:
        """The bytes of a shard, which :func:`vtrain.store.logformat.check_shard` accepted.

        Raises:
            LogError: it is truncated, or not of the chunks that its array must have.
            PathError: it is missing, a link, a special file, or too large.
            StorageError: the disk fails.
        """
        spec = SPECS[name]
        key = f"{name}/{spec.shard_key(number)}"
        data = _read(self.root_dir, f"{step_name(self.step)}/{key}", spec.max_shard_bytes)
        check_shard(spec, self.shard_rows(name, number), data, self.where(key))
        return data


def check_segment(root_dir: Path, step: int, *, max_bytes: int) -> SegmentFiles:
    """Check a segment's metadata and file names.

    Args:
        root_dir: the log.
        step: the step that names the segment.
        max_bytes: bound on all its arrays together before compression, in bytes.

    Raises:
        LogError: the segment is missing or incomplete, its metadata is not as this format writes it, a file is missing
            or unexpected, or it is larger than `max_bytes`.
        VersionError: it has another format or encoding version.
        PathError: a link, a special file or an oversized file.
        StorageError: the disk fails.
    """
    segment = root_dir / step_name(step)
    if root_dir.is_symlink():
        raise PathError(f"{root_dir}: a symbolic link; expected a directory")
    if not (segment / "zarr.json").is_file():
        raise LogError(f"{segment}: missing or incomplete; expected a segment of the rounding log")
    _expect_names(segment, {"zarr.json", *SPECS})
    first = _check_group(_metadata(root_dir, f"{segment.name}/zarr.json"), step, f"{segment}")
    rows = {name: _check_array(root_dir, segment.name, name) for name in SPECS}
    total = sum(rows[name] * spec.row_bytes for name, spec in SPECS.items())
    if total > max_bytes:
        raise LogError(f"{segment}: {total} bytes before compression; expected at most {max_bytes}")
    if rows[OFFSETS.name] != step - first + 1 or rows["sites"] % SITE_COLUMNS:
        raise LogError(
            f"{segment}: {rows[OFFSETS.name]} steps and {rows['sites']} site numbers; expected {step - first + 1}, and "
            f"a multiple of {SITE_COLUMNS}"
        )
    for name, spec in SPECS.items():
        count = spec.shards(rows[name])
        shards = segment / name / "c"
        _expect_names(segment / name, {"zarr.json", "c"} if count else {"zarr.json"})
        if count:
            _expect_names(shards, {str(number) for number in range(count)})
            for number in range(count if spec.width > 1 else 0):
                _expect_names(shards / str(number), {"0"})
    return SegmentFiles(root_dir, step, first, rows)


def _check_group(found: dict[str, Any], step: int, where: str) -> int:
    """The first step, out of the group's metadata."""
    attributes = found.get("attributes")
    if not isinstance(attributes, dict):
        raise LogError(f"{where}: its metadata has no attributes")
    for key, version in (("vtrain_log", FORMAT_VERSION), ("encoding_version", ENCODING_VERSION)):
        if _integer(attributes.get(key)) != version:
            raise VersionError(f"{where}: {key} is {attributes.get(key)!r}; this release reads {version}")
    first = _integer(attributes.get("first_step"))
    if first is None or not 0 <= first <= step or not _same(found, group_metadata(first, step)):
        raise LogError(f"{where}: metadata {json.dumps(found)[:300]}; expected a segment that ends at step {step}")
    return first


def _check_array(root_dir: Path, segment: str, name: str) -> int:
    """The rows of an array, out of its metadata."""
    spec = SPECS[name]
    found = _metadata(root_dir, f"{segment}/{name}/zarr.json")
    where = f"{root_dir / segment / name}"
    shape = found.get("shape")
    rows = _integer(shape[0]) if isinstance(shape, list) and shape else None
    if rows is None or not 0 <= rows < 2**53 or shape != list(spec.extent(rows)):
        raise LogError(f"{where}: shape {str(shape)[:100]}; expected {spec.width} numbers a row, and rows below 2**53")
    expected = array_metadata(spec, rows)
    for key in sorted(expected.keys() | found.keys()):
        neutral = _NEUTRAL.get(key)
        if key not in expected and key not in _NEUTRAL:
            raise LogError(f"{where}: unknown metadata {key!r}")
        if not _same(found.get(key, neutral), expected.get(key, neutral)):
            raise LogError(f"{where}: {key} is {str(found.get(key))[:300]}; expected {expected.get(key, neutral)}")
    return rows


def _same(found: object, expected: object) -> bool:
    """Equal as JSON texts, so that true is not 1 and 1.0 is not 1."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _metadata(root_dir: Path, relative: str) -> dict[str, Any]:
    data = _read(root_dir, relative, _MAX_METADATA_BYTES)
    try:
        value = json.loads(data, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise LogError(f"{root_dir / relative}: {error}") from error
    if not isinstance(value, dict):
        raise LogError(f"{root_dir / relative}: expected a JSON object, found {type(value).__name__}")
    return value


def _read(root_dir: Path, relative: str, max_bytes: int) -> bytes:
    # From above the log, so that the log itself can't become a link.
    below = f"{root_dir.name}/{relative}"
    with safe_open(root_dir.parent, below, max_bytes=max_bytes) as handle, storage_errors(root_dir / relative):
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise LogError(f"{root_dir / relative}: grew while it was read, beyond {max_bytes} bytes")
    return data


def _expect_names(directory: Path, expected: set[str]) -> None:
    found = set(_names(directory, len(expected) + 1))
    if found != expected:
        missing, unexpected = sorted(expected - found)[:5], sorted(found - expected)[:5]
        raise LogError(f"{directory}: missing {missing}, unexpected {unexpected}")


def _names(directory: Path, limit: int) -> list[str]:
    """Up to `limit` names in a directory that is no link; more are an error only for the caller's comparison."""
    with storage_errors(directory):
        try:
            mode = os.lstat(directory).st_mode
        except FileNotFoundError as error:
            raise LogError(f"{directory}: missing") from error
        if not stat.S_ISDIR(mode):
            raise PathError(f"{directory}: expected a directory, not a link or file")
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(names) >= limit:
                    raise LogError(f"{directory}: more than {limit} names")
                names.append(entry.name)
    return names
