"""Training state as named tensors: what a checkpoint holds, a digest covers, a loop keeps a copy of (protocol §3)."""

from vtrain.engine.state.files import Files, as_bytes, collect, digest, restore, versions

__all__ = ["Files", "as_bytes", "collect", "digest", "restore", "versions"]
