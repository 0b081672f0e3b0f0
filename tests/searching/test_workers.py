"""Workers that share a study: no candidate is lost or run twice, whoever is killed and whenever."""

import multiprocessing
import os
import random
import time
from collections import Counter

import optuna
import pytest
import torch

import bough
from bough.errors import SearchError
from bough.searching.storages import JOURNAL, opened
from tests.searching import mysql, postgres
from tests.searching.problem import X, build, closeness, searched, work

KILLS = int(os.environ.get("BOUGH_KILLS", "1"))
TRIALS = 12 + 4 * KILLS
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def database():
    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed: `make test-search` installs Debian's package")
    pytest.importorskip("psycopg", reason="psycopg is not installed: `make test-search` installs it")
    with postgres.server() as url:
        yield url


@pytest.fixture(scope="module")
def mysql_database():
    if mysql.program() is None:
        pytest.skip("MariaDB is not installed: `make test-search` installs Debian's package")
    pytest.importorskip("pymysql", reason="pymysql is not installed: `make test-search` installs it")
    with mysql.server() as url:
        yield url


@pytest.fixture(params=["folder", "postgresql", "mysql"])
def storage(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "study")
    return request.getfixturevalue("database" if request.param == "postgresql" else "mysql_database")


def started(storage, log):
    """A worker in a process of its own, which begins where this one is."""
    process = FORK.Process(target=work, args=(storage, TRIALS, 0.05, str(log)))
    process.start()
    return process


def begun(log, more_than):
    """Wait until so many candidates have begun."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        n = log.read_text().count("\n") if log.exists() else 0
        if n > more_than:
            return n
        time.sleep(0.01)
    raise TimeoutError("no candidate begins")


def trials_in(storage):
    with opened(storage, 1) as there:
        return optuna.load_study(study_name="search", storage=there.backend).get_trials()


def check(storage):
    """All candidates are evaluated, each once, and those of killed workers are among them."""
    trials = trials_in(storage)
    done = [t for t in trials if "found" in t.user_attrs]
    keys = Counter(t.user_attrs["made"]["key"] for t in done)
    assert sum(keys.values()) == TRIALS
    assert max(keys.values()) == 1
    assert [t.user_attrs["found"]["error"] for t in done] == [None] * TRIALS
    assert {t.user_attrs["made"]["key"] for t in trials if "made" in t.user_attrs} == keys.keys()
    assert not [t for t in trials if t.state == optuna.trial.TrialState.RUNNING]


def test_killed_at_any_moment_the_study_goes_on(storage, tmp_path):
    torch.set_num_threads(1)
    rng, log = random.Random(5), tmp_path / "log"
    log.touch()
    workers, seen = [started(storage, log), started(storage, log)], 0
    try:
        for kill in range(KILLS):
            seen = begun(log, seen + 2)
            time.sleep(rng.uniform(0, 0.1))
            gone = workers if kill == KILLS - 1 else [workers[rng.randrange(2)]]  # at last all of them
            for worker in gone:
                worker.kill()
                worker.join()
            workers = [started(storage, log) if w in gone else w for w in workers]
        for worker in workers:
            worker.join(120)
        assert [w.exitcode for w in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    check(storage)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_that_was_cut_off_does_not_stop_the_study(tmp_path, cut):
    whole = searched(storage=tmp_path, trials=10)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = searched(storage=tmp_path, trials=10)
    assert [(p.counts, p.values) for p in again.points] == [(p.counts, p.values) for p in whole.points]


def test_a_resumed_study_is_an_uninterrupted_one(tmp_path):
    for method in bough.searching.METHODS:
        options = {"method": method, "population": 4, "seed": 3, "start": ["uniform"]}
        whole = searched(trials=18, **options)
        for trials in (7, 18):
            parts = searched(trials=trials, storage=tmp_path / method, **options)
        assert [(p.counts, p.values, p.origin) for p in parts.points] == [(p.counts, p.values, p.origin) for p in whole.points]


def test_what_a_worker_stopped_at_is_gone_on_with(tmp_path):
    calls = []

    def stopped(model):
        calls.append(model)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return closeness(model)

    stopped.__module__, stopped.__qualname__, stopped.__name__ = closeness.__module__, "closeness", "closeness"
    with pytest.raises(KeyboardInterrupt):
        searched(evaluate=stopped, storage=tmp_path, trials=12)
    found = searched(storage=tmp_path, trials=12)
    whole = searched(trials=12)
    assert found.lost == 1
    assert sorted(p.values for p in found.points) == sorted(p.values for p in whole.points)


def test_another_search_in_the_storage(tmp_path):
    searched(storage=tmp_path, trials=3)
    torch.manual_seed(1)
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    with pytest.raises(SearchError, match=r"is of another search: .*model is"):
        bough.search(other, X[:1], closeness, importance="l2", storage=tmp_path, trials=3)
    with pytest.raises(SearchError, match="method is 'tpe' here, 'nsga2' there"):
        searched(storage=tmp_path, method="tpe", trials=3)
    model = build()
    model[0].weight.data += 1.0
    with pytest.raises(SearchError, match=r"weights is .*Give another name or storage$"):
        bough.search(model, X[:1], closeness, importance="l2", storage=tmp_path, trials=3)
    assert len(searched(storage=tmp_path, name="second", trials=4, method="tpe").points) == 4


def test_storages_that_can_not_be_reached(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(SearchError, match=r"storage='postgresql://me:\*\*\*@127.0.0.1:1/none' can not be reached: .*refused"):
        searched(storage="postgresql://me:secret@127.0.0.1:1/none", trials=3)
    with pytest.raises(SearchError, match="use postgresql://, mysql:// or sqlite://, or the path of a folder"):
        searched(storage="ftp://somewhere", trials=3)
    (tmp_path / "file").touch()
    with pytest.raises(SearchError, match="give another folder"):
        searched(storage=tmp_path / "file", trials=3)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / JOURNAL).write_text('{"op_code": 77}\nno JSON\n{}\n')
    with pytest.raises(SearchError, match="damaged"):
        searched(storage=tmp_path / "study", trials=3)


def test_sqlite(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = searched(storage=url, trials=5)
    assert [p.values for p in searched(storage=url, trials=8).points][:5] == [p.values for p in first.points]
