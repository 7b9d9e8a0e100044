"""`default_pipeline.star`: the jobs of a project, the files they exchange, and who made and who read each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from verglas.errors import FileFormatError

PIPELINE = "default_pipeline.star"


class Status(IntEnum):
    """RELION 3.1's process status."""

    RUNNING = 0
    SCHEDULED = 1
    SUCCEEDED = 2
    FAILED = 3
    ABORTED = 4


@dataclass
class Process:
    """One job: `name` is its folder with a slash (`Class2D/job008/`), `alias` likewise or None."""

    name: str
    type: int
    status: Status
    alias: str | None = None


@dataclass
class Pipeline:
    """The graph. `counter` is the number of the next job; numbers are never used twice."""

    counter: int = 1
    processes: dict[str, Process] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)  # file → node type
    inputs: list[tuple[str, str]] = field(default_factory=list)  # file, process that reads it
    outputs: list[tuple[str, str]] = field(default_factory=list)  # process, file that it makes

    def producer(self, node: str) -> str | None:
        """Name of the process that makes file `node`, or None for a file from outside."""
        return next((process for process, made in self.outputs if made == node), None)

    def add_edge(self, node: str, node_type: int, process: str, *, made: bool) -> None:
        """Enter file `node` as made or read by `process`; entering it twice does no harm."""
        self.nodes.setdefault(node, node_type)
        edge = (process, node) if made else (node, process)
        edges = self.outputs if made else self.inputs
        if edge not in edges:
            edges.append(edge)


def read_pipeline(path: Path) -> Pipeline:
    """Read a `default_pipeline.star` of RELION 3.1. Raises FileFormatError for RELION 4 and later, whose types are names."""
    from verglas.io.star import read_star

    tables: Any = read_star(path)
    try:
        general = tables["pipeline_general"]
        pipeline = Pipeline(int(_single(general, "rlnPipeLineJobCounter")))
        labels = ("Name", "Alias", "Type", "Status")
        for name, alias, kind, status in _rows(tables, "pipeline_processes", *labels, prefix="rlnPipeLineProcess"):
            pipeline.processes[name] = Process(name, int(kind), Status(int(status)), None if alias == "None" else alias)
        for name, kind in _rows(tables, "pipeline_nodes", "Name", "Type", prefix="rlnPipeLineNode"):
            pipeline.nodes[name] = int(kind)
        pipeline.inputs = [(a, b) for a, b in _rows(tables, "pipeline_input_edges", "FromNode", "Process", prefix="rlnPipeLineEdge")]
        pipeline.outputs = [(a, b) for a, b in _rows(tables, "pipeline_output_edges", "Process", "ToNode", prefix="rlnPipeLineEdge")]
    except (KeyError, ValueError) as error:
        raise FileFormatError(path, f"not a project of RELION 3.1 ({error})", "RELION 4 and 5 projects are not read") from error
    return pipeline


def write_pipeline(path: Path, pipeline: Pipeline) -> None:
    """Write the graph whole or not at all, in RELION 3.1's layout; empty tables are left out."""
    from verglas.io.atomic import write_text

    processes = [(p.name, p.alias or "None", str(p.type), str(int(p.status))) for p in pipeline.processes.values()]
    nodes = [(name, str(kind)) for name, kind in pipeline.nodes.items()]
    parts = ["\n# version 30001\n\ndata_pipeline_general\n\n" + f"{'_rlnPipeLineJobCounter':<40}{pipeline.counter:>12}\n \n"]
    parts += _table("pipeline_processes", "rlnPipeLineProcess", ("Name", "Alias", "Type", "Status"), processes)
    parts += _table("pipeline_nodes", "rlnPipeLineNode", ("Name", "Type"), nodes)
    parts += _table("pipeline_input_edges", "rlnPipeLineEdge", ("FromNode", "Process"), pipeline.inputs)
    parts += _table("pipeline_output_edges", "rlnPipeLineEdge", ("Process", "ToNode"), pipeline.outputs)
    write_text(path, "".join(parts))


def _single(table: Any, label: str) -> str:
    """The value of a pair table, which some programs write as a list of one row."""
    return str(table[label] if isinstance(table, dict) else table[label].iloc[0])


def _rows(tables: Any, name: str, *labels: str, prefix: str) -> list[tuple[str, ...]]:
    if name not in tables:
        return []
    table = tables[name]
    columns = [[str(table[prefix + label])] if isinstance(table, dict) else [str(v) for v in table[prefix + label]] for label in labels]
    return list(zip(*columns, strict=True))


def _table(name: str, prefix: str, labels: tuple[str, ...], rows: list[Any]) -> list[str]:
    if not rows:
        return []
    head = f"\n# version 30001\n\ndata_{name}\n\nloop_ \n" + "".join(f"_{prefix}{label} #{i} \n" for i, label in enumerate(labels, 1))
    return [head, *(" ".join(f'"{v}"' if " " in v else v for v in row) + " \n" for row in rows), " \n"]
