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
from client.report import catalog_table, error_text, findings, job_details, jobs_table, models_table, result_table
from client.save import save
from client.view import JobView
from dsd_core.errors import DsdError
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
    watch: Annotated[bool, typer.Option("--watch", help="Show the job until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a job."""
    spec = job_file.read(file, overrides or ())
    with Client() as client:
        job = client.submit(spec)
        if watch:
            _watch(client, job["id"], as_json)
        elif as_json:
            _print_json(job)
        else:
            _console().print(
                f"Queued [bold]{job['name']}[/] as [bold cyan]{job['id']}[/]\nWatch it: dsd watch {job['id']}"
            )


@app.command()
def validate(file: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a job file without queueing anything."""
    with Client() as client:
        answer = client.validate(job_file.read(file, overrides or ()))
    if as_json:
        _print_json(answer)
    else:
        _console().print(findings(answer))


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs."""
    with Client() as client:
        found = client.jobs(page=min(limit, 100), status=status, name=name)
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
        _watch(client, job_id, as_json)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job. A running one ends within seconds."""
    with Client() as client:
        job = client.cancel(job_id)
    if as_json:
        _print_json(job)
    else:
        _console().print(f"{job['name']} is [bold]{job['status']}[/].")


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
        _console().print("There are no models yet. Every job that succeeds registers one.")


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


# --- without a service ------------------------------------------------------------------------------------------------


@app.command()
def run(
    file: JobFile,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder, continued if it exists. [./runs/NAME]")] = None,
    overrides: Overrides = None,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's weights, in place of the job file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job here, without any service. Ctrl-C saves a checkpoint; the same command goes on from it."""
    local.need("torch", "core", "Training")
    spec = job_file.read(file, overrides or ())
    parse_spec(spec)
    folder = out or Path("runs") / str(spec.get("name", "job"))
    view = JobView(_console(as_json), f"{spec.get('name', 'job')}  in {folder}")
    code = local.run(spec, folder, view, teacher)
    if code == local.INTERRUPTED:
        print(f"The checkpoint is saved. Go on with: dsd run {file} --out {folder}", file=sys.stderr)
        raise typer.Exit(130)
    if code or view.result is None:
        raise local.failed(view.error, folder / "log.txt", code)
    if as_json:
        _print_json(view.result)
    else:
        view.console.print(result_table(view.result))
        view.console.print(f"Student   [bold cyan]{escape(str((folder / 'student').absolute()))}[/]", soft_wrap=True)


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


def _watch(client: Client, job_id: str, as_json: bool) -> None:
    console = _console(as_json)
    job = client.job(job_id)
    try:
        with JobView(console, f"{job['name']}  {job_id}") as view:
            view.follow(client.events(job_id))
    except KeyboardInterrupt:
        print(f"\nThe job goes on. Watch it again: dsd watch {job_id}   Stop it: dsd cancel {job_id}", file=sys.stderr)
        raise
    job = client.job(job_id)
    if as_json:
        _print_json(job)
    elif job.get("result"):
        console.print(result_table(job["result"]))
    elif job.get("error"):
        console.print(error_text(job["error"]))
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _console(quiet: bool = False) -> Console:
    """stdout for people; with `quiet` stderr, so that stdout holds the JSON alone."""
    return Console(stderr=quiet, highlight=False)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
