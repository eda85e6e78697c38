"""Executors: threads; somebody else's, by name; jobs that are sent as data."""

import threading
import time
from dataclasses import replace

import pytest
import tiny
import torch
from tiny import listen, of, plan, some_arm, some_mask, within

from lottery_nb.core import LotteryError
from lottery_nb.engine.executors import executor_of, EXECUTORS, in_threads
from lottery_nb.models.network import Network
from lottery_nb.plans.find import find_tickets
from lottery_nb.engine.training import train
from lottery_nb.plans.transfer import transfer, TransferPlan


def crowd():
    "Two groups: networks of two widths, a sparse and a dense one each."
    arms = [some_arm(f"arm {k}", seed=k) for k in range(2)]
    wide = [
        some_arm(f"wide {k}", Network("lenet-300-100", arms[0].domain.shape, 5, 0.2), seed=k)
        for k in range(2)
    ]
    return [
        replace(a, mask=some_mask(a.network) if a.seed else None)
        for pair in zip(arms, wide, strict=True)
        for a in pair
    ]


def test_lanes_are_told_in_any_order_and_lose_nothing():
    def job(k):
        for i in range(20):
            if (k + i) % 5 == 0:
                time.sleep(0.001)
            yield k, i
        return k * k

    with within(30):
        results, events = listen(in_threads([lambda k=k: job(k) for k in range(7)], 3))
    assert results == [k * k for k in range(7)] and all(
        [i for j, i in events if j == k] == list(range(20)) for k in range(7)
    )
    assert [k for k, i in events if i == 0][:3] != [0, 1, 2] or len({k for k, _ in events[:12]}) > 1


def test_a_lane_waits_until_its_event_was_looked_at():
    seen = {0: 0, 1: 0}

    def job(k):
        for _ in range(5):
            seen[k] += 1
            yield k

    stream, told = in_threads([lambda k=k: job(k) for k in range(2)], 2), {0: 0, 1: 0}
    for k in stream:
        told[k] += 1
        time.sleep(0.01)
        assert seen[k] == told[k]  # not a step further
    assert told == {0: 5, 1: 5}


def test_jobs_that_are_sent_as_data_end_with_the_same_bits():
    arms = crowd()
    here, told = listen(train(arms, "cpu", layout="stacked"))
    there, seen = listen(train(arms, "cpu", layout="stacked", executor="tiny:sent"))
    assert [t.arm.name for t in there] == [a.name for a in arms] == [t.arm.name for t in here]
    assert [t.last.fingerprint for t in there] == [t.last.fingerprint for t in here] and [
        t.metrics for t in there
    ] == [t.metrics for t in here]
    assert [e.identity for e in of("ArmStarted", seen)] == [e.identity for e in of("ArmStarted", told)]
    assert (
        [[a.name for a in job.arms] for job in tiny.SENT]
        == [["arm 0", "arm 1"], ["wide 0", "wide 1"]]
        == of("Layout", seen)[0].groups
    )
    assert {(job.device, job.threads) for job in tiny.SENT} == {
        (torch.device("cpu"), of("Layout", seen)[0].threads)
    }


@pytest.mark.parametrize(
    "executor, says",
    [
        ("thread", "did you mean 'threads'"),
        ("tiny:nobody", "holds no 'nobody'"),
        ("no_such_module:it", "cannot be imported here"),
        ("tiny:NAME", "give one of threads"),
        (None, "give one of threads"),
    ],
)
def test_what_is_no_executor_is_refused_before_anything_is_trained(executor, says):
    with pytest.raises(LotteryError, match=says):
        next(train([some_arm()], "cpu", executor=executor))


def test_an_executor_may_be_a_class_a_function_or_a_registered_name(monkeypatch):
    class OneByOne:
        def __call__(self, jobs, lanes):
            return in_threads(jobs, 1)

    monkeypatch.setitem(EXECUTORS, "one by one", OneByOne)
    for executor in ("one by one", OneByOne, OneByOne()):
        assert isinstance(executor_of(executor), OneByOne)
        assert [t.arm.name for t in listen(train([some_arm()], "cpu", executor=executor))[0]] == ["arm"]


def test_closing_a_training_closes_its_executor():
    ended = []

    def watched(jobs, lanes):
        try:
            return (yield from in_threads(jobs, lanes))
        finally:
            ended.append(len(jobs))

    threads, stream = torch.get_num_threads(), train(crowd(), "cpu", layout="alone", executor=watched)
    while type(next(stream)).__name__ != "ArmStarted":
        pass
    assert not ended
    stream.close()
    assert ended == [4] and torch.get_num_threads() == threads


def test_searches_and_transfers_pass_the_executor_on():
    groups = []

    def counted(jobs, lanes):
        groups.append(sum(len(job.arms) for job in jobs))
        return in_threads(jobs, lanes)

    tickets, _ = listen(find_tickets(plan(seeds=2), "cpu", executor=counted))
    assert groups == [2, 2, 2]
    moved, _ = listen(
        transfer(TransferPlan(tickets[-1:], (tiny.NAME,), controls=()), "cpu", executor=counted)
    )
    assert groups == [2, 2, 2, len(moved)]


def test_lanes_of_a_closed_stream_end():
    def counting():
        yield from range(10**9)

    before, stream = threading.active_count(), in_threads([counting] * 3, 2)
    assert next(stream) == 0 and threading.active_count() == before + 2
    with within(30):
        stream.close()
    assert threading.active_count() == before
