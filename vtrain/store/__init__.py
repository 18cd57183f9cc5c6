"""What a run is on disk (protocol §3): layout, rounding log, checkpoints, transcript.

Every write is atomic and durable; every read takes its input for hostile (protocol §7.1). Nothing here imports torch,
and only :mod:`vtrain.store.log` imports zarr, so that the checks of a verifier run without either.
"""
