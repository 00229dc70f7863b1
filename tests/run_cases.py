"""What tests of whole runs share: an interruption, and what makes two trainings the same."""

import signal

import numpy as np

from convscope.runs import open_run


def weights_of(run):
    from safetensors.numpy import load

    return load(open_run(run).read_bytes("weights.safetensors"))


def assert_same_training(one, other):
    first, second = weights_of(one), weights_of(other)
    assert sorted(first) == sorted(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert open_run(one).read_table("history.csv") == open_run(other).read_table("history.csv")


def interrupt_at(kind, epoch, step=None):
    """Make a listener that behaves like a person at the keyboard."""

    def listen(event):
        if isinstance(event, kind) and event.epoch == epoch and (step is None or event.step == step):
            signal.raise_signal(signal.SIGINT)

    return listen
