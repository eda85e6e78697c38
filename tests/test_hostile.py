"""Hostile inputs over all kinds of files: a hundred here, all of them with `--flags slow` (see `hostile.py` for what counts as a fault)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from hostile import ALL, chosen, FAULTS, faults, KINDS, MOST, STORED, summary, tried

from lottery_nb.data.domains import Domain
from lottery_nb.data.names import DomainName

SEED = 1000  # the hundred that are tried every day are others than those of a short look


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return hostile.make_good(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("first, count", [(SEED, 100), (0, ALL)])
def test_hostile_files_are_refused_or_do_no_harm(first, count, good, request, record_property):
    if count > 100 and "slow" not in request.config.getoption("--flags"):
        pytest.skip(f"{count} files take minutes: run with --flags slow")
    results = list(tried(chosen(first, count), good))
    said = summary(results)
    record_property("outcomes", said["outcomes"])
    assert not faults(results), json.dumps(faults(results)[:3], indent=1)
    assert len(results) == count and said["most megabytes above"] <= MOST >> 20
    assert said["outcomes"]["refused"] > count / 3
    assert count < ALL or {name for name, outcomes in said["kinds"].items() if "refused" in outcomes} == {
        *KINDS
    }


def test_the_results_that_are_kept_are_of_all_kinds_and_without_a_fault():
    said = json.loads(STORED.read_text())
    assert said["cases"] >= 2000 and sum(said["outcomes"].values()) == said["cases"]
    assert not {*FAULTS} & {*said["outcomes"]} and {*said["kinds"]} == {*KINDS}
    assert all(sum(outcomes.values()) >= 50 for outcomes in said["kinds"].values())
    assert said["most megabytes above"] <= MOST >> 20 and said["most seconds"] < hostile.SECONDS


def test_a_case_is_the_same_each_time(good, tmp_path):
    for name in KINDS:
        made = []
        for i in range(2):
            place = tmp_path / f"{name}{i}"
            place.mkdir()
            KINDS[name].make(hostile.random.Random(f"{name} 3"), place, good)
            made.append(
                {
                    p.relative_to(place): p.is_file() and p.stat().st_size
                    for p in place.rglob("*")
                    if not p.is_fifo()
                }
            )
        assert made[0] == made[1], name


# --- the measure sees what it should ---


def of_one(monkeypatch, tmp_path, read, make=lambda *_: ("made", hostile.SOUND)):
    "What a kind with that reader comes to."
    monkeypatch.setitem(KINDS, "one", hostile.Kind(make, read))
    monkeypatch.chdir(tmp_path)
    return hostile.outcome_of("one", 0, tmp_path, ())[1:3]


def broken(place):
    return [][0]


def long_refusal(place):
    raise hostile.LotteryError("two\nlines")


def imports(place):
    sys.meta_path.insert(0, trap := hostile.Trap())
    try:
        with pytest.raises(ImportError):
            __import__("trap")
    finally:
        sys.meta_path.remove(trap)


def runs(place):
    (place / "pwned").mkdir()


@pytest.mark.parametrize(
    "read, outcome",
    [
        (broken, "traceback"),
        (long_refusal, "traceback"),
        (imports, "silent"),
        (runs, "silent"),
        (lambda place: 3, "sound"),
    ],
)
def test_each_fault_is_seen(read, outcome, monkeypatch, tmp_path):
    assert of_one(monkeypatch, tmp_path, read)[0] == outcome


@pytest.mark.parametrize("must", [hostile.REFUSED, hostile.SAME, hostile.TOLD])
def test_what_must_be_refused_and_is_read_is_silent(must, monkeypatch, tmp_path):
    assert of_one(monkeypatch, tmp_path, lambda place: 3, lambda *_: ("made", must))[0] == "silent"


WORSE = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {here!r}]
import hostile
hostile.SECONDS, hostile.MOST = 1, 64 << 20
reads = {{
    "hangs": lambda place: time.sleep(60),
    "dies": lambda place: os.kill(os.getpid(), signal.SIGKILL),
    "grows": lambda place: len(b"1" * (1 << 28)),
}}
for name, read in reads.items():
    hostile.KINDS[name] = hostile.Kind(lambda *_: ("made", hostile.SOUND), read)
    hostile.sound_value = lambda *_: ()
hostile.child(None)
"""


@pytest.mark.parametrize("name, says", [("hangs", "Timeout"), ("dies", ""), ("grows", "memory")])
def test_a_process_that_hangs_dies_or_grows_is_seen(name, says):
    here = Path(hostile.__file__).parent
    code = WORSE.format(root=str(here.parent), here=str(here))
    line = json.dumps([name, 0]) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", code], input=line, capture_output=True, text=True, env={**os.environ}
    )
    assert says in done.stderr + done.stdout
    assert bool(done.stdout) == (name == "grows") and bool(done.returncode) == (name != "grows")


# --- the kinds by name: each must be refused, in a sentence ---


def refused(read):
    with pytest.raises(hostile.LotteryError) as refusal:
        read()
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 700
    return str(refusal.value)


@pytest.mark.parametrize("what", sorted(set(hostile.ODD_DOMAINS) - {"a shape of no memory"}))
def test_a_saved_domain_that_could_not_be_used_is_refused_when_it_is_loaded(what, good, tmp_path):
    tensors, record = hostile.read_tensors(good / "own.safetensors")
    about = dict(record["domain"]["items"])
    hostile.ODD_DOMAINS[what](tensors, about)
    record["domain"]["items"] = list(map(list, about.items()))
    hostile.write_tensors(tmp_path / "own.safetensors", tensors, record)
    assert refused(lambda: hostile.load_domain(tmp_path / "own.safetensors")).startswith("own.safetensors")


def test_a_shape_that_no_memory_holds_is_refused_where_it_is_used():
    d = hostile.from_arrays(hostile.torch.zeros(9, 1, 8, 8), hostile.torch.arange(9) % 3)
    assert "GB are free" in refused(lambda: d.adapt((3, 10**7, 10**7)).train)


@pytest.mark.parametrize("what", sorted(set(hostile.HINTS) - {"another column"}))
def test_metadata_of_parquet_that_are_damaged_are_refused(what, tmp_path):
    table = hostile.pictures().replace_schema_metadata({"huggingface": hostile.HINTS[what]})
    hostile.pq.write_table(table, tmp_path / "table.parquet")
    refused(lambda: hostile.read_pictures(tmp_path))


@pytest.mark.parametrize("what", sorted(hostile.ODD_PARQUET))
def test_parquet_that_is_not_pictures_is_refused(what, tmp_path):
    hostile.pq.write_table(hostile.ODD_PARQUET[what](), tmp_path / "table.parquet", store_schema=False)
    refused(lambda: hostile.read_pictures(tmp_path))


@pytest.mark.parametrize("what", sorted(hostile.PANDAS))
def test_what_pandas_has_written_beside_a_table_is_not_followed(what, tmp_path):
    said = json.dumps(hostile.PANDAS[what]()).encode()
    hostile.pq.write_table(
        hostile.text_table().replace_schema_metadata({"pandas": said}), tmp_path / "table.parquet"
    )
    assert hostile.read_text_table(tmp_path)[2] == 22


@pytest.mark.parametrize("ending", sorted(hostile.PACKERS))
@pytest.mark.parametrize("what", sorted(hostile.ODD_TABLES))
def test_a_table_that_is_none_is_refused(what, ending, tmp_path):
    (tmp_path / f"table.csv{ending}").write_bytes(hostile.PACKERS[ending](hostile.ODD_TABLES[what]()))
    refused(lambda: hostile.from_csv(tmp_path / f"table.csv{ending}"))


def test_many_pictures_of_a_few_bytes_are_refused_by_what_they_come_to(tmp_path):
    "One small file, named a thousand times."
    cell = hostile.encoded(1, size=(2000, 2000))
    table = hostile.pa.table({"image": [cell] * 400, "label": [0, 1] * 200})
    hostile.pq.write_table(table, tmp_path / "table.parquet")
    assert "would come to more than" in refused(lambda: hostile.read_pictures(tmp_path))


def test_postscript_in_a_picture_is_not_run(tmp_path):
    assert "cannot be decoded" in refused(lambda: hostile.decode(hostile.EPS))


@pytest.mark.parametrize("base", ["trap:go", "a b", "../../x", ""])
def test_a_name_of_a_domain_in_a_file_is_a_name(base):
    refused(lambda: Domain(DomainName(base)))


@pytest.mark.parametrize("share", [0, 0.7, -1, float("nan"), True, "x"])
def test_a_share_that_validates_is_one(share):
    refused(lambda: Domain(DomainName("digits"), share))
