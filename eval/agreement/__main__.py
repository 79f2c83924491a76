"""Can the judge be trusted? Export a blind sample, import the filled labels, compare judges.

Launch: python -m eval.agreement export --runs RUN [RUN ...] --stories STORYFRAMES --output-dir OUT
        python -m eval.agreement import --key OUT/key/key.jsonl --labels FILE [FILE ...] --output-dir OUT
        python -m eval.agreement judges --judgments NAME=FILE NAME=FILE [...] --output-dir OUT
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "export": ("eval.agreement.export", "write a blind sample for people: labels.csv, pictures, instructions, key"),
    "import": ("eval.agreement.report", "read filled labels and report how people and judges agree"),
    "judges": ("eval.agreement.judges", "compare judges on the predictions that both judged; needs no people"),
}
USAGE = "usage: python -m eval.agreement COMMAND --help\n\ncommands:\n" + "".join(
    f"  {name:<8}{text}\n" for name, (_, text) in COMMANDS.items()
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}", end="")
        return 0
    if not words or words[0] not in COMMANDS:
        found = repr(words[0]) if words else "nothing"
        print(
            f"python -m eval.agreement: one of {', '.join(COMMANDS)} was wanted, found {found}\n{USAGE}",
            end="",
            file=sys.stderr,
        )
        return 2
    return int(importlib.import_module(COMMANDS[words[0]][0]).main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
