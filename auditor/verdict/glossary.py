"""What the words mean that commands, verdicts and reports count by; ``docs/glossary.md`` says the same. No torch."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "step",
        "one turn of the training loop. Step 0 is the initialisation, so that a run of N steps has N + 1 to replay",
    ),
    ("segment", "the steps between two checkpoints, which can be replayed by themselves; step 0 is one of its own"),
    ("site", "where in a step a result is made: operation, format and shape. Steps with the same sites share a list"),
    ("result", "what one operation of a step gives: a tensor. A step has as many results as sites"),
    ("values", "the elements of results: of canonical and of logged operations"),
    ("canonical", "of one defined order of arithmetic: the same on every machine, without a log"),
    ("settled", "logged operations' values are settled: computed in a wider type and rounded by the log's decisions"),
    ("in doubt", "of a settled value: near enough to a rounding edge that other hardware could round it otherwise"),
    ("decision", "an entry of the log: how a value that was in doubt was rounded. `entries` in JSON"),
    ("examined", "of decisions: those that an audit compared with its own roundings; of large results a sample"),
    ("correction", "a decision that departed from the auditor's own rounding, and lay within the certified bound"),
    ("departed", "as a correction, among the decisions examined"),
    ("violation", "a decision outside the certified bound: the run is refuted"),
    ("repair", "a difference that a dispute found to be benign; the audit went on with the trainer's values"),
    ("freedom", "how much choice the decisions leave, and whether they look like rounding errors"),
    ("leaf", "what a step commits to: digests of batch, log, metrics and sites, and at checkpoints of the state"),
    ("head", "a signature over all leaves so far"),
)
"""Words and meanings, in the order in which one needs them."""
