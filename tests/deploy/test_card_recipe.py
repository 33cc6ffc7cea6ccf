"""The recipe in a model card makes the student again, and says nothing of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dskd.compare.grid import plan
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.deploy.card_recipe import FILES, card_recipe, public_model, recipe_section

KD = ["method={name: kd}", "teacher={name: resnet20}"]


def loaded(*overrides: str) -> Recipe:
    return recipe.load("digits", [*KD, *overrides])


def sentence(of: Recipe) -> str:
    return recipe_section(of).partition("<details>")[0]


def test_every_path_of_a_recipe_has_a_word_or_is_left_out() -> None:
    left_out = {("data", "cache_dir"), ("teacher", "cache_dir")}
    assert {*FILES} == {*Recipe.PATHS} - left_out


def test_a_recipe_without_files_needs_nothing() -> None:
    assert sentence(loaded("train.epochs=3", "train.batch_size=32", "seed=7")).strip() == (
        "3 epochs with 32 images in a step, and seed 7. Save the recipe as `recipe.yaml`. Then "
        "`dskd distill recipe.yaml` trains such a student again."
    )


def test_the_teacher_of_a_comparison_must_be_supplied(tmp_path: Path) -> None:
    grid = plan(loaded(), ["ce", "kd"], tmp_path / "compared", seeds=1)
    by_labels, taught = (grid.recipe_of(variant, 0) for variant in grid.variants)
    assert card_recipe(taught)["teacher"]["checkpoint"] == "student.safetensors"
    assert (
        "It names what does not come with this card, by the last part of each path: the weights of "
        "the teacher `student.safetensors` (`teacher.checkpoint`). Supply this, and write your own "
        "paths into the recipe. Then `dskd distill recipe.yaml`"
    ) in sentence(taught)
    assert "teacher" not in card_recipe(by_labels)
    assert "Save the recipe as `recipe.yaml`. Then `dskd train recipe.yaml`" in sentence(by_labels)


def test_a_method_without_a_teacher_keeps_its_command() -> None:
    alone = loaded("method={name: dsn}", "teacher=null")
    assert "`dskd distill recipe.yaml`" in sentence(alone)
    again = recipe.resolve(card_recipe(alone), Path("runs"))
    assert (again.method, again.teacher) == (alone.method, None)


def test_every_file_is_listed_with_its_setting() -> None:
    found = loaded(
        "data.root=/home/me/photos",
        "data.unlabelled=/home/me/more/",
        "student.pretrained=/home/me/first.pt",
        "teacher.checkpoint=/home/me/large.pt",
        "teacher.options={config: 'C:\\Users\\me\\net.json', url: 'https://me:secret@a/b.pt?key=1'}",
    )
    for words in (
        "the images `photos` (`data.root`), ",
        "the images without labels `more` (`data.unlabelled`), ",
        "the weights that the student starts from `first.pt` (`student.pretrained`), ",
        "the weights of the teacher `large.pt` (`teacher.checkpoint`), ",
        "`net.json` (`teacher.options.config`) and `b.pt` (`teacher.options.url`).",
    ):
        assert words in sentence(found), words
    text = recipe_section(found)
    assert not [word for word in ("/home", "Users", "secret", "key=1") if word in text]


def test_modules_of_the_user_are_listed_and_allowed() -> None:
    own = loaded("student.name=mine.nets:small")
    assert "the Python module `mine.nets` (`student.name`)" in sentence(own)
    assert "`dskd distill recipe.yaml --allow-code`" in sentence(own)


def test_objects_of_python_get_no_command() -> None:
    given = loaded("teacher.name=<Net>", "data.unlabelled=/home/me/more")
    assert "names in angle brackets stand for objects" in sentence(given)
    assert "`more` (`data.unlabelled`)" in sentence(given)
    assert "dskd distill" not in sentence(given)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"hf/C:\Users\me\teacher", "hf/teacher"),
        (r"hf/\\server\share\teacher", "hf/teacher"),
        ("hf//home/me/teacher/", "hf/teacher"),
        ("hf/timm/resnet18.a1_in1k", "hf/timm/resnet18.a1_in1k"),
        ("timm/resnet18", "timm/resnet18"),
        ("mine.nets:small", "mine.nets:small"),
    ],
)
def test_the_folder_of_a_model_is_its_last_part(name: str, shown: str) -> None:
    assert public_model(name) == shown
    teacher = loaded().teacher
    assert teacher is not None
    found = loaded().changed(teacher=teacher.model_copy(update={"name": name}))
    assert card_recipe(found)["teacher"]["name"] == shown
    assert ("the folder of the teacher `teacher` (`teacher.name`)" in sentence(found)) == (
        name != shown
    )


@pytest.mark.parametrize("root", [r"C:\Users\me\photos", r"\\server\share\photos", "/me/photos/"])
def test_paths_of_any_system_are_shortened(root: str) -> None:
    found = loaded()
    found = found.changed(data=found.data.model_copy(update={"root": Path(root)}))
    assert card_recipe(found)["data"]["root"] == "photos"
    assert "the images `photos` (`data.root`)" in sentence(found)


def test_shards_in_the_folder_keep_their_names() -> None:
    shards = "data.shards=['train/{a/0,b}.tar', '/home/me/val-*.tar']"
    inside = loaded("data.name=webdataset", "data.root=/home/me/tars", shards)
    assert card_recipe(inside)["data"]["shards"] == ["train/{a/0,b}.tar", "val-*.tar"]
    assert "the images `tars` (`data.root`) and the shards `val-*.tar`" in sentence(inside)


def test_values_that_are_no_paths_stay() -> None:
    found = loaded(
        "data.classes=['/m/0k4j', '/m/01g317']",
        "student.options={drop_rate: null, act: relu, sizes: [1, null]}",
    )
    card = card_recipe(found)
    assert card["data"]["classes"] == ["/m/0k4j", "/m/01g317"]
    assert card["student"]["options"] == {
        "drop_rate": None,
        "act": "relu",
        "sizes": [1, None],
    }
    assert "checkpoint" not in card["student"]


def test_a_setting_that_undoes_one_of_a_set_stays() -> None:
    found = loaded("data.augment=imagenet", "data.crop_scale=null")
    again = yaml.safe_load(yaml.safe_dump(card_recipe(found)))
    assert recipe.resolve(again, Path("runs")).data.crop_scale is None
