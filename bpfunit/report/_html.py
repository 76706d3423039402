"""The run as one HTML file that needs neither a network nor another file."""

from __future__ import annotations

import itertools
from pathlib import Path

from bpfunit.report._format import duration
from bpfunit.report._model import Run

_TEMPLATES = Path(__file__).parent / "templates"


def render_html(run: Run) -> str:
    """Return the report of a run as an HTML document.

    Args:
        run: what to show; its links are taken as they are.
    """
    import jinja2  # not at the top: every guest imports this package, and renders nothing

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["duration"] = duration
    rows = run.rows()
    template = environment.get_template("run.html.j2")
    return template.render(
        run=run,
        rows=rows,
        bad=[row for row in rows if row.worst.is_bad],
        differing=[row for row in rows if row.differs],
        files=[(file, list(group)) for file, group in itertools.groupby(rows, lambda r: r.file)],
    )


def write_html(run: Run, path: Path) -> None:
    """Write the report of a run to a file; its directory is made when it is not there.

    Args:
        run: what to show.
        path: the file, replaced when it exists.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(run), encoding="utf-8")
