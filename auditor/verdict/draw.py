"""The draw of a sample of segments, its check, and how likely it meets a cheat (protocol §7). Imports no torch.

A sample is drawn without replacement by a Philox permutation under the seed SHA-256("vtrain-sample-v2\\n" + nonce +
"\\n" + head), its first 16 bytes as a little-endian integer; the head is named by ``heads.head_digest``, in which no
signature is, so that nobody can try signatures until the draw suits. The trainer signed the head before the auditor
told its nonce, so the trainer can't foresee the draw; and whoever has a verdict, which names both, can repeat it
(``check_draw``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from auditor.evidence.run import Evidence
from auditor.evidence.segments import segments
from vtrain.commit.heads import head_digest
from vtrain.errors import MalformedRunError, TranscriptError, UsageError
from vtrain.random import StreamKey, permutation

MAX_NONCE = 4096  # characters
# More segments than any run can have, and few enough for a draw to be repeated in seconds.
MAX_SEGMENTS = 20_000_000


def extend(ranges: list[tuple[int, int]], new: tuple[int, int]) -> None:
    """Add a range of steps after the others; one with the last where they touch, or begin with its last step."""
    if ranges and ranges[-1][1] + 1 >= new[0]:
        ranges[-1] = (ranges[-1][0], max(ranges[-1][1], new[1]))
    else:
        ranges.append(new)


def check_nonce(nonce: str) -> None:
    """Check that a nonce is one line of text.

    Raises:
        UsageError: it is not, or too long.
    """
    if len(nonce) > MAX_NONCE or not nonce.isprintable():
        raise UsageError(f"nonce of {len(nonce)} characters; want at most {MAX_NONCE}, printable, in one line")


def drawn(total: int, count: int, head: str, nonce: str) -> list[int]:
    """Numbers of the ``count`` of ``total`` segments that the rule above draws, ascending, from 0.

    Args:
        total, count: segments in all, and to draw.
        head: digest of the last head, hex (``heads.head_digest``).
        nonce: the auditor's.

    Raises:
        UsageError: fewer than one, or more than there are; or as ``check_nonce``.
    """
    if not 1 <= count <= total:
        raise UsageError(f"sample of {count} segments; want 1 to {total}")
    check_nonce(nonce)
    digest = hashlib.sha256(f"vtrain-sample-v2\n{nonce}\n{head}".encode()).digest()
    order = permutation(StreamKey(int.from_bytes(digest[:16], "little"), "audit-sample"), 0, 0, total)
    return sorted(order[:count].tolist())


def bad_segments(total: int, cheated: Fraction) -> int:
    """The least whole number of segments that is a share ``cheated`` of ``total``: rounded up."""
    return math.ceil(cheated * total)


def caught(total: int, count: int, bad: int) -> Fraction:
    """Probability that ``count`` of ``total`` segments, drawn without replacement, meet one of ``bad``; exact.

    1 - C(total - bad, count) / C(total, count), hypergeometric; at least 1 - (1 - bad/total)^count.

    Raises:
        UsageError: there are no such numbers of segments.
    """
    if not (0 <= count <= total and 0 <= bad <= total):
        raise UsageError(f"{count} drawn and {bad} bad of {total} segments; want each to be at most all of them")
    few, many = min(count, bad), max(count, bad)  # the formula is symmetric in both; fewer terms are faster
    return 1 - Fraction(math.comb(total - many, few), math.comb(total, few))


def check_draw(
    predicate: Mapping[str, Any], *, nonce: str | None = None, evidence: Evidence | None = None
) -> list[int]:
    """Repeat the draw of a verdict's sample; hostile input.

    1. The verdict has a draw: a nonce, the segments drawn, and how many the run has.
    2. ``nonce``, if given, is the verdict's. A client who chose it, after the head was signed, knows that the auditor
       did not try several until the draw suited; nothing in a verdict alone can show that.
    3. The segments drawn are those that nonce, head and number of segments give.
    4. With ``evidence``, the opened run: it has the verdict's head and number of segments, and the steps that the
       verdict calls replayed are those of the segments drawn, all of them, or up to the first bad step.

    What is not checked: the verdict's signature, and that what it says was found there is true.

    Returns:
        The numbers of the segments drawn, from 0, ascending.

    Raises:
        MalformedRunError: rule 1, 3 or 4 is broken.
        UsageError: rule 2; or the steps of the verdict were chosen, so that there is no draw.
    """
    found, count, total, own = _draw_of(predicate)
    if nonce is not None and own != nonce:
        raise UsageError(f"the verdict's nonce is {own[:100]!r}; want {nonce[:100]!r}")
    try:
        wanted = drawn(total, count, head_digest(predicate["head"]), own)
    except (UsageError, TranscriptError) as error:
        raise MalformedRunError(f"verdict: {error}") from error
    if found != wanted:
        raise MalformedRunError(f"verdict: segments {found[:20]} drawn; nonce and head give {wanted[:20]}")
    if evidence is not None:
        _same_steps(predicate, total, wanted, evidence)
    return wanted


def _draw_of(predicate: Mapping[str, Any]) -> tuple[list[int], int, int, str]:
    """Segments drawn, their number, the number of all, and the nonce, each of its type."""
    counts, draw = predicate.get("segments"), predicate.get("draw")
    if not isinstance(counts, dict) or not isinstance(predicate.get("head"), str):
        raise MalformedRunError("verdict: wanted the fields head and segments")
    total, count = counts.get("all"), counts.get("sampled")
    if type(total) is not int or type(count) is not int or not 0 <= count <= total <= MAX_SEGMENTS:
        raise MalformedRunError(f"verdict: {str(count)[:32]} of {str(total)[:32]} segments sampled; wanted numbers")
    if count == 0 and draw is None:
        raise UsageError("the verdict's steps were chosen, not drawn; there is no draw to check")
    if not isinstance(draw, dict) or draw.keys() != {"nonce", "segments"}:
        raise MalformedRunError("verdict: wanted a draw with the fields nonce and segments")
    nonce, found = draw["nonce"], draw["segments"]
    if not isinstance(nonce, str) or not isinstance(found, list) or not all(type(n) is int for n in found):
        raise MalformedRunError("verdict: the draw is a nonce and a list of numbers of segments")
    return found, count, total, nonce


def _same_steps(predicate: Mapping[str, Any], total: int, numbers: Sequence[int], evidence: Evidence) -> None:
    if head_digest(predicate["head"]) != evidence.head_digest:
        raise MalformedRunError("verdict: its head is not the run's last one")
    everything = segments(evidence)
    if total != len(everything):
        raise MalformedRunError(f"verdict: {total} segments; the run has {len(everything)}")
    bad = predicate.get("firstBadStep")
    wanted: list[tuple[int, int]] = []
    for s in (everything[n] for n in numbers):
        end = s.last if bad is None else min(s.last, bad)
        if end < s.first:
            if s.start == bad:  # the checkpoint that it begins from is no state of the job's model
                extend(wanted, (bad, bad))
            break
        extend(wanted, (s.first, end))
    if [tuple(r) for r in predicate.get("replayed", ())] != wanted:
        raise MalformedRunError(f"verdict: steps {predicate.get('replayed')!r:.200} replayed; the draw gives {wanted}")
