"Rows: several writers, broken lines, and whatever a line may hold."

import multiprocessing
import warnings
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from see_nb.errors import SeeError
from see_nb.training.results import append_row, check_writable, read_rows


def write(number, path):
    append_row({"run": f"{number % 40}", "blob": "x" * 3000}, path, unique="run")


def test_eight_processes_lose_no_row_and_write_none_twice(tmp_path):
    path = tmp_path / "rows.jsonl"
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.starmap(write, [(n, path) for n in range(80)], chunksize=1)
    assert sorted(read_rows(path).run.astype(int)) == list(range(40))


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=40), st.just(b'{"seed": 1}')), max_size=6))
@example([b"\xef\xbb\xbf"])
def test_any_bytes_are_rows_or_named(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        n_before = len(read_rows(path))
        assert n_before >= lines.count(b'{"seed": 1}') - 1  # a line may join another's bytes
        append_row({"seed": 2}, path)
        rows = read_rows(path)
    assert len(rows) == n_before + 1 and rows.seed.iloc[-1] == 2
    assert all("not a whole row" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b"[1]",
    ],
)
def test_a_line_that_is_no_row_is_left_out_by_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"seed": 0}\n' + line + b'\n{"seed": 1}\n')
    with pytest.warns(UserWarning, match="line 2: not a whole row"):
        assert read_rows(path).seed.tolist() == [0, 1]


def test_whole_rows_stay_whatever_surrounds_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"seed": 0}\r\n\n{"text": "a\xe2\x80\xa8b", "seed": 1}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        append_row({"seed": 2}, path)  # the last line lacks its end only
        assert read_rows(path).seed.tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(2), {1, 2}, b"x"])
def test_what_json_cannot_hold_is_told_and_nothing_is_written(tmp_path, value):
    with pytest.raises(SeeError, match="^row: .*Use numbers, texts"):
        append_row({"seed": 1, "recall": value}, tmp_path / "rows.jsonl")
    assert len(read_rows(tmp_path / "rows.jsonl")) == 0


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "folder.jsonl", tmp_path / "file" / "rows.jsonl"):
        for write in (partial(append_row, {"seed": 1}), check_writable):
            with pytest.raises(SeeError, match="cannot be written"):
                write(place)
