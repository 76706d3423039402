"""Objects as the world ships them: stripped, linked, with everything in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bpfunit import NotFoundError, Object, ip4, port

from ..objects import compiled, stripped

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
HEADER = Path(__file__).parent / "bpf" / "sized.h"
PLACES = {"places": ("sized_key", "sized_value")}


def test_stripped_object_gets_its_types_from_a_header(bpf_load: Load) -> None:
    obj = bpf_load(stripped(compiled("sized")), types=HEADER, map_types=PLACES)
    obj.maps.places[ip4("10.0.0.1")] = {"address": ip4("10.0.0.9"), "ports": [0, port(99)]}
    assert obj.programs.go.run("10.0.0.1:80").dst == "10.0.0.9:99"


def test_stripped_object_gets_its_types_from_the_object_before(bpf_load: Load) -> None:
    obj = bpf_load(stripped(compiled("sized")), types=compiled("sized"), map_types=PLACES)
    assert obj.types.sized_value(kind=1).kind == 1


def test_stripped_object_without_types_says_what_would_give_them(bpf_load: Load) -> None:
    with pytest.raises(NotFoundError, match=r"(?s)no 'sized_key'.*--bpf-types FILE"):
        bpf_load(stripped(compiled("sized")), map_types=PLACES)
