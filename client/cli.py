"""The `dsd` command. Every command that prints data prints one JSON document instead with --json, and nothing else."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from client import job_file, local
from client.comparison import compare
from client.comparison_table import comparison_markdown, comparison_tables
from client.demo import demo as run_demo
from client.http import Client
from client.pipeline import fields_checked, stand_alone, submit_all
from client.report import (
    catalog_table,
    error_text,
    findings,
    job_details,
    jobs_table,
    models_table,
    pruned_signals_table,
    removals_table,
    result_table,
    signals_table,
    standing,
    storage_table,
    verified_signals_table,
    workers_table,
)
from client.save import save
from client.view import JobView
from client.waiting import told
from dsd_core.errors import DsdError, SpecError
from dsd_core.spec import parse_model, parse_spec

Json = dict[str, Any]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="dsd",
    help="Distil heavy segmentation networks into compact students. DSD_URL and DSD_API_KEY say where the service is; "
    "without DSD_URL it is the one `dsd up` runs on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

data_app = typer.Typer(help="Datasets before they are trained on.", no_args_is_help=True)
app.add_typer(data_app, name="data")

JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="A job file, YAML or JSON; ready ones are in examples/.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field, such as train.epochs=3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Format(StrEnum):
    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    ALL = "all"


def main() -> None:
    """Entry point: an error becomes a message and a hint on stderr and exit code 1."""
    try:
        app()
    except DsdError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(error_text(error.as_dict()))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


# --- the service ------------------------------------------------------------------------------------------------------


@app.command(context_settings=PASS_ON)
def up(context: typer.Context) -> None:
    """Run the whole service on this machine, until Ctrl-C. `dsd up --help` lists its options."""
    local.need("celery", "all", "Running the service here")
    local.replace_process(local.program("deploy.up", *context.args))


@app.command(context_settings=PASS_ON)
def doctor(context: typer.Context) -> None:
    """Say whether every part of the service on this machine works, and what to do where one does not."""
    local.need("celery", "all", "Examining the service")
    local.replace_process(local.program("deploy.doctor", *context.args))


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="A CamVid folder. Default: generated street scenes.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A teacher's weights file. Default: a job trains one.")] = None,
    home: Annotated[Path | None, typer.Option(help="The service's state. Default: DSD_HOME or ~/.dsd.")] = None,
    url: Annotated[str | None, typer.Option(help="Use the service that runs there instead of starting one.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the student.")] = Path("demo-student"),
    as_json: AsJson = False,
) -> None:
    """Train a teacher, distil a student from it, and compare it with the same student without a teacher."""
    if teacher is not None and data is None:
        raise typer.BadParameter("A teacher needs the data it was trained for: give --data as well.")
    job = run_demo(_console(as_json), data=data, teacher=teacher, home=home, url=url, keep=keep, out=out)
    if as_json:
        _print_json(job)


# --- jobs -------------------------------------------------------------------------------------------------------------


@app.command()
def submit(
    file: JobFile,
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show each job until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue the job of a file, or its jobs: later ones may name earlier ones. Repeated after a broken connection, it
    makes no job twice."""
    with Client() as client:
        queued = submit_all(client, job_file.read_all(file, overrides or ()))
        for job in () if as_json else queued:
            _console().print(_queued(job), soft_wrap=True)
        if watch:
            queued = [_watch(client, job["id"], as_json) for job in queued]
        elif not as_json:
            _console().print(f"Watch it: dsd watch {queued[-1]['id']}")
    if as_json:
        _print_json(queued[0] if len(queued) == 1 else queued)
    if watch:
        _exit_by_status(*queued)


@app.command()
def validate(file: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a job file without queueing anything. Of jobs that need others of the file, only the fields."""
    jobs = job_file.read_all(file, overrides or ())
    with Client() as client:
        answers = [
            client.validate(job) if alone == job else fields_checked(alone)
            for job, alone in zip(jobs, stand_alone(jobs), strict=True)
        ]
    if as_json:
        _print_json(answers[0] if len(answers) == 1 else answers)
        return
    for answer in answers:
        if len(answers) > 1:
            _console().print(f"[bold]{escape(answer['spec']['name'])}[/]")
        _console().print(findings(answer))


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    group: Annotated[str | None, typer.Option(help="Only jobs of this group.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs."""
    with Client() as client:
        found = client.jobs(page=min(limit, 100), status=status, name=name, group=group)
        listed = [job for _, job in zip(range(limit), found, strict=False)]
    if as_json:
        _print_json(listed)
    elif listed:
        _console().print(jobs_table(listed))
    else:
        _console().print("There are no jobs. Submit one: dsd submit FILE")


@app.command()
def show(
    job_id: JobId,
    log: Annotated[bool, typer.Option("--log", help="Print what the training process printed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything about a job."""
    with Client() as client:
        if log:
            sys.stdout.write(client.logs(job_id))
            return
        job = client.job(job_id)
    if as_json:
        _print_json(job)
    else:
        _console().print(job_details(job))


@app.command()
def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job until it ends. Exit code 1 unless it succeeds."""
    with Client() as client:
        job = _watch(client, job_id, as_json)
    if as_json:
        _print_json(job)
    _exit_by_status(job)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """End a job. A running one ends within seconds."""
    with Client() as client:
        _say_standing(client.cancel(job_id), as_json)


@app.command()
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Let a job wait until it is resumed. A running one saves a checkpoint and frees its worker."""
    with Client() as client:
        _say_standing(client.pause(job_id), as_json)


@app.command()
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job take its turn again; it goes on from its checkpoint."""
    with Client() as client:
        _say_standing(client.resume(job_id), as_json)


@app.command()
def stop(job_id: JobId, as_json: AsJson = False) -> None:
    """End training now and keep the best student so far, exported and registered as always."""
    with Client() as client:
        _say_standing(client.stop(job_id), as_json)


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Do a job that failed or was cancelled again, as a new job that goes on from its checkpoints."""
    with Client() as client:
        _say_queued(client.retry(job_id), as_json)


@app.command()
def clone(job_id: JobId, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Queue a new job like this one, from the beginning. `--set` changes fields; null takes the default."""
    with Client() as client:
        changes = job_file.patch(client.job(job_id)["spec"], overrides) if overrides else {}
        _say_queued(client.clone(job_id, changes), as_json)


@app.command(context_settings={"ignore_unknown_options": True})  # else -5 would be an option
def priority(
    job_id: JobId,
    number: Annotated[int, typer.Argument(metavar="N", min=-100, max=100, help="-100 to 100; higher runs first.")],
    as_json: AsJson = False,
) -> None:
    """Let a job run before or after others."""
    with Client() as client:
        _say_standing(client.change(job_id, priority=number), as_json)


@app.command()
def label(
    job_id: JobId,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="KEY- takes a label away.")],
    as_json: AsJson = False,
) -> None:
    """Give a job labels, or take some away. `dsd show` lists them."""
    with Client() as client:
        _say_standing(client.change(job_id, labels=dict(map(_label, labels))), as_json)


# --- workers ----------------------------------------------------------------------------------------------------------

worker_app = typer.Typer(help="The workers of the service.", no_args_is_help=True)
app.add_typer(worker_app, name="worker")
WorkerName = Annotated[str, typer.Argument(metavar="NAME", help="As `dsd worker list` shows it.")]


@worker_app.command("list")
def list_workers(as_json: AsJson = False) -> None:
    """List workers: what they have, what they run, whether they take jobs."""
    with Client() as client:
        found = client.workers()
    if as_json:
        _print_json(found)
    elif found:
        _console().print(workers_table(found))
    else:
        _console().print("There are no workers. `dsd up` starts one; docs/operations.md says how to start others.")


@worker_app.command()
def drain(
    name: WorkerName,
    release: Annotated[bool, typer.Option("--release", help="Give its job back now, with a checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a worker take no further job; it ends the one it has."""
    with Client() as client:
        _say_worker(client.drain(name, release=release), as_json)


@worker_app.command()
def undrain(name: WorkerName, as_json: AsJson = False) -> None:
    """Let a worker take jobs again."""
    with Client() as client:
        _say_worker(client.undrain(name), as_json)


# --- what came out ----------------------------------------------------------------------------------------------------


@app.command()
def models(as_json: AsJson = False) -> None:
    """List registered models."""
    with Client() as client:
        found = client.models()
    if as_json:
        _print_json(found)
    elif found:
        _console().print(models_table(found))
    else:
        _console().print("There are no models yet. Every job that trains or exports a student registers one.")


@app.command()
def download(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]", help="Alone it means @latest-good.")],
    to: Annotated[Path | None, typer.Option("-o", "--out", help="Folder, or a file of that format. [./MODEL]")] = None,
    kind: Annotated[Format, typer.Option("--format", help="Which weights.")] = Format.ALL,
    as_json: AsJson = False,
) -> None:
    """Download a model's files; an interrupted download goes on where it stopped."""
    name, version = parse_model(model)
    with Client() as client:
        paths = save(client, name, version, to or Path(name), _console(as_json), kind=kind)
    if as_json:
        _print_json({"model": name, "version": version, "files": [str(path.absolute()) for path in paths]})
    else:
        _console().print("\n".join(escape(str(path)) for path in paths))


@app.command()
def catalog(
    search: Annotated[str, typer.Option(help="Only encoders with this in their name.")] = "", as_json: AsJson = False
) -> None:
    """Show what a job file may name: networks, losses, datasets."""
    with Client() as client:
        found = client.catalog(search)
    if as_json:
        _print_json(found)
    else:
        _console().print(catalog_table(found))


storage_app = typer.Typer(help="What the service keeps, and freeing it.", invoke_without_command=True)
app.add_typer(storage_app, name="storage")


@storage_app.callback()
def storage(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what the storage holds, and by which rules it is freed."""
    if context.invoked_subcommand is not None:
        return
    with Client() as client:
        held = client.storage()
    if as_json:
        _print_json(held)
    else:
        _console().print(storage_table(held))


@storage_app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and delete nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete now what the rules of DSD_KEEP_DAYS, DSD_KEEP_CHECKPOINT_DAYS and DSD_KEEP_BYTES let go."""
    with Client() as client:
        pruned = client.prune(dry_run=dry_run)
    if as_json:
        _print_json(pruned)
    else:
        _console().print(removals_table(pruned))


signals_app = typer.Typer(
    help="What teachers said about datasets, kept for further jobs, and freeing it.", invoke_without_command=True
)
app.add_typer(signals_app, name="signals")

SignalsKey = Annotated[str | None, typer.Option("--key", help="One entry, by its key or how that begins.")]


@signals_app.callback()
def signals(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what is kept of teachers' signals, least recently used first: whose, how large, how full, last use."""
    if context.invoked_subcommand is not None:
        return
    with Client() as client:
        held = client.signals()
    if as_json:
        _print_json(held)
    else:
        _console().print(signals_table(held))


@signals_app.command("verify")
def verify_signals(key: SignalsKey = None, as_json: AsJson = False) -> None:
    """Hold every record against its checksum. What is damaged is forgotten, and computed again by the next job."""
    with Client() as client:
        found = client.verify_signals(key)
    if as_json:
        _print_json(found)
    else:
        _console().print(verified_signals_table(found))


@signals_app.command("prune")
def prune_signals(
    key: SignalsKey = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="Only what no job used for so long.")
    ] = None,
    to_bytes: Annotated[
        str | None, typer.Option("--to-bytes", metavar="N", help="The least recently used, until N are left, as 5GB.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and delete nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete signals that no job uses: what all options let go; without any, what is beyond DSD_SIGNALS_BYTES."""
    with Client() as client:
        pruned = client.prune_signals(key=key, older_than_days=older_than, to_bytes=to_bytes, dry_run=dry_run)
    if as_json:
        _print_json(pruned)
    else:
        _console().print(pruned_signals_table(pruned))


# --- without a service ------------------------------------------------------------------------------------------------


@app.command()
def run(
    file: JobFile,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder, continued if it exists. [./runs/NAME]")] = None,
    overrides: Overrides = None,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's weights, in place of the job file's.")] = None,
    student: Annotated[Path | None, typer.Option(help="The weights of the student to evaluate or export.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keeps the teacher's signals for further runs that name it. [OUT/signals]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job here, without any service. Ctrl-C saves a checkpoint; the same command goes on from it."""
    local.need("torch", "core", "Training")
    spec = job_file.read(file, overrides or ())
    trains = parse_spec(spec).trains
    folder = out or Path("runs") / str(spec.get("name", "job"))
    view = JobView(_console(as_json), f"{spec.get('name', 'job')}  in {folder}")
    code = local.run(spec, folder, view, {"teacher": teacher, "student": student, "store": store})
    if code == local.INTERRUPTED:
        saved = "The checkpoint is saved. Go on with" if trains else "Stopped. Start again with"
        print(f"{saved}: dsd run {file} --out {folder}", file=sys.stderr)
        raise typer.Exit(130)
    if code or view.result is None:
        raise local.failed(view.error, folder / "log.txt", code)
    if as_json:
        _print_json(view.result)
    else:
        view.console.print(result_table(view.result))
        if view.result["files"]:
            written = escape(str((folder / "student").absolute()))
            view.console.print(f"Student   [bold cyan]{written}[/]", soft_wrap=True)


@app.command()
def table(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders that hold some.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare finished jobs, method by method: mIoU over the seeds, gain over no teacher, cost of a step."""
    if markdown and as_json:
        raise typer.BadParameter("Give one of --json and --markdown.")
    comparisons, notes = compare(folders)
    if as_json:
        told = [asdict(note) for note in notes]
        _print_json({"comparisons": [asdict(comparison) for comparison in comparisons], "notes": told})
    elif markdown:
        print(comparison_markdown(comparisons, notes))
    else:
        _console().print(comparison_tables(comparisons, notes))


@app.command(context_settings=PASS_ON)
def profile(context: typer.Context) -> None:
    """Show where the time of a job's training step goes, and what limits it: FILE. `dsd profile --help` lists the
    options."""
    local.need("torch", "core", "Training")
    local.replace_process(local.program("dsd_core", "profile", *context.args))


@app.command(context_settings=PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Score a network, or an exported student, on a dataset. `dsd evaluate --help` lists the options."""
    local.need("torch", "core", "Evaluation")
    local.replace_process(local.program("dsd_core", "evaluate", *context.args))


@app.command(context_settings=PASS_ON)
def predict(context: typer.Context) -> None:
    """Segment an image. `dsd predict --help` lists the options."""
    local.need("torch", "core", "Prediction")
    local.replace_process(local.program("dsd_core", "predict", *context.args))


@app.command(context_settings=PASS_ON)
def inspect(context: typer.Context) -> None:
    """Show a network's size, cost, taps and licences of weights. `dsd inspect --help` lists the options."""
    local.need("torch", "core", "Inspection")
    local.replace_process(local.program("dsd_core", "inspect", *context.args))


weights = typer.Typer(help="Weights files.", no_args_is_help=True)
app.add_typer(weights, name="weights")


@weights.command(context_settings=PASS_ON)
def convert(context: typer.Context) -> None:
    """Turn a PyTorch checkpoint into safetensors, running nothing in it: FILE.pt, then FILE.safetensors."""
    local.need("torch", "core", "Converting weights")
    local.replace_process(local.program("dsd_core", "convert", *context.args))


@data_app.command("check", context_settings=PASS_ON)
def check_data(context: typer.Context) -> None:
    """Read a whole dataset once and report what is wrong with it. `dsd data check --help` lists the options."""
    local.need("PIL", "core", "Reading datasets")
    local.replace_process(local.program("dsd_core", "data", "check", *context.args))


def _watch(client: Client, job_id: str, as_json: bool) -> Json:
    """Show a job until it ends, with `as_json` on stderr; returns it."""
    console = _console(as_json)
    job = client.job(job_id)
    try:
        with JobView(console, f"{job['name']}  {job_id}") as view, told(view, lambda: client.job(job_id)):
            view.follow(client.events(job_id))
    except KeyboardInterrupt:
        print(f"\nThe job goes on. Watch it again: dsd watch {job_id}   End it: dsd cancel {job_id}", file=sys.stderr)
        raise
    job = client.job(job_id)
    if job.get("result") and not as_json:
        console.print(result_table(job["result"]))
    elif job.get("error") and not as_json:
        console.print(error_text(job["error"]))
    return job


def _exit_by_status(*jobs: Json) -> None:
    if any(job["status"] != "succeeded" for job in jobs):
        raise typer.Exit(1)


def _say_queued(job: Json, as_json: bool) -> None:
    if as_json:
        _print_json(job)
    else:
        _console().print(f"{_queued(job)}\nWatch it: dsd watch {job['id']}", soft_wrap=True)


def _queued(job: Json) -> str:
    return f"Queued [bold]{job['name']}[/] as [bold cyan]{job['id']}[/]"


def _say_standing(job: Json, as_json: bool) -> None:
    if as_json:
        _print_json(job)
    else:
        _console().print(standing(job))


def _say_worker(worker: Json, as_json: bool) -> None:
    if as_json:
        _print_json(worker)
    else:
        _console().print(workers_table([worker]))


def _label(text: str) -> tuple[str, str | None]:
    """`key=value` sets a label, `key-` takes it away."""
    key, equals, value = text.partition("=")
    if key and equals:
        return key, value
    if text.endswith("-") and text != "-":
        return text[:-1], None
    raise SpecError(f"{text!r} is no label.", hint="Write KEY=VALUE to set one, KEY- to take it away.")


def _console(quiet: bool = False) -> Console:
    """stdout for people; with `quiet` stderr, so that stdout holds the JSON alone."""
    return Console(stderr=quiet, highlight=False)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
