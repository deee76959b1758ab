"""NI: parsing, encoding, the split and the cache, on small files; counts on the real ones."""

import gzip
import hashlib
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbnrun.config.registry import UserError
from dbnrun.config.schema import registry
from dbnrun.data import ni
from dbnrun.data.download import DataFile, Download
from dbnrun.data.ni import CLASSES, encode, parse, split_groups
from dbnrun.data.options import NI


def line(label="normal", protocol="tcp", service="http", flag="SF", **numbers):
    """A record; numbers by 1-based field, such as f5=181."""
    fields = ["0"] * 42
    fields[1:4], fields[41] = [protocol, service, flag], f"{label}."
    for name, value in numbers.items():
        fields[int(name[1:]) - 1] = str(value)
    return ",".join(fields)


def content(*lines):
    return ("\n".join(lines) + "\n").encode()


TRAIN = [
    line("normal", f5=0, f6=10),
    line("smurf", "icmp", "ecr_i", f5=99),
    line("smurf", "icmp", "ecr_i", f5=99),
    line("satan", "udp", "private", "REJ", f1=3),
    line("perl", f10=2),
    line("spy", f32=255),
] * 5
TEST = [line("snmpguess", "udp", "unheard_of", f5=999), line("normal")]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data folder with small files that stand in for the official ones."""
    downloads = []
    for name, lines in (("kddcup.data_10_percent.gz", TRAIN), ("corrected.gz", TEST)):
        raw = content(*lines)
        (tmp_path / "ni").mkdir(exist_ok=True)
        (tmp_path / "ni" / name).write_bytes(gzip.compress(raw))
        file = DataFile(f"ni/{name}", hashlib.sha256(raw).hexdigest())
        downloads.append(Download((f"http://127.0.0.1:9/{name}",), (file,)))
    monkeypatch.setattr(NI, "downloads", tuple(downloads))
    return tmp_path


def config(**changes):
    return registry.make("dataset", **{"name": "ni", "val_size": 0.2, "fnn_widths": [5], "features": "log", **changes})


def test_records_are_parsed_into_numbers_categories_and_classes():
    records = parse(content(*TRAIN))
    assert records.numeric.shape == (30, 38)
    assert [CLASSES[y] for y in records.y[:6]] == ["normal", "dos", "dos", "probe", "u2r", "r2l"]
    assert records.categories[3].tolist() == ["udp", "private", "REJ"]
    assert records.numeric[1, ni.NUMERIC.index(4)] == 99
    assert records.group[1] == records.group[2] != records.group[0]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(ni.NUMERIC), st.floats(0, 1e9, width=32), max_size=8))
def test_any_record_of_counts_is_read_as_it_stands(numbers):
    record = line(**{f"f{index + 1}": value for index, value in numbers.items()})
    parsed = parse(content(record)).numeric[0]
    for index, value in numbers.items():
        assert parsed[ni.NUMERIC.index(index)] == pytest.approx(value, rel=1e-6)


def test_a_category_that_training_never_saw_is_all_zeros():
    encoded = encode(parse(content(*TRAIN)), parse(content(*TEST)))
    assert encoded.sizes.tolist() == [3, 3, 2]
    assert encoded.test_codes[0].tolist() == [2, ni.UNSEEN, 1]  # udp, none, SF of (REJ, SF)


def test_features_are_scaled_on_the_training_part_alone(small):
    data = config().load(small)
    train, numeric = data.train.x[:, :38], ni.NUMERIC.index(4)
    assert data.input_shape == (38 + 3 + 3 + 2,)
    assert train.min() == 0 and train.max() == 1
    # Field 5 runs from 0 to 99 in training; a test record of 999 lies beyond 1 by the ratio of the logarithms.
    assert data.test.x[0, numeric].item() == pytest.approx(np.log(1000) / np.log(100), rel=1e-5)
    assert data.test.x[0, 38:].tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
    constant = [i for i in range(38) if train[:, i].max() == 0]
    assert constant and torch.isfinite(train).all()


@pytest.mark.parametrize("features", ["log", "standard"])
def test_features_equal_those_worked_out_record_by_record(small, features):
    data = config(features=features, val_size=0.3).load(small)
    rows = [record.split(",") for record in TRAIN]
    val = set(split_groups(parse(content(*TRAIN)).group, 0.3)[1].tolist())
    seen = [sorted({row[block] for row in rows}) for block in ni.CATEGORICAL]

    def transformed(row):
        return [math.log(1 + float(row[i])) if features == "log" else float(row[i]) for i in ni.NUMERIC]

    columns = list(zip(*(transformed(row) for i, row in enumerate(rows) if i not in val), strict=True))

    def expected(row):
        scaled = []
        for value, column in zip(transformed(row), columns, strict=True):
            spread = max(column) - min(column) if features == "log" else statistics.pstdev(column)
            offset = min(column) if features == "log" else statistics.fmean(column)
            scaled.append((value - offset) / spread if spread else 0.0)
        blocks = zip(ni.CATEGORICAL, seen, strict=True)
        return scaled + [float(row[block] == name) for block, names in blocks for name in names]

    for part, records in (
        (data.train, [row for i, row in enumerate(rows) if i not in val]),
        (data.val, [rows[i] for i in sorted(val)]),
        (data.test, [record.split(",") for record in TEST]),
    ):
        # float32 of numbers worked out in float64.
        np.testing.assert_allclose(part.x.numpy(), [expected(row) for row in records], rtol=1e-6, atol=1e-7)
    assert 0 < len(data.val) < len(TRAIN)


def test_a_constant_column_becomes_zero_whatever_its_value(small):
    assert ni._scaling(np.full(7, np.float32(0.1), dtype=np.float64), config(features="standard"))[1] == 0


def test_standard_features_have_mean_zero_and_deviation_one_on_the_training_part(small):
    train = config(features="standard").load(small).train.x[:, :38].numpy().astype(float)
    varying = train.std(0) > 0
    assert 0 < varying.sum() < 38
    np.testing.assert_allclose(train[:, varying].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train[:, varying].std(0), 1, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=10, max_size=200), st.floats(0.1, 0.9))
def test_identical_records_lie_on_one_side_of_the_split(group, share):
    group = np.unique(np.array(group), return_inverse=True)[1]
    train, val = split_groups(group, share)
    assert set(group[train]).isdisjoint(group[val])
    assert sorted([*train, *val]) == list(range(len(group)))
    assert len(val) <= round(share * len(group))


def test_a_second_load_reads_the_cache_and_gives_the_same(small, monkeypatch):
    first = config().load(small)
    monkeypatch.setattr(ni, "parse", lambda *_: pytest.fail("parsed again"))
    second = config().load(small)
    assert torch.equal(first.train.x, second.train.x) and torch.equal(first.val.y, second.val.y)
    config(features="standard", val_size=0.4).load(small)  # another encoding, the same cache


def test_a_damaged_cache_is_read_anew_and_an_unwritable_one_does_without(small, monkeypatch):
    first = config().load(small)
    (cache,) = (small / "cache").iterdir()
    sound = cache.read_bytes()
    for damaged in (sound[:-100], sound.replace(b"'<f4'", b"'<f2'", 1)):  # of this one half an array is read
        cache.write_bytes(damaged)
        assert torch.equal(config().load(small).train.x, first.train.x)
    cache.unlink()
    (small / "cache").rmdir()
    (small / "cache").write_text("in the way")
    assert torch.equal(config().load(small).train.x, first.train.x)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cache_with_altered_bytes_is_read_right_or_not_at_all(small, data):
    if not (small / "cache").exists():
        config().load(small)
    (cache,) = (small / "cache").glob("ni-*.npz")
    sound, truth = cache.read_bytes(), ni._read_cache(small)
    assert truth is not None
    altered = bytearray(sound)
    position = st.integers(0, len(sound) - 1) | st.integers(len(sound) - 600, len(sound) - 1)
    for at, value in data.draw(st.lists(st.tuples(position, st.integers(0, 255)), min_size=1, max_size=4)):
        altered[at] = value
    try:
        cache.write_bytes(altered)
        read = ni._read_cache(small)
    finally:
        cache.write_bytes(sound)
    assert read is None or all(np.array_equal(array, vars(truth)[name]) for name, array in vars(read).items())


def test_a_recompressed_file_loads(small):
    first = config().load(small)
    path = small / "ni" / "corrected.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    assert torch.equal(config().load(small).test.x, first.test.x)


def test_an_altered_file_is_not_taken_even_where_a_cache_of_the_official_one_lies(small):
    config().load(small)
    path = small / "ni" / "corrected.gz"
    path.write_bytes(gzip.compress(content(*TEST[::-1])))
    with pytest.raises(UserError, match=r"ni/corrected\.gz \(not the official file, SHA-256 differs\)"):
        config().load(small)
    assert len(list((small / "cache").iterdir())) == 1


def test_a_missing_file_that_cannot_be_fetched_is_said_in_one_line(small):
    (small / "ni" / "corrected.gz").unlink()
    with pytest.raises(
        UserError, match=r"Put the official files into \S*: ni/corrected\.gz \(missing\); .*`dbnrun data ni`"
    ) as refused:
        config().load(small)
    assert "\n" not in str(refused.value)


def test_the_families_are_those_of_the_published_map(real_data):
    shared = Path(__file__).parents[3] / "shared" / "data" / "ni" / "families.csv"
    if not shared.exists():
        pytest.skip("needs ../shared/data/ni/families.csv")
    rows = [row.split(",")[:2] for row in shared.read_text().split()[1:]]
    assert {label: CLASSES[number] for label, number in ni.CLASS_OF.items()} == dict(rows)


def test_the_real_files_have_the_published_counts_and_118_columns(real_data):
    data = config(val_size=0.1).load(real_data)
    counts = lambda part: torch.bincount(part.y, minlength=5).tolist()  # noqa: E731
    both = [a + b for a, b in zip(counts(data.train), counts(data.val), strict=True)]
    assert both == [97278, 4107, 391458, 52, 1126]
    assert counts(data.test) == [60593, 4166, 229853, 228, 16189]
    assert data.input_shape == (118,) and data.train.x.shape[1] == data.test.x.shape[1] == 118
    # The largest groups of identical records are too large for the validation part, which stays within 10 %.
    assert 0.095 < len(data.val) / 494021 <= 0.1
    encoded = ni._cached(real_data)
    assert len(np.unique(encoded.train_group)) == 145586
    assert encoded.sizes.tolist() == [3, 66, 11]
