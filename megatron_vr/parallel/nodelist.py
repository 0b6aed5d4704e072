"""How Slurm calls the nodes of a step, in order: also those on which nothing has started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

# Of the step first: a job may have more nodes, and the ranks of hosts count the step's.
NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")


def expand_hosts(text: str) -> list[str]:
    """The names in a list of Slurm's, as in `gpu[01-03,7],x`: what `scontrol show hostnames` says.

    Inside of a container there may be no scontrol.
    """
    words = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)
    return [name for word in words for name in _names(word)]


def nodes_of_step(
    environment: Mapping[str, str], count: int, come: Mapping[int, str]
) -> dict[int, str]:
    """The name of each of `count` hosts by its rank, at least of those that have `come`.

    Slurm's list is believed where it has as many names, and agrees with all that have come.
    """
    text = next((environment[name] for name in NODE_LISTS if environment.get(name)), "")
    listed = dict(enumerate(expand_hosts(text)))
    if len(listed) == count and all(listed.get(rank) == name for rank, name in come.items()):
        return listed
    return dict(come)


def _names(word: str) -> list[str]:
    parts = re.findall(r"\[[^\]]*\]|[^\[]+", word)
    choices = [_numbers(part[1:-1]) if part[0] == "[" else [part] for part in parts]
    return ["".join(choice) for choice in product(*choices)]


def _numbers(ranges: str) -> list[str]:
    """`08-10,12` as 08, 09, 10, 12."""
    found: list[str] = []
    for part in ranges.split(","):
        bounds = re.fullmatch(r"(\d+)-(\d+)", part)
        if bounds is None:
            found.append(part)
            continue
        first, last = bounds.groups()
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found
