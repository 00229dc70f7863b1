"""One peer of the throughput benchmark, in a process of its own.

It reads a number of steps from each line of standard input, trains that many, and answers with the seconds.
Started by throughput.py, once for each peer and network; a peer that waits for its turn computes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

BEFORE = "convscope-before-float32"
PEERS = {
    "convscope": "convscope, precision auto",
    "convscope-float32": "convscope, float32",
    "keras-torch": "Keras on torch",
    "keras-torch-bfloat16": "Keras on torch, mixed_bfloat16",
    "keras-jax": "Keras on JAX",
    "keras-jax-bfloat16": "Keras on JAX, mixed_bfloat16",
    "keras-tensorflow": "Keras on TensorFlow",
    "keras-tensorflow-bfloat16": "Keras on TensorFlow, mixed_bfloat16",
    "pytorch": "PyTorch loop, float32",
    "pytorch-bfloat16": "PyTorch loop, bfloat16 autocast, channels_last",
    "floor": "convolutions and matrix products alone",
    BEFORE: "convscope, float32, an earlier commit",
}


def main(peer: str, network: str, most: str) -> None:
    """Train on demand, at most so many steps at once."""
    backend = peer.split("-")[1] if peer.startswith("keras-") else "torch"
    os.environ["KERAS_BACKEND"] = backend
    train = _trainer(peer, network, int(most))
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        train(int(line))
        print(time.perf_counter() - begin, flush=True)


def _trainer(peer: str, network: str, most: int) -> Callable[[int], None]:
    if peer == "floor":
        from floor import floor_trainer

        return floor_trainer(network)
    if peer.startswith("pytorch"):
        return _torch_trainer(network, most, bfloat16=peer.endswith("bfloat16"))
    return _keras_trainer(peer, network, most)


def _keras_trainer(peer: str, network: str, most: int) -> Callable[[int], None]:
    import keras
    from models import NETWORKS, images_for, keras_model

    if peer.startswith("keras-") and peer.endswith("bfloat16"):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    batch = NETWORKS[network][2]
    images, targets = images_for(network, most)
    model = keras_model(network)

    def train(steps: int) -> None:
        rows = slice(0, steps * batch)
        if peer.startswith("keras-"):
            model.fit(images[rows], targets[rows], batch_size=batch, epochs=1, verbose=0)
        else:
            import convscope

            precision = "float32" if peer.endswith("float32") else "auto"
            convscope.fit(
                model, images[rows], targets[rows], batch_size=batch, epochs=1, verbose=0,
                engine="fast", precision=precision,
            )  # fmt: skip

    return train


def _torch_trainer(network: str, most: int, bfloat16: bool) -> Callable[[int], None]:
    import torch
    from models import NETWORKS, images_for, torch_model

    batch = NETWORKS[network][2]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, targets = (torch.from_numpy(array).to(device) for array in images_for(network, most))
    images = images.permute(0, 3, 1, 2).contiguous()  # (n, c, h, w)
    torch.manual_seed(0)
    model = torch_model(network).to(device)
    if bfloat16:
        images, model = (
            images.to(memory_format=torch.channels_last),
            model.to(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    loss_of = torch.nn.CrossEntropyLoss()

    def train(steps: int) -> None:
        model.train()
        order = torch.randperm(steps * batch, device=device)
        for rows in order.split(batch):
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for a GPU to be done

    return train


if __name__ == "__main__":
    main(*sys.argv[1:])
