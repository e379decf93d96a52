"""Binary BCH codes with soft-decision decoding by ordered statistics.

A BCH code of length 2^m - 1 corrects any t bit errors; it is shortened to the requested length by leaving leading
information bits out (Lin & Costello, Error Control Coding, ch. 6). Codewords are systematic: information bits first,
then at most m*t parity bits, the remainder of division by the generator polynomial.

The decoder uses the reliability of each bit (Fossorier & Lin 1995, "Soft-decision decoding of linear block codes
based on ordered statistics"): the most reliable independent positions determine a codeword; further candidates result
from flipping up to three of these positions. Candidates are ranked by the total reliability of the bits that they
contradict. This is close to maximum likelihood at these lengths, better than an algebraic decoder, and gives a list
from which a later check selects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

__all__ = ["BCH"]

PRIMITIVE = {5: 0b100101, 6: 0b1000011, 7: 0b10001001, 8: 0b100011101}  # the usual primitive polynomials over GF(2)
TRIPLE_SPAN = 24  # triples are flipped among this many of the least reliable determining positions


@dataclass(frozen=True)
class BCH:
    """A shortened binary BCH code.

    Attributes:
        length: Bits of a codeword, at most 2^m - 1.
        m: Degree of the field GF(2^m), 5 to 8.
        t: Bit errors that are always corrected: the minimum distance is at least 2t + 1.
    """

    length: int
    m: int
    t: int

    def __post_init__(self) -> None:
        if self.m not in PRIMITIVE or self.length > 2**self.m - 1 or self.information < 1:
            raise ValueError(f"no BCH code of length {self.length} over GF(2^{self.m}) corrects {self.t} bits")

    @property
    def parity(self) -> int:
        """Parity bits."""
        return _generator(self.m, self.t).bit_length() - 1

    @property
    def information(self) -> int:
        """Information bits."""
        return self.length - self.parity

    def encode(self, information: np.ndarray) -> np.ndarray:
        """Information bits (k,) of 0/1 -> codeword (length,) uint8."""
        return np.asarray(information, np.uint8) @ _matrix(self) % 2

    def candidates(self, soft: np.ndarray, count: int) -> np.ndarray:
        """The most likely codewords.

        Args:
            soft: (length,) soft bits: positive = 1, magnitude = reliability.
            count: Largest number of codewords to return.

        Returns:
            (count, length) uint8, the most likely first.
        """
        hard, reliability = (soft > 0).astype(np.uint8), np.abs(soft)
        order = np.argsort(-reliability, kind="stable")
        hard, reliability = hard[order], reliability[order]
        rows, determining = _reduce(_matrix(self)[:, order])
        errors = (hard[determining] @ rows % 2) ^ hard  # where the first candidate contradicts the hard decisions

        doubles, triples = _flips(len(rows))
        patterns = [errors[None], errors ^ rows, errors ^ rows[doubles[0]] ^ rows[doubles[1]]]
        patterns.append(errors ^ rows[triples[0]] ^ rows[triples[1]] ^ rows[triples[2]])
        errors = np.concatenate(patterns)

        best = np.argsort(errors.astype(np.float64) @ reliability, kind="stable")[:count]
        words = np.empty((len(best), self.length), np.uint8)
        words[:, order] = errors[best] ^ hard
        return words


def _reduce(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Jordan over GF(2): rows with the identity at the leftmost independent columns, and those columns."""
    matrix = matrix.copy()
    columns: list[int] = []
    for column in range(matrix.shape[1]):
        row = len(columns)
        found = np.flatnonzero(matrix[row:, column])
        if not len(found):
            continue
        matrix[[row, row + found[0]]] = matrix[[row + found[0], row]]
        others = np.flatnonzero(matrix[:, column])
        matrix[others[others != row]] ^= matrix[row]
        columns.append(column)
        if len(columns) == len(matrix):
            break
    return matrix, np.array(columns)


@lru_cache
def _flips(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Determining positions that are flipped together: all pairs (2, n), and triples of the least reliable (3, n)."""
    doubles = np.array(list(combinations(range(rows), 2)), dtype=int).reshape(-1, 2)
    triples = np.array(list(combinations(range(max(0, rows - TRIPLE_SPAN), rows), 3)), dtype=int).reshape(-1, 3)
    return doubles.T, triples.T


@lru_cache
def _generator(m: int, t: int) -> int:
    """The product of (x - a^i) over i = 1 ... 2t and all conjugates; bit i of the number is the factor of x^i."""
    order = 2**m - 1
    power = [1]  # a^i as a polynomial in a
    for _ in range(order - 1):
        value = power[-1] << 1
        power.append(value ^ PRIMITIVE[m] if value >> m else value)
    log = {value: i for i, value in enumerate(power)}
    roots: set[int] = set()
    for i in range(1, 2 * t, 2):
        while i not in roots:
            roots.add(i)
            i = 2 * i % order
    polynomial = [1]
    for root in sorted(roots):
        product = [0, *polynomial]
        for i, factor in enumerate(polynomial):
            if factor:
                product[i] ^= power[(log[factor] + root) % order]
        polynomial = product
    return sum(factor << i for i, factor in enumerate(polynomial))


@lru_cache
def _matrix(code: BCH) -> np.ndarray:
    """The systematic generator matrix, (information, length) uint8."""
    generator, parity = _generator(code.m, code.t), code.parity
    matrix = np.zeros((code.information, code.length), np.uint8)
    for row in range(code.information):
        remainder = 1 << (code.length - 1 - row)
        for bit in range(code.length - 1, parity - 1, -1):
            if remainder >> bit & 1:
                remainder ^= generator << (bit - parity)
        matrix[row, row] = 1
        matrix[row, code.information :] = [remainder >> bit & 1 for bit in range(parity - 1, -1, -1)]
    return matrix
