"""`dsd demo`: a teacher, a student distilled from it and the same student without, through the real service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from client import job_file
from client.home import home_dir
from client.http import Client
from client.report import error_text, result_table
from client.save import save
from client.service import started
from client.view import JobView
from dsd_core.errors import DsdError
from dsd_core.spec import TEACHER_SOURCES

Json = dict[str, Any]
REGISTER_S = 180.0  # MLflow's first start takes a while, and the model is registered there


class JobFailed(DsdError):
    """A job did not succeed."""

    exit_code = 1


def demo(
    console: Console,
    *,
    data: Path | None = None,
    teacher: Path | None = None,
    home: Path | None = None,
    url: str | None = None,
    keep: bool = False,
    out: Path = Path("demo-student"),
) -> Json:
    """Run the demo and print its table; returns the student's job, whose files are then in `out`.

    With `data` on CamVid, else on generated streets; without `teacher` a job trains one first. With `url` the jobs go
    to the service there, otherwise one is started on `home`. Raises JobFailed and the errors of `client.http`.
    """
    with _service(console, home, url, keep) as client:
        dataset = "camvid" if data else "streets"
        taught_by = {"weights": str(teacher.expanduser().resolve())} if teacher else None
        if taught_by is None:
            taught_by = {"model": _model_of(finish(client, job(f"{dataset}-teacher", data), console))}
        done = finish(client, job(f"{dataset}-student", data, taught_by), console)
        save(client, done["name"], str(done["model"]["version"]), out, console)
    console.print()
    console.print(result_table(done["result"]))
    console.print(f"Student   [bold cyan]{escape(str(out.absolute()))}[/]", soft_wrap=True)
    console.print(
        "Look again  [bold]make up[/] (or [bold]dsd up[/]) starts the service with these jobs, metrics and models."
    )
    return done


def job(name: str, data: Path | None = None, taught_by: Json | None = None) -> Json:
    """One of the demo's job files, with the dataset's folder and the teacher put in."""
    job = job_file.read(Path(str(files("client").joinpath("examples", "demo", f"{name}.yaml"))))
    if data:
        job["dataset"] |= {"root": str(data.expanduser().resolve())}
    if taught_by:
        kept = {name: value for name, value in job["teacher"].items() if name not in TEACHER_SOURCES}
        job["teacher"] = kept | taught_by
    return job


def finish(client: Client, spec: Json, console: Console) -> Json:
    """Submit a job, show it until its end, and return it once its model is registered. Raises JobFailed."""
    submitted = client.submit(spec)
    console.print()
    with JobView(console, f"{spec['name']}  {submitted['id']}") as view:
        view.follow(client.events(submitted["id"]))
    job = client.job(submitted["id"])
    if job["status"] != "succeeded":
        error = job.get("error") or {"message": f"{spec['name']} ended as {job['status']}."}
        console.print(error_text(error))
        raise JobFailed(f"Job {job['id']} did not succeed.", hint=f"What it printed: dsd show {job['id']} --log")
    return _registered(client, job, console)


def _registered(client: Client, job: Json, console: Console) -> Json:
    deadline = time.monotonic() + REGISTER_S
    with console.status("Registering the model in MLflow"):
        while job["model"]["version"] is None:
            if time.monotonic() > deadline:
                raise JobFailed(
                    f"{job['name']} is trained but not registered after {REGISTER_S:.0f} s.",
                    hint=job["model"]["tracking_error"] or "See controller.log and mlflow.log in the service's logs.",
                )
            time.sleep(0.5)
            job = client.job(job["id"])
    console.print(f"Registered as [bold cyan]{_model_of(job)}[/]")
    return job


def _model_of(job: Json) -> str:
    return f"{job['model']['name']}/{job['model']['version']}"


@contextmanager
def _service(console: Console, home: Path | None, url: str | None, keep: bool) -> Iterator[Client]:
    if url:
        with Client(url) as client:
            _announce(console, {"api_url": client.base_url})
            yield client
        return
    home = (home or home_dir()).expanduser().absolute()
    with ExitStack() as stack:
        with console.status(f"Starting the service on {escape(str(home))}"):
            address = stack.enter_context(started(home, keep=keep))
        _announce(console, address)
        try:
            yield stack.enter_context(Client(address["api_url"]))
        finally:
            if not keep:
                console.print("Stopping the service", style="dim")


def _announce(console: Console, address: Json) -> None:
    console.print(f"API docs  [cyan]{address['api_url']}/docs[/]")
    if address.get("mlflow_url"):
        console.print(f"MLflow    [cyan]{address['mlflow_url']}[/]  [dim]answers within half a minute[/]")
