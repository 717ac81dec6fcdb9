"""Recipe, Goal, Base and Machine; recipe files; `subcompress init`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import subcompress
from subcompress import Base, Goal, Machine, Recipe, SubcompressError
from subcompress.training import options as of
from subcompress.training import recipe_file
from subcompress.training.options import options_of
from subcompress_cli import main
from subcompress_models import MODELS

FAST = {"epochs": 1, "batch_size": 64, "threads": 1}


def run(*arguments: str):
    return CliRunner().invoke(main, arguments)


# --- the objects ---


def test_objects_and_keywords_say_the_same():
    objects = options_of(
        "fit",
        {},
        recipe=Recipe(epochs=3, optimizer="eigen"),
        goal=Goal(bytes=400),
        base=Base(source="b.safetensors", act_on="norms"),
        machine=Machine(threads=2),
    )
    keywords = {"epochs": 3, "optimizer": "eigen", "bytes": 400, "act_on": "norms", "threads": 2}
    assert options_of("fit", keywords, base="b.safetensors") == objects


def test_former_names_of_keywords_work():
    old = options_of("fit", {"optimiser": "eigen", "minimise": True, "within": 400})
    assert old == options_of("fit", {"optimizer": "eigen", "minimize": True, "bytes": 400})
    with pytest.raises(SubcompressError, match=r"^fit\(\) was given within and bytes, which are one option[^\n]*$"):
        options_of("fit", {"within": 400, "bytes": 300})


def test_a_keyword_changes_an_object():
    found = options_of("fit", {"d": 50, "steps": 7}, recipe=Recipe(epochs=3, seed=4), goal=Goal(target=0.9, seeds=2))
    assert (found.recipe, found.goal) == (Recipe(steps=7, seed=4), Goal(d=50, seeds=2))


@pytest.mark.parametrize(
    ("keywords", "objects", "words"),
    [
        ({"epoch": 3}, {}, r"^fit\(\) has no option 'epoch': did you mean epochs\?$"),
        ({"name": "x"}, {}, r"^fit\(\) has no option 'name'"),
        ({}, {"goal": Recipe()}, r"^goal must be a subcompress.Goal; got Recipe$"),
        ({}, {"recipe": {"epochs": 3}}, r"^recipe must be a subcompress.Recipe; got dict$"),
    ],
)
def test_what_there_is_not_is_refused(keywords, objects, words):
    with pytest.raises(SubcompressError, match=words):
        options_of("fit", keywords, **objects)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"d": "20"}, "d must be a whole number; got '20'"),
        ({"epochs": 1.5}, "epochs must be a whole number; got 1.5"),
        ({"seeds": True}, "seeds must be a whole number; got True"),
        ({"jobs": None}, "jobs must be a whole number; got None"),
        ({"lr": "1e-3"}, "lr must be a number; got '1e-3'"),
        ({"max_fits": [3]}, r"max_fits must be a number; got \[3\]"),
        ({"minimize": "no"}, "minimize must be true or false; got 'no'"),
        ({"recipe": Recipe(batch_size="x\ny")}, r"batch_size must be a whole number; got 'x\\ny'"),
    ],
)
def test_numbers_are_checked(keywords, words):
    objects = {name: keywords.pop(name) for name in ("recipe",) if name in keywords}
    with pytest.raises(SubcompressError, match=f"^{words}$"):
        options_of("fit", keywords, **objects)


def test_numbers_of_numpy_are_numbers():
    given = {"d": np.int64(20), "lr": np.float32(0.5), "max_fits": 6, "min_accuracy": np.float64(0.5)}
    assert options_of("fit", given).goal.max_fits == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ds": 20}, "ds must be a list of numbers; got 20"),
        ({"ds": ["20"]}, "each of ds must be a whole number; got '20'"),
        ({"ds": []}, r"--d must be a list of dimensions of at least 1, such as 100,200,400; got \[\]"),
        ({"ds": [3], "thresholds": "0.9"}, "thresholds must be a list of numbers; got '0.9'"),
        ({"ds": [3], "repeats": 1.5}, "repeats must be a whole number; got 1.5"),
        ({"ds": [3], "jobs": 0}, "--jobs must be between 1 and 256; got 0"),
    ],
)
def test_numbers_of_a_measurement_are_checked(options, words, tmp_path):
    with pytest.raises(SubcompressError, match=f"^{words}$"):
        subcompress.measure_dimension(None, None, tmp_path, **options)


def test_shortcuts_name_every_field():
    names = {f.name for kind in (Recipe, Goal, Machine) for f in dataclasses.fields(kind)}
    assert of.Shortcuts.__annotations__.keys() == names | of.FORMER.keys() | {"base_name", "act_on", "new"}


def test_options_need_no_torch():
    code = "import sys; import subcompress; subcompress.Recipe; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- recipe files ---


def test_the_recipe_of_a_run_gives_the_same_file(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    found = run(
        "fit", "--model", "lenet", "--data", "digits", "--d", "40", "-o", str(first), *flags({**FAST, "epochs": 2})
    )
    assert found.exit_code == 0, found.output
    found = run("fit", "--recipe", str(first / "recipe.toml"), "-o", str(again))
    assert found.exit_code == 0, found.output
    assert (first / "record.safetensors").read_bytes() == (again / "record.safetensors").read_bytes()
    assert sections(first) == sections(again)


def test_the_recipe_of_a_run_works_from_python(tmp_path, digits):
    recipe = Recipe(**{name: FAST[name] for name in ("epochs", "batch_size")})
    one = subcompress.fit(
        MODELS["lenet"], digits, tmp_path / "a", recipe=recipe, goal=Goal(d=40), machine=Machine(threads=1)
    )
    two = subcompress.fit(MODELS["lenet"], digits, tmp_path / "b", recipe=tmp_path / "a" / "recipe.toml")
    assert (one.validation, one.bytes) == (two.validation, two.bytes)
    assert recipe_file.read(tmp_path / "a" / "recipe.toml").options == options_of("fit", {**FAST, "d": 40})


def test_the_command_line_replaces_what_the_file_says(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[network]\nmodel = "lenet"\ndata = "digits"\n[goal]\nmin_accuracy = 0.9\nseeds = 2\n'
        "[recipe]\nepochs = 9\nbatch_size = 64\n[machine]\nthreads = 1\n"
    )
    run("fit", "--recipe", str(path), "--d", "40", "--steps", "3", "-o", str(tmp_path / "run"))
    options = recipe_file.read(tmp_path / "run" / "recipe.toml").options
    assert options == options_of("fit", {"d": 40, "steps": 3, "batch_size": 64, "threads": 1, "seeds": 2})


def test_what_toml_cannot_hold_is_named(tmp_path):
    given = options_of("fit", {"d": 3, "loss": lambda module, batch: 0, "new": ("head.*",)}, base="b.safetensors")
    recipe_file.write(tmp_path, given, {}, threads=1)
    text = (tmp_path / "recipe.toml").read_text()
    assert "# loss is an object of Python: give it again.\n" in text
    assert recipe_file.read(tmp_path / "recipe.toml").options.base == Base(source="b.safetensors", new=("head.*",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[recipe]\nepoch = 3", r"\[recipe\] has no option epoch: did you mean epochs\?$"),
        ("[recipes]\nepochs = 3", r"the sections of a recipe file are [^\n]*; got recipes: did you mean recipe\?$"),
        ("[recipe]\nepochs = 'x'", r"\[recipe\] epochs must be a whole number; got 'x'$"),
        ("[recipe]\nepochs = 1.5", r"\[recipe\] epochs must be a whole number; got 1.5$"),
        ("[recipe]\nlr = true", r"\[recipe\] lr must be a number; got True$"),
        ("[recipe]\nloss = 3", r"\[recipe\] loss must be text; got 3$"),
        ("[recipe]\nminimize = 1", r"\[recipe\] minimize must be true or false; got 1$"),
        ("[recipe]\ndrop = 'x'", r"\[recipe\] drop must be a list of texts; got 'x'$"),
        ("[goal]\nbaseline = []", r"\[goal\] baseline must be a number or text; got \[\]$"),
        ("[goal]\nd = 3\nd = 4", r"it is not valid TOML \(Cannot overwrite a value"),
        ("goal = 3", r"goal is a section: write \[goal\] on its own line$"),
        ("x = " + "[" * 5_000, r"not valid TOML"),
        ("\xff", r"given \S+$|not valid TOML"),
        ("#" * 70_000, r"more than 65536 bytes"),
    ],
)
def test_a_damaged_recipe_file_is_one_line(tmp_path, text, words):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SubcompressError, match=words) as error:
        recipe_file.read(path)
    assert "\n" not in str(error.value)
    found = run("fit", "--recipe", str(path), "-o", str(tmp_path / "run"))
    assert (found.exit_code, found.output) == (1, f"error: {error.value}\n")


def test_types_cover_every_field():
    names = {f.name for kind in recipe_file.SECTIONS.values() for f in dataclasses.fields(kind)}
    assert recipe_file.TYPES.keys() < names


# --- init ---


def test_what_init_writes_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("init").output.endswith("next: subcompress fit --recipe recipe.toml -o run\n")
    found = run("fit", "--recipe", "recipe.toml", "--epochs", "1", "-o", "run")
    assert found.exit_code == 0, found.output
    assert run("init").output == "error: mine.py already exists: move it away, or give another folder\n"


def test_what_init_shows_as_off_can_be_switched_on(tmp_path):
    run("init", str(tmp_path))
    lines = (tmp_path / "recipe.toml").read_text().splitlines()
    on = [line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines]
    (tmp_path / "recipe.toml").write_text("\n".join(on))
    found = recipe_file.fields_of(tmp_path / "recipe.toml")
    assert len(found) == 25


def flags(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def sections(folder) -> str:
    """The file without its header, which names the folder."""
    return (folder / "recipe.toml").read_text().partition("\n\n")[2]
