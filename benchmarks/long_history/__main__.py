"""Measures chosen claims of long histories, or all of them, and prints one table.

    python -m benchmarks.long_history                   # all, in the sizes that the targets speak of
    python -m benchmarks.long_history stage1 refresh    # some
    python -m benchmarks.long_history --scale 0.01      # a trial

Figures are medians of the repeats, with the fastest and the slowest in brackets.
"""

import argparse

from benchmarks.long_history.claims import HEADER, Options, modules
from benchmarks.measuring import machine
from orchestration.quiet import be_quiet

be_quiet()


def main() -> None:
    """Measures and prints."""
    known = dict(modules())
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("claims", nargs="*", help=f"of {', '.join(known)}; all by default")
    options.add_argument("--repeats", type=int, default=Options.repeats)
    options.add_argument("--threads", type=int, default=Options.threads, help="threads of every contender")
    options.add_argument("--scale", type=float, default=Options.scale, help="share of every size; below 1 is a trial")
    said = options.parse_args()
    if unknown := set(said.claims) - set(known):
        options.error(f"There is no claim {', '.join(sorted(unknown))}; there are {', '.join(known)}.")

    import torch

    torch.set_num_threads(said.threads)
    print(f"{said.threads} threads, {said.repeats} repeats, scale {said.scale:g}, {machine()}\n\n{HEADER}", flush=True)
    for name in said.claims or known:
        for finding in known[name].measure(Options(said.repeats, said.threads, said.scale)):
            print(finding.row(), flush=True)


if __name__ == "__main__":
    main()
