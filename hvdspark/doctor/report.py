"""From facts to rows: what is broken and how it is repaired. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from hvdspark import notebook, versions
from hvdspark.doctor.facts import Facts, SessionFacts
from hvdspark.launch.budget import GIB, RANK_MEMORY, UNLIMITED, MemoryBudget

OK, NOTE, SKIPPED, BROKEN = "ok", "note", "skipped", "BROKEN"
_MARKS = {OK: "\u2714 ok", NOTE: "\u26a0 note", SKIPPED: "\u2013 skipped", BROKEN: "\u2718 BROKEN"}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        status: "ok", "note" (works, but could be better), "skipped" (not looked at) or "BROKEN" (a fit would fail).
        problem: what is wrong, "" where nothing is.
        fix: what to do about it; every broken row has one.
    """

    status: str
    name: str
    found: str
    problem: str = ""
    fix: str = ""


class Report(list[Row]):
    """Rows, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = [(_MARKS[row.status], row.name, row.found, "; ".join(filter(None, _remedy(row)))) for row in self]
        broken = sum(row.status == BROKEN for row in self)
        title = "nothing is broken" if healthy(self) else f"{broken} of {len(self)} broken: a fit would fail"
        return notebook.block(
            notebook.line(f"hvdspark doctor: {title}", strong=True),
            notebook.table(("", "", "found", "what to do"), rows),
        )


def diagnose(facts: Facts) -> Report:
    """All rows about these facts, in the order in which they should be repaired."""
    rows = [_java_row(facts), *(_version_row(name, facts) for name in ("Python", "pyspark", "torch"))]
    rows.append(_horovod_row(facts))
    rows += [_version_row(name, facts) for name in ("petastorm", "pyarrow", "numpy", "pandas")]
    rows.append(_kernels_row(facts))
    rows += _session_rows(facts)
    rows.append(_store_row(facts))
    return Report(rows)


def healthy(rows: Sequence[Row]) -> bool:
    """Whether none of the rows says that something a fit needs is broken."""
    return all(row.status != BROKEN for row in rows)


def table(rows: Sequence[Row]) -> str:
    """The rows as text; under a row that is not in order stand the problem and the fix."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.status:<8} {row.name:<{width}}  {row.found}".rstrip())
        indent = " " * (8 + 1 + width + 2)
        lines += [f"{indent}{label}{text}" for label, text in (("", row.problem), ("fix: ", row.fix)) if text]
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """`{"healthy": bool, "rows": [{"status", "name", "found", "problem", "fix"}, ...]}`"""
    return json.dumps({"healthy": healthy(rows), "rows": [asdict(row) for row in rows]}, indent=2)


def _remedy(row: Row) -> tuple[str, str]:
    return row.problem, f"fix: {row.fix}" if row.fix else ""


def _version_row(name: str, facts: Facts) -> Row:
    version = facts.versions[name]
    label = {"pyspark": "Spark", "petastorm": "Petastorm", "horovod": "Horovod"}.get(name, name)
    error = versions.problem(name, version)
    if error is not None:
        return Row(BROKEN, label, version or "not found", error.what, error.hint or "")
    found = version or ""
    if name == "torch":
        found += f", CUDA {facts.torch_cuda}" if facts.torch_cuda else ", CPU only"
    return Row(OK, label, found)


def _java_row(facts: Facts) -> Row:
    row = _version_row("Java", facts)
    if row.status == OK:
        return row
    found = "does not run" if facts.java_error else row.found
    fix = f"unset JAVA_HOME (Spark then takes {facts.other_java}), or {row.fix}" if facts.other_java else row.fix
    return replace(row, found=found, problem=facts.java_error or row.problem, fix=fix)


def _horovod_row(facts: Facts) -> Row:
    row = _version_row("horovod", facts)
    if row.status == BROKEN:
        return _after_failed_build(row, facts)
    if facts.horovod is None:
        fix = versions.REQUIREMENTS["horovod"].fix
        if versions.problem("torch", facts.versions["torch"]):
            fix = f"repair torch, then {fix}"
        broken = Row(BROKEN, row.name, row.found, f"it cannot be imported: {facts.horovod_error}", fix)
        return _after_failed_build(broken, facts)
    controllers, operations = facts.horovod.controllers, facts.horovod.gpu_operations
    found = f"{row.found}, controllers: {_listed(controllers)}, GPU operations: {_listed(operations)}"
    if "Gloo" not in controllers:
        return Row(BROKEN, row.name, found, "it was built without Gloo, which ranks use", "hvdspark install-horovod")
    if facts.torch_cuda and "NCCL" not in operations:
        problem = "torch has CUDA, but Horovod was built without NCCL: GPU tensors cannot be reduced"
        status = BROKEN if _gpus(facts.session) else NOTE
        first = f"install {'; '.join(facts.cuda_missing)}; then " if facts.cuda_missing else ""
        return Row(status, row.name, found, problem, f"{first}hvdspark install-horovod --cuda")
    return Row(OK, row.name, found)


def _after_failed_build(row: Row, facts: Facts) -> Row:
    """To say again what has just failed is no advice."""
    if facts.build_failure is None:
        return row
    log, reason = facts.build_failure
    problem = f"{row.problem}; the last build failed: {reason or 'see its log'}"
    without = f"{row.fix} --no-cuda (for ranks on CPUs)" if facts.torch_cuda else f"repair that, then {row.fix}"
    return replace(row, problem=problem, fix=f"{without}; the log is {log}")


def _kernels_row(facts: Facts) -> Row:
    if facts.kernels_absence is None:
        return Row(SKIPPED, "Kernels", "not looked at: torch and numpy have to work first")
    if not facts.kernels_absence:
        return Row(OK, "Kernels", f"compiled, those for {facts.kernels_processor}")
    fix = "install a C++ compiler, then hvdspark again; executors need none"
    problem = f"{facts.kernels_absence}: embeddings are trained by slower loops, to the same numbers"
    return Row(NOTE, "Kernels", "numpy and torch", problem, fix)


def _session_rows(facts: Facts) -> Iterator[Row]:
    session = facts.session
    if session is None:
        if facts.session_error is None:
            yield Row(SKIPPED, "Session", "not started: Java, Python and Spark have to work first")
        else:
            fix = "read what Spark printed above this table; check --master, SPARK_HOME and spark-defaults.conf"
            yield Row(BROKEN, "Session", "does not start", facts.session_error, fix)
        return
    yield Row(OK, "Session", session.master)
    yield _slots_row(session)
    yield _dynamic_allocation_row(session)
    yield _workers_row(facts, session)
    yield _memory_row(session)
    yield _gpu_row(facts, session)


def _slots_row(session: SessionFacts) -> Row:
    if session.slots is None:
        return Row(SKIPPED, "Free slots", "a Spark Connect server does not tell")
    free = max(session.slots - session.busy, 0)
    found = f"{free} of {session.slots}"
    if session.slots == 0:
        fix = "give the session executors: spark.executor.instances, spark.executor.cores"
        return Row(BROKEN, "Free slots", found, "no task can run", fix)
    if free == 0:
        return Row(NOTE, "Free slots", found, "a fit would wait for the tasks that run now", "wait, or stop other jobs")
    return Row(OK, "Free slots", f"{found}: numWorkers can be up to {free}")


def _dynamic_allocation_row(session: SessionFacts) -> Row:
    key = "spark.dynamicAllocation.enabled"
    if session.settings.get(key, "false").lower() != "true":
        return Row(OK, "Dynamic allocation", "off")
    fix = f"{key}=false, with spark.executor.instances for the number of executors"
    return Row(BROKEN, "Dynamic allocation", "on", "barrier stages do not work with it (SPARK-24942)", fix)


def _workers_row(facts: Facts, session: SessionFacts) -> Row:
    name = "Python workers"
    if session.workers_error is not None:
        fix = f"install the same packages on the executors; on this machine: export PYSPARK_PYTHON={facts.executable}"
        return Row(BROKEN, name, "cannot run hvdspark", session.workers_error, fix)
    differences = {
        f"{package} {version or 'missing'} on {worker.host}, {facts.versions[package]} on the driver"
        for worker in session.workers
        for package, version in worker.versions.items()
        if version != facts.versions[package]
    }
    executables = {worker.executable for worker in session.workers}
    if differences:
        fix = f"one environment for driver and executors; the workers run {_listed(sorted(executables))}"
        return Row(BROKEN, name, f"{len(session.workers)} asked", "; ".join(sorted(differences)), fix)
    hosts = {worker.host for worker in session.workers}
    return Row(OK, name, f"same packages as the driver ({len(session.workers)} asked, hosts: {len(hosts)})")


def _memory_row(session: SessionFacts) -> Row:
    """With as many ranks as there are slots, on the host where each has the least."""
    name, terms = "Memory of a rank", session.memory
    if session.memory_error is not None:
        problem, fix = session.memory_error
        return Row(BROKEN, name, "not known", problem, fix)
    if terms is None:
        return Row(SKIPPED, name, "not looked at")
    if not terms.limited:
        return Row(OK, name, f"no limit ({RANK_MEMORY}={UNLIMITED})")
    if _gpus(session):
        return Row(OK, name, "no limit where ranks have GPUs")
    ranks = Counter(worker.host for worker in session.workers)
    machines = {worker.host: MemoryBudget(worker.memory_bytes, worker.memory_setting) for worker in session.workers}
    limits = [limit for host, machine in machines.items() if (limit := terms.on(machine, ranks[host])) is not None]
    if not limits:
        return Row(SKIPPED, name, "the hosts of the executors were not asked")
    least = min(limits, key=lambda limit: limit.bytes)
    size, rows = (f"{count / GIB:.2f} GiB" for count in (least.bytes, least.rows))
    found = f"{size}, {rows} of it for embedding tables, with {sum(ranks.values())} ranks ({least.setting})"
    return Row(OK, name, found)


def _gpu_row(facts: Facts, session: SessionFacts) -> Row:
    executor = session.settings.get("spark.executor.resource.gpu.amount")
    task = session.settings.get("spark.task.resource.gpu.amount")
    if not _gpus(session):
        return Row(OK, "GPUs", "none assigned by Spark; ranks run on CPUs")
    found = f"{executor} for each executor, {task or 0} for each task"
    if not task:
        return Row(BROKEN, "GPUs", found, "tasks ask for no GPU, so ranks get none", "spark.task.resource.gpu.amount=1")
    if not facts.torch_cuda:
        return Row(BROKEN, "GPUs", found, "this torch has no CUDA", "install a CUDA build of torch on every executor")
    return Row(OK, "GPUs", found)


def _store_row(facts: Facts) -> Row:
    if facts.store is None:
        return Row(SKIPPED, "Store", "not checked; --store URI does")
    if facts.store_error is None:
        return Row(OK, "Store", f"{facts.store} is writable")
    fix = facts.store_hint or "give a URI that the driver and all executors can write to"
    return Row(BROKEN, "Store", facts.store, facts.store_error, fix)


def _gpus(session: SessionFacts | None) -> bool:
    return session is not None and session.settings.get("spark.executor.resource.gpu.amount", "0") not in ("", "0")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
