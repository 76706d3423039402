"""What happens to tests that need a kernel when none was chosen: they fail, and say what to do."""

from __future__ import annotations

import pytest

from bpfunit.errors import BpfunitError


class KernelNeededError(BpfunitError):
    """A test that needs a kernel of its own was started on the host."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to run a test marked ``guest`` on the host."""
    if item.get_closest_marker("guest") is not None:
        error = KernelNeededError(
            "run a test marked guest: it needs a kernel of its own; "
            "give --kernel 6.12 (`bpfunit kernels` lists what there is)"
        )
        pytest.fail(str(error), pytrace=False)
