"""Some images of each class, side by side, for a person to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convscope.data.collection import Collection


@dataclass(frozen=True, eq=False)
class ContactSheet:
    """Images to look at, class by class.

    Attributes
    ----------
    images : ndarray of shape (classes, k, h, w, c), uint8
        White where a class has fewer than k.
    captions : tuple of tuple of str
        The name of each image; empty where there is none.
    class_names : tuple of str
        Of the rows.
    """

    images: NDArray[np.uint8]
    captions: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...]


def contact_sheet(collection: Collection, columns: int = 8, rows: int = 20, seed: int = 0) -> ContactSheet:
    """Choose some images of each class at random.

    Parameters
    ----------
    collection : Collection
        As ``open_path`` gives it.
    columns : int
        Images of each class.
    rows : int
        The most classes shown.
    seed : int
        Decides which images.

    Returns
    -------
    ContactSheet
        For ``plot_contact_sheet``.
    """
    classes = min(rows, len(collection.class_names))
    images = np.full((classes, columns, *collection.images.shape[1:]), 255, np.uint8)
    captions = []
    for label in range(classes):
        mine = np.random.default_rng([seed, label]).permutation(np.flatnonzero(collection.labels == label))
        chosen = np.sort(mine[:columns])
        if len(chosen):
            images[label, : len(chosen)] = collection.images[chosen]
        names = [collection.names[int(number)] for number in chosen]
        captions.append(tuple(names + [""] * (columns - len(names))))
    return ContactSheet(images, tuple(captions), collection.class_names[:classes])
