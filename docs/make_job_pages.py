"""Write one page a job type into docs/jobs/, from the declarations: `make docs`."""

from pathlib import Path

from verglas.jobs.declaration import JobType
from verglas.jobs.registry import MODULES, job_type


def page(job: JobType) -> str:
    """The Markdown page of one job type."""
    lines = [f"# {job.name}", "", job.summary + ".", "", "```", *[line.strip() for line in job.examples.strip().splitlines()], "```", ""]
    lines += ["| input | holds | |", "|---|---|---|"]
    for spec in job.inputs:
        lines.append(f"| `--{spec.name.replace('_', '-')}` | {spec.help} | {'required' if spec.required else 'optional'} |")
    lines += ["", "| parameter | default | meaning | RELION |", "|---|---|---|---|"]
    for name, field in job.params.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = "required" if field.is_required() else f"`{field.default}`"
        unit = f" ({extra['unit']})" if extra.get("unit") else ""
        lines.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description}{unit} | {extra.get('flag') or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pages and an index."""
    folder = Path(__file__).parent / "jobs"
    folder.mkdir(exist_ok=True)
    for name in MODULES:
        (folder / f"{name}.md").write_text(page(job_type(name)))
    index = "\n".join(f"- [{name}]({name}.md): {job_type(name).summary}" for name in MODULES)
    (folder / "README.md").write_text(f"# Job types\n\n{index}\n")


if __name__ == "__main__":
    main()
