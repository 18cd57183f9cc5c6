"""Commitments: what a run promises, in digests, trees and signatures (protocol §4 to §6).

``merkle`` is the RFC 6962 tree, ``digest`` the digests of tensors and states, ``keys`` Ed25519 keys and signatures,
``heads`` signed tree heads and ``statement`` signed in-toto statements. Nothing here knows torch or zarr, so that a
verifier can be small.
"""
