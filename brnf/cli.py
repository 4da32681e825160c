"""The `brnf` command: finds the verb, parses its flags, runs it and prints what it has to show.

stdout carries results (with --json one line of JSON); progress, warnings and errors go to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import tyro

from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.stage import Outcome
from brnf.verbs import VERBS, Verb


def usage(prefix: str = "") -> str:
    """The verbs with their purpose."""
    lines = [f"usage: brnf {prefix or 'VERB'} ... ; `brnf VERB --help` explains the verb's flags", ""]
    for name, verb in VERBS.items():
        if name.startswith(prefix):
            lines.append(f"  {name:16}{(verb.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "Start with: brnf demo --out demo"])


def split_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Cut the verb, of one word or two, off the arguments; "" if there is none."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return name, list(arguments[words:])
    return "", list(arguments)


def given_flags(arguments: Sequence[str]) -> dict[str, str]:
    """`--flag value` and `--flag=value` as a mapping, for the flags that set defaults of others."""
    flags: dict[str, str] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            flags[name] = value if equals else following
    return flags


def parse_verb(name: str, arguments: Sequence[str]) -> Verb:
    """Parse a verb's flags over the defaults that its recipe or run gives."""
    cls = VERBS[name]
    values = cls.defaults(given_flags(arguments))
    for entry in dataclasses.fields(cls):
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            values.setdefault(entry.name, tyro.MISSING)
    return tyro.cli(cls, prog=f"brnf {name}", default=cls(**values), args=arguments)


def execute(verb: Verb) -> None:
    """Run a verb and print what it has to show, keeping stdout for that alone."""
    with contextlib.redirect_stdout(sys.stderr):
        result = verb.run()
    last = [*warning_lines(result.outcomes), *refused_lines(result.outcomes)]
    if verb.json:
        print("\n".join(last), file=sys.stderr)
        print(json.dumps(result.values), flush=True)
    else:
        print("\n".join([*result.lines, *last]), flush=True)


def warning_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """What was not well with the runs that were trained."""
    return [f"warning: {outcome.out}: {line}" for outcome in outcomes for line in outcome.manifest.get("warnings", ())]


def refused_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """One line a stage that refused inputs, and one that says so if none did."""
    refusing = {outcome.out: outcome for outcome in outcomes if outcome.refused}
    return [
        f"{outcome.stage} refused {outcome.refused} of its inputs; reasons in {storage.join(out, MANIFEST)}"
        for out, outcome in refusing.items()
    ] or ["refused inputs: 0"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `brnf`, and of the scripts in jobs/. Exits with 2 and one message where the user can mend it."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name, rest = split_verb(arguments)
    if not name:
        helping = not arguments or not {"-h", "--help"}.isdisjoint(arguments)
        prefix = "prepare" if arguments[:1] == ["prepare"] else ""
        print(usage(prefix), file=sys.stdout if helping else sys.stderr)
        raise SystemExit(0 if helping else 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # as Ray's own handler, once it has started
    try:
        execute(parse_verb(name, rest))
    except BrokenPipeError:  # whoever read stdout has seen enough, as in `brnf label --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it while it exits
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (ValueError, OSError) as error:
        if "--debug" in rest or os.environ.get("BRNF_DEBUG") == "1":
            traceback.print_exc()
        print(f"brnf {name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"brnf {name}: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        print(f"brnf {name}: terminated; the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
