"""A field of a recipe or plan tells itself: its flag, its help and its words follow from where it is defined."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from lottery_nb.cli import fields_from, flag_of, make_parser, names_of, recipe_from
from lottery_nb.core import canonical, data, LotteryError, setting
from lottery_nb.pruning.schedules import SCHEDULES
from lottery_nb.plans.find import FindPlan
from lottery_nb.engine.recipes import OPTIMIZERS, Recipe
from lottery_nb.plans.transfer import TransferPlan

PLANS = (Recipe, FindPlan, TransferPlan)
NESTED = {"recipe", "tickets"}  # fields whose parts have flags, or that are a command's folder


@pytest.mark.parametrize("cls", PLANS)
def test_help_says_what_each_field_means(cls):
    assert all(f.metadata["help"] and f"{f.name}: {f.metadata['help']}" in cls.__doc__ for f in fields(cls))


@pytest.mark.parametrize(
    "command, classes", [("find", (FindPlan, Recipe)), ("transfer", (TransferPlan, Recipe))]
)
def test_every_field_has_a_flag(command, classes, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "9999")
    with pytest.raises(SystemExit):
        make_parser().parse_args([command, "--help"])
    said = capsys.readouterr().out
    for f in (f for cls in classes for f in fields(cls) if f.name not in NESTED):
        assert f"--{flag_of(f)} " in said or f"--{flag_of(f)}," in said
        assert all(name.replace(" ", "-") in said for name in names_of(f))
    tables = {flag: lines for flag, *lines in (part.splitlines() for part in said.split("\nnames for ")[1:])}
    for f in (
        f
        for cls in classes
        for f in fields(cls)
        if f.name not in NESTED and f.metadata["registry"] is not None
    ):
        registry, lines = f.metadata["registry"], tables[f"--{flag_of(f)}:"]
        for name in registry:
            line = registry.line(name)
            assert len(line) > 5 and not line.endswith("."), (name, line)
            assert any(
                re.fullmatch(rf"  {re.escape(name.replace(' ', '-'))} +{re.escape(line)}", row)
                for row in lines
            ), (name, line)
    if command == "find":
        schedules = "\n".join(tables["--schedule:"])
        assert all(SCHEDULES.line(name) in schedules for name in SCHEDULES if name != "listed")


GIVEN = {
    Recipe: (
        [
            "--optimizer",
            "adam",
            "--lr",
            "0.2",
            "--steps",
            "9",
            "--batch-size",
            "7",
            "--lr-schedule",
            "step",
            "--warmup",
            "0.1",
            "--drops",
            "0.5:0.1,0.8:0.02",
            "--momentum",
            "0.5",
            "--nesterov",
            "--betas",
            "0.8,0.9",
            "--eps",
            "1e-6",
            "--weight-decay",
            "0.1",
            "--augment",
            "flip",
            "--precision",
            "fp32",
            "--keep",
            "best-loss",
            "--patience",
            "2",
            "--quirks",
            "evaluation-mode",
            "--decay",
            "matrices",
            "--clip",
            "0.5",
            "--label-smoothing",
            "0.1",
        ],
        Recipe(
            "adam",
            0.2,
            10,
            9,
            7,
            "step",
            0.1,
            ((0.5, 0.1), (0.8, 0.02)),
            0.5,
            True,
            (0.8, 0.9),
            1e-6,
            0.1,
            ("flip",),
            "fp32",
            "best loss",
            2,
            ("evaluation mode",),
            "matrices",
            0.5,
            0.1,
        ),
    ),
    FindPlan: (
        [
            "--source",
            "digits[0,2]",
            "--network",
            "conv-2",
            "--width",
            "0.5",
            "--rewind",
            "step 3",
            "--retrain",
            "fine-tuning",
            "--seeds",
            "3,5",
            "--criterion",
            "magnitude-increase",
            "--scope",
            "erk",
            "--score-at",
            "start",
            "--prunable",
            "a.weight,b.weight",
            "--layer-fractions",
            "head=0.1,fc1=0.2",
            "--controls",
            "random-mask",
            "--floor",
            "0.5",
            "--weights",
            "a, b.safetensors",
            "--rates",
            "0.01,0.3",
            "--margin",
            "0.01",
        ],
        dict(
            source="digits[0,2]",
            network="conv-2",
            width=0.5,
            rewind="step 3",
            retrain="fine-tuning",
            seeds=(3, 5),
            criterion="magnitude increase",
            scope="erk",
            score_at="start",
            prunable=("a.weight", "b.weight"),
            layer_fractions={"head": 0.1, "fc1": 0.2},
            controls=("random mask",),
            floor=0.5,
            weights="a, b.safetensors",
            rates=(0.01, 0.3),
            margin=0.01,
        ),
    ),
}


def test_every_flag_of_a_recipe_is_read():
    flags, want = GIVEN[Recipe]
    assert recipe_from(make_parser().parse_args(["find", *flags]), Recipe()) == want
    assert set(fields_from(make_parser().parse_args(["find", *flags]), Recipe)) == {
        f.name for f in fields(Recipe)
    } - {"epochs"}


def test_every_flag_of_a_search_is_read():
    flags, want = GIVEN[FindPlan]
    found = fields_from(make_parser().parse_args(["find", *flags]), FindPlan)
    assert {name: value for name, value in found.items() if name != "schedule"} == want
    assert set(want) == {f.name for f in fields(FindPlan)} - NESTED - {"schedule"}


def test_a_transfer_is_read():
    line = [
        "transfer",
        "x",
        "--targets",
        "digits[0,2],mnist",
        "--start",
        "fresh",
        "--norm",
        "updated",
        "--head",
        "source-size",
        "--normalise",
        "source",
        "--rates",
        "0.3",
        "--margin",
        "0.02",
        "--controls",
        "none",
    ]
    want = dict(
        targets=("digits[0,2]", "mnist"),
        start=("fresh",),
        norm="updated",
        head="source size",
        normalise="source",
        rates=(0.3,),
        margin=0.02,
        controls=(),
    )
    assert fields_from(make_parser().parse_args(line), TransferPlan) == want


def test_none_is_the_default_that_says_so():
    args = make_parser().parse_args(["find", "--prunable", "none", "--rates", "none", "--augment", "none"])
    assert (
        fields_from(args, FindPlan)["prunable"] is None
        and fields_from(args, FindPlan)["rates"] == () == fields_from(args, Recipe)["augment"]
    )
    with pytest.raises(LotteryError, match="--rates holds 'much'"):
        fields_from(make_parser().parse_args(["find", "--rates", "much"]), FindPlan)


def test_metadata_is_no_part_of_the_data():
    plain = Recipe()
    assert canonical(plain) == canonical(Recipe(quirks=())) and "help" not in canonical(FindPlan())


def test_a_record_of_somebody_else_tells_its_fields():
    @data
    class Oven:
        "Bakes."

        heat: float = setting("degrees", default=180.0)
        plain: int = 3

    assert Oven().heat == 180 and Oven.__doc__ == "Bakes.\n\nheat: degrees"


@pytest.mark.parametrize(
    "code",
    [
        'Recipe(optimizer="adamm")',
        'Recipe(keep="bst loss")',
        'FindPlan(score_at="end")',
        'TransferPlan((), (), body="thaw")',
    ],
)
def test_a_type_checker_finds_a_wrong_word(code, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        f"from lottery_nb.plans.find import FindPlan\nfrom lottery_nb.engine.recipes import Recipe\n"
        f"from lottery_nb.plans.transfer import TransferPlan\n{code}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", str(tmp_path / "use.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "use.py:4: error" in done.stdout and "Literal" in done.stdout


def test_the_words_are_those_of_the_type():
    assert OPTIMIZERS == ("sgd", "adam", "adamw") == names_of(fields(Recipe)[0])


def test_the_panel_takes_help_and_words_from_the_fields():
    panel = pytest.importorskip("lottery_nb.panel")
    shown = {name: field for section in panel.find_fields().values() for name, field in section.items()}
    for f in (f for cls in (Recipe, FindPlan) for f in fields(cls)):
        name = {"schedule": "lr_schedule" if f.metadata["flag"] else "kind"}.get(f.name, f.name)
        if name not in shown or name in ("source", "network", "rewind"):
            continue
        assert shown[name].help == f.metadata["help"].replace("None:", "empty:")
        if names_of(f) and name != "controls":
            assert tuple(getattr(shown[name].control, "options", names_of(f))) == names_of(f)
