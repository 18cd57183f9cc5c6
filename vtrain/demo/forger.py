"""A trainer who changes a finished run and signs it again, flawlessly: every digest, proof and signature holds.

What it makes passes ``vtrain verify``; only repeating the training finds it. For the demonstration and for tests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vtrain.commit import heads, keys, merkle, statement
from vtrain.commit.digest import TensorBytes, file_digest, files_digest
from vtrain.job import job_digest
from vtrain.store import canonical, transcript
from vtrain.store.checkpoint import RESUME, read_checkpoint, write_checkpoint
from vtrain.store.layout import Layout, step_name
from vtrain.store.log import LogWriter, read_segment
from vtrain.store.logformat import step_digest
from vtrain.store.steplog import StepLog
from vtrain.store.writer import KEY_NAME, RUN_PREDICATE

Files = dict[str, dict[str, TensorBytes]]
_NO_BOUND = 1 << 40


class Forger:
    """A run to be falsified.

    Args:
        run: the run directory, changed in place.
        key: the trainer's private key.

    Attributes:
        leaves: the leaves' JSON objects by step; change them as you like before ``sign``.
    """

    def __init__(self, run: Path, key: Ed25519PrivateKey) -> None:
        self.layout = Layout(run)
        self._key = key
        lines = transcript.read(self.layout.transcript).lines
        self.leaves: list[dict[str, Any]] = [value for _, value in lines if value["type"] == "leaf"]
        envelope = json.loads(self.layout.attestation.read_bytes())
        self._predicate = json.loads(keys.decode_base64(envelope["payload"]))["predicate"]

    def change_job(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the job."""
        job = json.loads(self.layout.job.read_bytes())
        change(job)
        self.layout.job.write_bytes(rfc8785.dumps(job))

    def change_checkpoint(self, step: int, change: Callable[[Files], None]) -> None:
        """Rewrite a checkpoint's tensors, and the state digest of its leaf."""
        files, meta = read_checkpoint(self.layout, step)
        copied = {f: {n: replace(t, data=bytes(t.view)) for n, t in ts.items()} for f, ts in files.items()}
        change(copied)
        write_checkpoint(self.layout, step, copied, meta)
        resume = {RESUME: copied.pop(RESUME)} if RESUME in copied else {}
        self.leaves[step]["state"] = files_digest(copied).text
        self.leaves[step]["resume"] = files_digest(resume).text if resume else ""

    def change_log(self, step: int, change: Callable[[StepLog], StepLog]) -> None:
        """Rewrite a step's rounding log, and the digest in its leaf."""
        ends = [leaf["step"] for leaf in self.leaves if leaf["state"]]
        last = next(s for s in ends if s >= step)
        segment = read_segment(self.layout.log, last, max_bytes=_NO_BOUND)
        logs = {s: segment.step(s) for s in range(segment.first, last + 1)}
        logs[step] = change(logs[step])
        shutil.rmtree(self.layout.log / step_name(last))
        with LogWriter(self.layout.log) as writer:
            for s, log in logs.items():
                writer.append(s, log)
            writer.end_segment(last)
        self.leaves[step]["log"] = step_digest(logs[step]).hex()

    def _identify(self) -> tuple[bytes, bytes]:
        """Write what the run is anew, as job and first leaf are now; the digests of the job and of that."""
        digest = job_digest(self.layout.job.read_bytes())
        value = json.loads(self.layout.identity.read_bytes())
        value["job"] = heads.job_text(digest)
        if value["loop"] is not None:
            value["loop"]["state"] = self.leaves[0]["state"]
        data = canonical.dumps(value)
        self.layout.identity.write_bytes(data)
        return digest, hashlib.sha256(data).digest()

    def sign(self) -> None:
        """Write transcript and attestation anew over what there is now."""
        digest, run = self._identify()
        tree = merkle.Tree()
        lines: list[bytes] = []
        note = ""
        for leaf in self.leaves:
            lines.append(canonical.dumps(leaf))
            tree.append(merkle.leaf_hash(lines[-1]))
            if leaf["state"]:
                note = heads.sign_head(heads.Head(len(tree), tree.root(), digest, run), self._key, KEY_NAME)
                lines.append(canonical.dumps({"type": "head", "note": note}))
        self.layout.transcript.write_bytes(b"".join(line + b"\n" for line in lines))
        last = len(self.leaves) - 1
        name = f"checkpoints/{step_name(last)}/model.safetensors"
        named = {"job": heads.job_text(digest), "run": heads.run_text(run)}
        predicate = {**self._predicate, **named, "steps": last, "head": note}
        made = statement.make_statement(name, file_digest(self.layout.root / name), RUN_PREDICATE, predicate)
        self.layout.attestation.write_bytes(statement.sign_statement(made, self._key))


def one_ulp(tensor: TensorBytes, index: int = 0) -> TensorBytes:
    """A float32 tensor with one element moved by one unit in the last place."""
    bits = np.frombuffer(tensor.view, "<u4").copy()
    bits[index] ^= 1
    return replace(tensor, data=bits.tobytes())
