"""Feeds damaged bytes, guided by coverage, to everything that parses the network.

    make fuzz
    python -m scripts.fuzz --target head --cases 1000000

One process per target (``scripts.fuzz_targets``), one after the other. An input that
raises is printed and kept below --workdir; add it to tests/fuzz/test_findings.py. Needs
atheris, which ``make fuzz`` installs.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

INSTRUMENTED = ("swarm_jax.net", "swarm_jax.roles", "swarm_jax.core")
MAX_MEMORY_MB = 1500


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", default="all", help="default: all, in turn")
    parser.add_argument("--cases", type=int, default=100_000, help="per target")
    parser.add_argument("--seconds", type=int, default=120, help="per target, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("runs/fuzz"))
    args = parser.parse_args(argv)
    if args.target != "all":
        fuzz(args)
    # Only what defines them knows the targets, and it imports hivemind.
    from scripts.fuzz_targets import TARGETS

    failed = [name for name in TARGETS if not run(name, args)]
    print(f"Findings in: {', '.join(failed)}" if failed else "No findings.")
    return len(failed)


def run(target: str, args: argparse.Namespace) -> bool:
    """Runs one target in a process of its own and prints a line of figures."""
    command = [sys.executable, "-m", "scripts.fuzz", "--target", target]
    command += ["--cases", str(args.cases), "--seconds", str(args.seconds)]
    command += ["--seed", str(args.seed), "--workdir", str(args.workdir)]
    start_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    seconds = time.monotonic() - start_s
    output = done.stdout + done.stderr
    cases = re.findall(r"^#(\d+)", output, re.M)
    coverage = re.findall(r"INITED cov: (\d+)|cov: (\d+)", output)
    first, last = coverage[0], coverage[-1]
    memory = re.findall(r"rss: (\d+)Mb", output) or ["?"]
    print(
        f"{target:10} {cases[-1] if cases else 0:>9} cases {seconds:6.1f} s  "
        f"coverage {''.join(first)} -> {''.join(last)}  "
        f"memory {memory[0]} -> {memory[-1]} MB  "
        f"{'no finding' if not done.returncode else 'FINDING'}",
        flush=True,
    )
    if done.returncode:
        telling = [x for x in output.splitlines() if not x.startswith(("#", "INFO"))]
        print("\n".join(telling[-40:]))
    return not done.returncode


def fuzz(args: argparse.Namespace) -> None:
    """Runs one target here; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from scripts import fuzz_targets
    corpus = args.workdir / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(fuzz_targets.seeds(args.target)):
        (corpus / f"seed{number}").write_bytes(seed)
    options = {
        "runs": args.cases,
        "max_total_time": args.seconds,
        "seed": args.seed,
        "max_len": 1024,
        "timeout": 20,
        "rss_limit_mb": MAX_MEMORY_MB,
        "artifact_prefix": f"{corpus}/../{args.target}-",
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], str(corpus), *flags], fuzz_targets.TARGETS[args.target])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
