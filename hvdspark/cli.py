"""The `hvdspark` command. Exit codes: 0 it worked, 1 it did not or something needed is broken, 2 bad usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hvdspark import __version__, doctor, horovod_build
from hvdspark.errors import HvdSparkError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default those of this process. Bad usage raises SystemExit(2)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except HvdSparkError as error:
        print(f"hvdspark: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hvdspark", description="Deep-learning recommendation models on Spark.")
    parser.add_argument("--version", action="version", version=f"hvdspark {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = commands.add_parser("doctor", help="say what works here, what does not, and how to repair it")
    check.add_argument(
        "--master",
        help="Spark master to start a session on, or sc://host for Spark Connect (default: "
        "SPARK_REMOTE, spark-defaults, else local[*])",
    )
    check.add_argument("--store", metavar="URI", help="also check that this store can be written")
    check.add_argument("--timeout", type=_seconds, default=120.0, metavar="SECONDS", help="for the session (120)")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_doctor)

    install = commands.add_parser("install-horovod", help="build Horovod for the installed torch and install it")
    install.add_argument("--mpi", action=argparse.BooleanOptionalAction, help="with MPI (default: where mpicc is)")
    install.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="with CUDA and NCCL, for ranks on GPUs (default: where torch has CUDA and toolkit and NCCL are complete)",
    )
    install.add_argument("--wheel-only", action="store_true", help="print the wheel's path instead of installing it")
    install.set_defaults(run=_install_horovod)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a positive number of seconds: {text!r}")
    return value


def _doctor(options: argparse.Namespace) -> int:
    rows = doctor.diagnose(doctor.gather(options.master, options.store, options.timeout))
    print(doctor.as_json(rows) if options.json else doctor.table(rows))
    return 0 if doctor.healthy(rows) else 1


def _install_horovod(options: argparse.Namespace) -> int:
    build = horovod_build.plan(with_mpi=options.mpi, with_cuda=options.cuda)
    if build.note:
        print(f"hvdspark: {build.note}", file=sys.stderr)
    if horovod_build.cached_wheel(build) is None:
        what = f"Horovod {horovod_build.HOROVOD_VERSION} for torch {build.torch_version}"
        print(f"building {what}: about 2 minutes on 2 cores, only the first time", file=sys.stderr)
        print(f"log: {build.wheel_dir / 'build.log'}", file=sys.stderr)
    print(horovod_build.build_wheel(build) if options.wheel_only else horovod_build.install(build))
    return 0
