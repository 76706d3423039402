"""The kernel catalogue: what the real one says, and what a wrong one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kernels_archive import catalogue_text

from bpfunit._arch import ARCHITECTURES, native
from bpfunit.kernels import CatalogueError, load_catalogue
from bpfunit.kernels.catalogue import split_spec

pytestmark = pytest.mark.host

GOOD = catalogue_text(Path("/keyring"), "6.12.5-amd64 6.12.5-1 headers", "6.16.3-amd64 6.16.3-1")


@pytest.fixture
def write(tmp_path):
    def write_catalogue(text: str) -> Path:
        path = tmp_path / "kernels.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_catalogue


def test_the_catalogue_that_ships_has_series_with_headers_and_without():
    catalogue = load_catalogue()
    with_headers = [entry for entry in catalogue.usable if entry.headers]
    assert with_headers
    assert [entry for entry in catalogue.usable if not entry.headers]
    assert all(entry.root for entry in with_headers)


@pytest.mark.parametrize("path", ["tools/test", "Makefile", ".github/workflows/matrix.yml"])
def test_no_list_of_kernels_is_kept_beside_the_catalogue(path):
    """An entry more is tested without an edit elsewhere; one kernel may be named, as a default."""
    text = (Path(__file__).parents[2] / path).read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    named = {
        e.series for e in load_catalogue().entries if re.search(rf"{re.escape(e.series)}\b", code)
    }
    assert len(named) <= 1, named


def test_the_catalogue_that_ships_is_sorted_and_says_why_it_refuses():
    catalogue = load_catalogue()
    numbers = [tuple(map(int, entry.series.split("."))) for entry in catalogue.entries]
    assert numbers == sorted(numbers)
    refused = [entry for entry in catalogue.entries if entry.refused]
    usable = [entry for one in ARCHITECTURES.values() for entry in catalogue.usable_on(one)]
    assert refused == [entry for entry in catalogue.entries if entry not in usable]
    assert all(len(entry.refused) > 20 for entry in refused)


@pytest.mark.parametrize("spec", ["6.12", "6.12.5-amd64", "6.12.5"])
def test_a_kernel_answers_to_series_release_and_version(write, spec):
    entry = load_catalogue(write(GOOD)).find(spec)
    assert entry is not None
    assert entry.release == "6.12.5-amd64"


@pytest.mark.parametrize("spec", ["6.12/arm64", "6.12/aarch64", "6.12.5+x/arm64", "6.12.5+x-arm64"])
def test_another_architecture_is_named_behind_the_series(write, spec):
    both = catalogue_text(Path("/keyring"), "6.12.5-amd64 6.12.5-1", "6.12.5+x-arm64 6.12.5-1")
    catalogue = load_catalogue(write(both))
    native_entry, arm64_entry = catalogue.entries
    assert catalogue.find(spec) == arm64_entry
    assert catalogue.find("6.12") == catalogue.find("6.12/amd64") == native_entry
    assert [entry.name for entry in catalogue.usable] == ["6.12"]


def test_what_is_no_architecture_is_part_of_a_path():
    for text in ("6.12/boot", "./6.12/arm64", "all/of/them"):
        assert split_spec(text) == (text, native())
    assert split_spec("all/arm64") == ("all", ARCHITECTURES["aarch64"])


@pytest.mark.parametrize("spec", ["6.1", "6.12.", "6.12.6", "6", "6.12/arm64", ""])
def test_a_kernel_does_not_answer_to_other_names(write, spec):
    assert load_catalogue(write(GOOD)).find(spec) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[archive]", "[archive", "not valid TOML"),
        ('series = "6.12"', 'series = "6"', r"kernel number 1: series: expected a string like"),
        ('series = "6.12"\n', "", "kernel number 1: series: expected a string, found nothing"),
        ('series = "6.16"', 'series = "6.12"', "expected a release of the series 6.12"),
        ('release = "6.12.5-amd64"', "release = 6", "kernel 6.12: release: expected a string"),
        ('suites = ["test"]\nheaders', 'suites = ["sid"]\nheaders', r"some of \['test'\]"),
        ('suites = ["test"]\nheaders', 'suites = ["test", 1]\nheaders', "a list of strings"),
        ("headers = true", 'headers = true\narchitecture = "vax"', r"one of \['amd64', 'arm64'"),
        ("headers = true", 'headers = "yes"', "headers: expected true or false, found 'yes'"),
        ('root = "small"', 'root = "big"', r"root: expected one of \['small'\], found 'big'"),
        ('version = "6.12.5-1"', 'versoin = "6.12.5-1"', "kernel 6.12: versoin: expected one of"),
        ('drop = ["sound"]', "drop = 1", "archive: drop: expected a list of strings, found 1"),
        ("[[kernel]]", "[kernel]", r"kernel: expected an array of tables|not valid TOML"),
    ],
)
def test_a_wrong_catalogue_is_told_where_and_what(write, old, new, message):
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(CatalogueError, match=message) as error:
        load_catalogue(path)
    assert str(error.value).startswith(f"read kernel catalogue: {path}: ")


def test_a_series_that_is_there_twice_is_refused(write):
    twice = GOOD + GOOD[GOOD.index("[[kernel]]") : GOOD.rindex("# a comment")]
    with pytest.raises(CatalogueError, match=r"series '6\.12' is there twice"):
        load_catalogue(write(twice))


def test_a_catalogue_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CatalogueError, match=r"gone\.toml: No such file"):
        load_catalogue(tmp_path / "gone.toml")


def test_a_changed_catalogue_is_read_again(write):
    path = write(GOOD)
    assert load_catalogue(path).find("6.16") is not None
    write(GOOD.replace("6.16", "6.17"))
    assert load_catalogue(path).find("6.16") is None
