"""Sequences: which text means what, and what is refused, in one line."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbnrun.config.registry import UserError
from dbnrun.theory import sequences

RECORDS = Path(__file__).parent.parent.parent / "results" / "records" / "theory"
OUTSIDE = [
    "__import__('os')", "9**9**9**9", "0.9**m", "1/(m + 1)", "min(1, 2/m)", "sqrt(m)", "m**-(1/3)", "m**-h",
    "1/0", "2**-m", "0.5m", "m^-1", "M", "", " ", "m m", "1/", "m\n", "½", "m**-٢", "1e400", "1e9999", "1" * 5000,
    "exp(-m)", "nan", "-0.1", "-1/m", "m**-1e9", "m**-1*log(m)", "log(m + 2)", "m**-101*log(m + 2)", "m**11",
    "m**-2*log(m + 2)**-101", "1e101/m",
]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE, ids=range(len(OUTSIDE)))
def test_what_is_outside_the_family_is_refused_in_one_line_that_says_what_is_expected(text):
    for kind in (sequences.alpha, sequences.eta):
        with pytest.raises(UserError, match="expected c") as refused:
            kind(text)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 320


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("2", "above 1"),
        ("1.0000000000000000000001", "above 1"),  # 1 in float64, and still too large
        ("2*m**-1", "above 1"),
        ("0.95*m**-1*log(m + 2)**0", ""),
        ("2*m**-1*log(m + 2)**-8", ""),  # 2 / log(3)^8 = 0.94
        ("2*m**-1*log(m + 2)**-7", "above 1"),
        ("m**0.001", "a factor grows"),
        ("0.1*m**-2*log(m + 2)", "a factor grows"),
    ],
)
def test_alpha_is_refused_where_it_exceeds_one_or_a_factor_of_it_grows(text, line):
    if line:
        with pytest.raises(UserError, match=line):
            sequences.alpha(text)
    else:
        assert 0.9 < sequences.alpha(text)(np.ones(1))[0] <= 1
    assert sequences.eta(text).text == text  # a step size may exceed 1, and grow


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("harmonic", lambda m: 1 / m),
        ("inverse_square", lambda m: m**-2.0),
        ("0.5*m**-0.75", lambda m: 0.5 * m**-0.75),
        (" .5 / m ** 1.5 ", lambda m: 0.5 / m**1.5),
        ("m**-1*log(m + 2)**-2", lambda m: 1 / (m * np.log(m + 2) ** 2)),
        ("1/m*log(m+2)**-2", lambda m: 1 / m * np.log(m + 2) ** -2),
        ("1e-3", lambda m: np.full_like(m, 0.001)),
        ("m**-0", np.ones_like),
    ],
)
def test_values_are_those_of_the_formula(text, formula):
    m = np.arange(1.0, 50.0)
    np.testing.assert_allclose(sequences.alpha(text)(m), formula(m), rtol=1e-14)  # products round in another order


def test_values_of_recorded_sequences_are_numpys_own_to_the_last_bit():
    m = np.arange(1.0, 5001.0)
    recorded = set()
    for path in RECORDS.rglob("*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            recorded.update(text for line in csv.DictReader(file) for text in (line["alpha"], line["eta"]))
    assert len(recorded) > 20
    for text in recorded:
        c, _, power = text.rpartition("m**-") if "m" in text else (text, "", "0")
        expected = np.multiply(float(c.rstrip("*") or 1), np.power(m, -float(power)))
        assert sequences.eta(text)(m).tobytes() == expected.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**8), st.integers(-10_000, 100_000), st.integers(-100, 100))
def test_exponents_and_factors_are_read_exactly(millionths, thousandths, q):
    c, p = Fraction(millionths, 10**6), Fraction(thousandths, 1000)
    text = f"{millionths / 10**6}*m**{-thousandths / 1000}*log(m + 2)**{-q}"
    got = sequences.eta(text)
    assert (got.c, got.p, got.q) == (c, p, q)
    assert got.exponent == (p if c and not q else None)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="m0123456789.+-*/()logexp, e\n", max_size=60))
def test_any_text_is_a_sequence_or_one_line(text):
    try:
        assert np.isfinite(sequences.eta(text)(np.array([1.0, 1e8]))).all()
    except UserError as refused:
        assert "\n" not in str(refused)
