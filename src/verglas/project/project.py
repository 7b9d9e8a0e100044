"""The project: where jobs get their numbers and folders, and where the graph is kept in step with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verglas.errors import InputError
from verglas.project.lock import project_lock
from verglas.project.pipeline import PIPELINE, Pipeline, Process, Status, read_pipeline, write_pipeline


class Project:
    """A folder with a `default_pipeline.star`. Names in it are relative to the folder, which is the working directory of its jobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / PIPELINE).is_file():
            raise InputError(root, f"not a project (no {PIPELINE})", f"Make one: verglas new {root}")

    @classmethod
    def create(cls, root: Path) -> Project:
        """Make an empty project in `root`; raises InputError when there is one already."""
        if (root / PIPELINE).exists():
            raise InputError(root, "is a project already")
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_pipeline(root / PIPELINE, Pipeline())
        except OSError as error:
            raise InputError(root, f"cannot write here ({error.strerror})") from error
        return cls(root)

    @classmethod
    def here(cls) -> Project | None:
        """The project whose top folder is the working directory, if it is one."""
        return cls(Path()) if Path(PIPELINE).is_file() else None

    def pipeline(self) -> Pipeline:
        """The graph as it is on disk now."""
        return read_pipeline(self.root / PIPELINE)

    @contextmanager
    def edit(self) -> Iterator[Pipeline]:
        """Change the graph under RELION's lock: it is read when the lock is held and written if the block succeeds."""
        with project_lock(self.root):
            pipeline = self.pipeline()
            yield pipeline
            write_pipeline(self.root / PIPELINE, pipeline)
            (self.root / ".pipeline_has_changed").touch()  # an open RELION window looks for it

    def new_job(self, type_name: str, relion_number: int) -> str:
        """Give a new job its number and folder; returns its name, such as `Class2D/job008/`."""
        with self.edit() as pipeline:
            number = pipeline.counter
            while list(self.root.glob(f"*/job{number:03d}")):
                number += 1  # a folder that the graph has lost is never written into
            name = f"{type_name}/job{number:03d}/"
            (self.root / name).mkdir(parents=True)
            pipeline.counter = number + 1
            pipeline.processes[name] = Process(name, relion_number, Status.RUNNING)
        return name

    def enter(self, process: str, inputs: dict[str, int], outputs: dict[str, int], status: Status) -> None:
        """Enter what `process` reads and makes (file → node type) and its status; copies of the graph go to the job's folder."""
        with self.edit() as pipeline:
            pipeline.processes[process].status = status
            for node, kind in inputs.items():
                pipeline.add_edge(node, kind, process, made=False)
            for node, kind in outputs.items():
                pipeline.add_edge(node, kind, process, made=True)
                marker = self.root / ".Nodes" / str(kind) / node
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
            write_pipeline(self.root / process / PIPELINE, pipeline)
            write_pipeline(self.root / process / "job_pipeline.star", _neighbourhood(pipeline, process))

    def set_alias(self, process: str, alias: str) -> None:
        """Give a job a second name, a symbolic link beside its folder; another job that had it loses it."""
        if not alias or "/" in alias or any(c.isspace() for c in alias) or alias.startswith("job"):
            raise InputError(f"alias {alias!r}", "not usable as an alias", "Letters, digits, _ and -; not starting with 'job'")
        full = f"{process.split('/')[0]}/{alias}/"
        link = self.root / full.rstrip("/")
        if link.exists() and not link.is_symlink():
            raise InputError(link, "exists and is not an alias")
        with self.edit() as pipeline:
            for other in pipeline.processes.values():
                other.alias = None if other.alias == full else other.alias
            old = pipeline.processes[process].alias
            if old and old != full:
                (self.root / old.rstrip("/")).unlink(missing_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / process.rstrip("/"))
            pipeline.processes[process].alias = full

    def find(self, text: str) -> str:
        """Name of the job that `text` means: `8`, `job008`, `Class2D/job008`, or an alias. Raises InputError if none does."""
        pipeline = self.pipeline()
        wanted = text.rstrip("/")
        number = wanted.removeprefix("job")
        for process in pipeline.processes.values():
            names = {process.name.rstrip("/"), process.name.rstrip("/").split("/")[-1]}
            if process.alias:
                names |= {process.alias.rstrip("/"), process.alias.rstrip("/").split("/")[-1]}
            if wanted in names or (number.isdigit() and f"job{int(number):03d}" in names):
                return process.name
        raise InputError(text, f"no such job in project {self.root.resolve()}", "See: verglas stats")


def _neighbourhood(pipeline: Pipeline, process: str) -> Pipeline:
    """The job's own part of the graph, as RELION keeps it in `job_pipeline.star`."""
    inputs = [edge for edge in pipeline.inputs if edge[1] == process]
    outputs = [edge for edge in pipeline.outputs if edge[0] == process]
    names = {node for node, _ in inputs} | {node for _, node in outputs}
    nodes = {node: kind for node, kind in pipeline.nodes.items() if node in names}
    return Pipeline(pipeline.counter, {process: pipeline.processes[process]}, nodes, inputs, outputs)
