"""Parts of much work: each done once, in order, by whatever number of processes, whoever is stopped."""

import os
import platform
import threading
from functools import partial
from itertools import count

import numpy as np
import pytest

from convscope.errors import RunError, UsageError
from convscope.parts import in_parts, pack, part_file, part_size, parts_of, unpack

JOBS = [f"part {number}" for number in range(9)]


def prepare():
    return lambda job: f"{job} by {os.getpid()}".encode()


def threads():
    return lambda _job: os.environ["OMP_NUM_THREADS"].encode()


def page_faults():
    """How often a block as large as a photograph is taken anew from the system, page by page."""
    import resource

    def work(_job):
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(20 << 20, np.uint8)
        return str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode()

    return work


def fail():
    raise UsageError("Expected another network.")


def die():
    os._exit(1)


def done(job, *, log):
    """Do a job, and write down which."""
    log.append(job)
    return job.encode()


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "kept"])
def test_what_comes_of_each_job_comes_in_order_and_is_done_once(tmp_path, kept):
    log = []
    folder = tmp_path if kept else None
    found = list(in_parts(JOBS, partial(partial, done, log=log), folder))
    assert found == [job.encode() for job in JOBS]
    again = list(in_parts(JOBS, partial(partial, done, log=log), folder))
    assert again == found
    assert log == JOBS * (1 if kept else 2)


def test_only_parts_that_are_missing_are_done(tmp_path):
    log = []
    list(in_parts(JOBS, partial(partial, done, log=log), tmp_path))
    part_file(tmp_path, 3).unlink()
    assert list(in_parts(JOBS, partial(partial, done, log=log), tmp_path)) == [job.encode() for job in JOBS]
    assert log == [*JOBS, JOBS[3]]
    list(in_parts(JOBS, None, tmp_path))  # nothing is prepared where nothing is left to do


def test_jobs_are_taken_a_few_at_a_time():
    taken = count()
    some = in_parts((next(taken) for _ in range(100)), partial(partial, lambda job: b""))
    next(some)
    assert next(taken) < 3


def test_several_processes_share_the_jobs_and_the_threads(tmp_path):
    answers = [text.decode().split(" by ") for text in in_parts(JOBS, prepare, tmp_path, workers=2)]
    assert [job for job, _ in answers] == JOBS
    assert str(os.getpid()) not in {process for _, process in answers}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:06d}" for number in range(9)]
    assert set(in_parts(JOBS, threads, workers=2)) == {b"1"}


@pytest.mark.parametrize(("prepare", "error"), [(fail, UsageError), (die, RunError)])
def test_what_goes_wrong_in_a_process_ends_the_call(prepare, error):
    with pytest.raises(error, match=r"another network|one that ended"):
        list(in_parts(JOBS, prepare, workers=2))
    assert not [one for one in threading.enumerate() if "Executor" in one.name]


def test_parts_belong_to_one_plan_and_go_with_it(tmp_path):
    file = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt), parts_of(file, {"inputs": 1}) as folder:
        part_file(folder, 0).write_bytes(b"done")
        raise KeyboardInterrupt
    with pytest.raises(UsageError, match=r"what was done of table\.csv until now to fit, got other inputs"):
        parts_of(file, {"inputs": 2}).__enter__()
    with parts_of(file, {"inputs": 1}) as folder:
        assert part_file(folder, 0).read_bytes() == b"done"
        with pytest.raises(RunError, match="another process at it"):
            parts_of(file, {"inputs": 1}).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back_as_they_were():
    arrays = {"texts": np.array(["é", ""]), "none": np.empty((0, 3), np.float32), "one": np.array(7)}
    found = unpack(pack(arrays))
    assert all(found[name].dtype == arrays[name].dtype for name in arrays)
    assert all((found[name] == arrays[name]).all() for name in arrays)


@pytest.mark.parametrize(
    ("inputs", "expected"), [(0, 32), (10, 32), (384, 32), (1000, 63), (8192, 512), (100_000, 512)]
)
def test_parts_of_few_inputs_are_small_so_that_all_processes_have_some(inputs, expected):
    assert part_size(inputs, 512) == expected
    assert part_size(inputs, 7) == 7


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_processes_keep_the_memory_of_one_photograph_for_the_next():
    faults = [int(found) for found in in_parts(JOBS[:3], page_faults, workers=2)]
    assert max(faults) < 500, "of 5,120 pages"
