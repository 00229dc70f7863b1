"""Few cases that together hold every combination of any two, or three, settings."""

import random
from itertools import combinations, product

# So many random cases are looked at before the one that adds most is taken.
CANDIDATES = 60


def covering(settings: dict[str, list], strength: int = 2) -> list[dict]:
    """Choose cases so that any `strength` settings take all their values together in at least one of them.

    Greedy: each case is built around a combination that is still missing, and of some such cases the one
    that brings most missing combinations is taken. The same settings give the same cases.
    """
    names, generator = list(settings), random.Random(0)  # noqa: S311  nothing is secret here
    missing = {
        tuple(zip(chosen, values, strict=True))
        for chosen in combinations(range(len(names)), strength)
        for values in product(*(range(len(settings[names[place]])) for place in chosen))
    }
    cases = []
    while missing:
        seed = min(missing)
        best = max(
            (_complete(seed, settings, generator) for _ in range(CANDIDATES)),
            key=lambda case: len(_combinations(case, strength) & missing),
        )
        missing -= _combinations(best, strength)
        cases.append({name: settings[name][value] for name, value in zip(names, best, strict=True)})
    return cases


def case_id(case: dict) -> str:
    """Name a case by its settings."""
    return "-".join(str(value) for value in case.values())


def _complete(seed: tuple, settings: dict[str, list], generator: random.Random) -> tuple[int, ...]:
    case = [generator.randrange(len(values)) for values in settings.values()]
    for place, value in seed:
        case[place] = value
    return tuple(case)


def _combinations(case: tuple[int, ...], strength: int) -> set[tuple]:
    return set(combinations(enumerate(case), strength))
