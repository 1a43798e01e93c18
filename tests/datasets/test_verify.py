"""`puma datasets`: counts against what is published, missing, unreadable and surplus files, exit codes."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from puma_plugin.cli.datasets import main
from puma_plugin.datasets.benchmark import load_benchmark
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.few_shot import read_few_shot
from puma_plugin.datasets.image_folder import ImageFolder
from puma_plugin.datasets.unified_dataset import UnifiedDataset
from puma_plugin.datasets.verify import verify_datasets

FLOWERS = {"train": 3493, "test": 4696}


@pytest.fixture(scope="module")
def complete_flowers(tmp_path_factory, trees):
    """Flowers with the published number of images. Read only."""
    root = tmp_path_factory.mktemp("flowers")
    trees.flowers(root, **FLOWERS)
    return root


def _of(report, name):
    return next(part for part in report.datasets if part.name == name)


def test_catalogue_is_the_published_table():
    assert sum(facts.splits["train"].classes for facts in CATALOGUE.values()) == 15_952
    share = sum(CATALOGUE[n].splits["train"].classes for n in ("StanfordOnlineProducts", "InShop")) / 15_952
    assert round(share, 2) == 0.96
    for facts in CATALOGUE.values():
        images = [counts.images for counts in facts.splits.values()]
        assert None in images or sum(images) == facts.total
        assert facts.train_size[1] + facts.test_size[1] == facts.total
    assert CATALOGUE["StanfordDogs"].train_size == CATALOGUE["StanfordDogs"].test_size == (60, 10_290)
    assert CATALOGUE["InShop"].test_size == (3_985, 14_218 + 12_612)


def test_complete_dataset_is_ok(complete_flowers, capsys):
    report = verify_datasets(complete_flowers)
    flowers = _of(report, "Flowers102")
    assert report.ok
    assert flowers.ok
    assert {s: (c.classes, c.images) for s, c in flowers.splits.items()} == {"train": (51, 3493), "test": (51, 4696)}
    assert [part.name for part in report.datasets if part.found] == ["Flowers102"]
    assert main(["verify", str(complete_flowers)]) == 0
    out = capsys.readouterr().out
    assert "train   51 classes, 3,493 images" in out
    assert "ready: Flowers102; not there: CUB, Cars196" in out
    assert CATALOGUE["CUB"].source in out


def test_required_dataset_that_is_not_there(complete_flowers, capsys):
    assert main(["verify", str(complete_flowers), "--datasets", "Flowers102"]) == 0
    assert main(["verify", str(complete_flowers), "--datasets", "Flowers102", "CUB"]) == 1
    out = capsys.readouterr().out
    assert "MISSING Caltech-UCSD Birds" in out
    assert "ready: Flowers102; would fail: CUB" in out
    assert "tar xzf CUB_200_2011.tgz -C ROOT" in out


def test_nothing_there(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "ready: none; not there: CUB" in capsys.readouterr().out


def test_reduced_copies_are_told(benchmark_tree):
    report = verify_datasets(benchmark_tree.root)
    assert all(part.found for part in report.datasets)
    assert not any(part.missing or part.unreadable for part in report.datasets)
    cub = _of(report, "CUB")
    apart = "; figures of a run could not be compared with others'; if they shall be, unpack the archive again"
    assert cub.notes == [
        f"train: 200 images are listed, 5,864 are published{apart}",
        f"test: 200 images are listed, 5,924 are published{apart}",
    ]
    in_shop = _of(report, "InShop")
    assert list(in_shop.splits) == ["train", "query", "gallery"]
    assert in_shop.problems == [
        "train: 3 classes are listed, 3,997 are published; unpack the archive again, or train a reduced copy with "
        "--data.check_counts false"
    ]
    assert "query: 3 classes are listed, 3,985 are published" in in_shop.notes
    assert _of(report, "StanfordDogs").notes == [f"240 images are listed in all, 20,580 are published{apart}"]
    assert _of(report, "Cars196").layout == "original"
    assert all(part.surplus == [] for part in report.datasets)


@pytest.mark.parametrize("counts", ["true", "false"])
def test_what_is_ready_is_what_a_run_takes(benchmark_tree, capsys, counts):
    """It looks at numbers of classes, unless told not to, and never at numbers of images."""
    taken = []
    for name in CATALOGUE:
        with suppress(DatasetError):
            for split in ("train", "test"):
                load_benchmark(benchmark_tree.root, split, [name], check_counts=counts == "true")
            taken.append(name)
    failing = [name for name in CATALOGUE if name not in taken]
    assert failing == ([] if counts == "false" else ["StanfordOnlineProducts", "InShop"])
    code = main(["verify", str(benchmark_tree.root), "--data.check_counts", counts])
    out = capsys.readouterr().out
    assert code == (1 if failing else 0)
    summary = f"ready: {', '.join(taken)}" + (f"; would fail: {', '.join(failing)}" if failing else "")
    assert out.splitlines()[-1] == summary
    assert "note: train: 200 images are listed, 5,864 are published; figures of a run could not be compared" in out
    kind = "problem" if counts == "true" else "note"
    assert f"{kind}: train: 3 classes are listed, 3,997 are published; " in out


def test_reduced_copies_without_classes_to_tell_apart(tmp_path, trees):
    trees.cub(tmp_path, classes=101)
    cub = _of(verify_datasets(tmp_path, check_counts=False), "CUB")
    assert cub.problems == ["test: one class only, '101.Bird_101'; add classes, two are needed"]
    assert any(note.startswith("test: 1 classes are listed, 100 are published; figures") for note in cub.notes)
    trees.in_shop(tmp_path)
    path = tmp_path / "Inshop_Clothes/Eval/list_eval_partition.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "query" not in line))
    in_shop = _of(verify_datasets(tmp_path, check_counts=False), "InShop")
    assert in_shop.problems == ["query: no image is listed, so nothing would be searched for; unpack the archive again"]


def test_missing_unreadable_and_surplus(tmp_path, trees, capsys):
    truths = trees.flowers(tmp_path, **FLOWERS)
    base = tmp_path / "flowers"
    (base / truths[100].path).unlink()
    for place in (3, 8000):
        (base / truths[place].path).unlink()
        (base / truths[place].path).write_bytes(b"\xff\xd8\xff\xe0 cut")
    trees.write_jpeg(base / "jpg" / "image_09999.jpg", 5)
    trees.write_jpeg(base / "jpg" / "._image_00001.jpg", 5)

    quick = _of(verify_datasets(tmp_path), "Flowers102")
    assert [file.key for file in quick.missing] == [truths[100].path]
    assert quick.missing[0].path == str(base / truths[100].path)
    assert quick.unreadable == []
    assert quick.surplus == ["jpg/._image_00001.jpg", "jpg/image_09999.jpg"]
    assert not quick.ok

    report = tmp_path / "report.json"
    assert main(["verify", str(tmp_path), "--open-images", "--workers", "2", "--report", str(report)]) == 1
    out = capsys.readouterr().out
    assert "8,188 images opened" in out
    assert "missing: 1 image\n" in out
    assert "unreadable: 2 images" in out
    assert str(base / truths[8000].path) in out
    assert "in no list, never used: 2 images" in out
    assert "or train with --data.bad_images skip" in out
    content = json.loads(report.read_text())
    assert not content["ok"]
    flowers = next(part for part in content["datasets"] if part["name"] == "Flowers102")
    assert {item["key"] for item in flowers["unreadable"]} == {truths[3].path, truths[8000].path}
    assert flowers["splits"]["train"] == {
        "classes": 51,
        "images": 3493,
        "published_classes": 51,
        "published_images": 3493,
    }


def _advice(root, name):
    """What is said about a dataset that is not where it should be."""
    report = _of(verify_datasets(root), name)
    assert not report.ok
    return report.hint or " ".join(report.problems)


def test_a_root_too_high_or_too_low_is_told(tmp_path, trees):
    data = tmp_path / "all" / "data"
    trees.cub(data)
    trees.nabirds(data)
    cub, nabirds = data / "CUB_200_2011", data / "nabirds"
    above = tmp_path / "all"
    assert _advice(above, "CUB") == f"it seems to be in {cub}; give {data}, or move it to {above}"
    assert _advice(above, "NABirds") == f"it seems to be in {nabirds}; give {data}, or move it to {above}"
    for root in (cub / "images", cub / "images" / "001.Bird_1"):
        assert _advice(root, "CUB") == f"{root} is a part of it; give {data}, the folder that holds the datasets"
        # Its lists are called as those of NABirds.
        assert _advice(root, "NABirds") == ""
    # A dataset's own folder is no other's.
    assert [part.name for part in verify_datasets(cub).datasets if part.found] == ["CUB"]
    assert [part.name for part in verify_datasets(nabirds).datasets if part.found] == ["NABirds"]
    with pytest.raises(ValueError, match=f"CUB: not found in .* it seems to be in {cub}; give {data}"):
        load_benchmark(above, names=["CUB"])


def test_other_names_and_folders_within_folders_are_told(tmp_path, trees):
    trees.aircraft(tmp_path)
    (tmp_path / "fgvc-aircraft-2013b").rename(tmp_path / "planes")
    right = tmp_path / "fgvc-aircraft-2013b"
    assert _advice(tmp_path, "FGVCAircraft") == f"it seems to be in {tmp_path}/planes; move it to {right}"
    trees.cars_class_folders(tmp_path)
    (tmp_path / "cars196").rename(tmp_path / "autos")
    assert _advice(tmp_path, "Cars196") == f"it seems to be in {tmp_path}/autos; move it to {tmp_path}/cars196"
    # What has the right name and is not all there can only be replaced.
    (tmp_path / "cars196").mkdir()
    replaced = f"{tmp_path}/autos; move it to {tmp_path}/cars196, in place of the cars196 there"
    assert _advice(tmp_path, "Cars196").endswith(f"it seems to be in {replaced}")
    (tmp_path / "cars196").rmdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "autos").rename(tmp_path / "data" / "cars196")
    (tmp_path / "cars196").mkdir()
    replaced = f"give {tmp_path}/data, or move it to {tmp_path}, in place of the cars196 there"
    assert _advice(tmp_path, "Cars196").endswith(f"it seems to be in {tmp_path}/data/cars196; {replaced}")


@pytest.mark.parametrize(("name", "folder"), [
    ("CUB", "CUB_200_2011"), ("StanfordOnlineProducts", "Stanford_Online_Products"), ("NABirds", "nabirds"),
    ("InShop", "Inshop_Clothes"), ("FGVCAircraft", "fgvc-aircraft-2013b"),
])  # fmt: skip
@pytest.mark.parametrize("inner", ["", "unpacked"])
def test_archives_unpacked_into_a_folder_of_their_name_are_told(tmp_path, trees, name, folder, inner):
    """To move the inner folder to the root is impossible, and to give the outer one leaves other datasets out."""
    outer = tmp_path / folder
    trees.makers[name](outer)
    nested = outer / (inner or folder)
    (outer / folder).rename(nested)
    (advised,) = _of(verify_datasets(tmp_path), name).problems
    assert advised.endswith(f"; it seems to be in {nested}; move what is in there up into {outer}")
    for entry in nested.iterdir():
        entry.rename(outer / entry.name)
    nested.rmdir()
    assert _of(verify_datasets(tmp_path, check_counts=False), name).ok


def test_a_dataset_on_a_disk_that_is_not_mounted(complete_flowers, tmp_path, capsys):
    (tmp_path / "flowers").symlink_to(complete_flowers / "flowers")
    (tmp_path / "nabirds").symlink_to(tmp_path / "unmounted")
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"problem: NABirds: {tmp_path}/nabirds is a link to {tmp_path}/unmounted, which does not exist; mount" in out
    assert "ready: Flowers102; would fail: NABirds; not there: CUB, " in out


def test_renamed_birds_are_told_as_what_they_are(tmp_path, trees):
    trees.cub(tmp_path)
    (tmp_path / "CUB_200_2011").rename(tmp_path / "birds")
    assert _advice(tmp_path, "CUB") == f"it seems to be in {tmp_path}/birds; move it to {tmp_path}/CUB_200_2011"
    assert _advice(tmp_path, "NABirds") == ""
    assert [part.name for part in verify_datasets(tmp_path / "birds").datasets if part.found] == ["CUB"]


def test_archives_that_are_still_packed_are_told(tmp_path, trees):
    trees.in_shop(tmp_path)
    images = tmp_path / "Inshop_Clothes" / "Img"
    (images / "img").rename(tmp_path / "elsewhere")
    for archive in (images / "img.zip", tmp_path / "nabirds.tar.gz", tmp_path / "holiday.zip"):
        archive.write_bytes(b"")
    assert _advice(tmp_path, "InShop").endswith(f"lacks Img/img; not unpacked yet: {images}/img.zip")
    assert _advice(tmp_path, "NABirds") == f"not unpacked yet: {tmp_path}/nabirds.tar.gz"
    assert _advice(tmp_path, "CUB") == ""


def test_incomplete_folder_is_a_problem_not_an_absence(tmp_path, trees, capsys):
    trees.cub(tmp_path, classes=3)
    (tmp_path / "CUB_200_2011" / "images.txt").unlink()
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"problem: CUB: {tmp_path}/CUB_200_2011 lacks images.txt" in out
    assert "would fail: CUB" in out


def test_damaged_lists_are_a_problem(tmp_path, trees):
    trees.in_shop(tmp_path)
    (tmp_path / "Inshop_Clothes/Eval/list_eval_partition.txt").write_text("1\nheading\none two\n")
    part = _of(verify_datasets(tmp_path), "InShop")
    assert "line 3 of" in part.problems[0]
    assert not part.ok


def test_lone_and_leaking_classes(tmp_path, trees):
    trees.sop(tmp_path)
    lists = tmp_path / "Stanford_Online_Products" / "Ebay_test.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[:-1]))
    notes = _of(verify_datasets(tmp_path), "StanfordOnlineProducts").notes
    assert notes[-1] == "test: class 'coffee_maker 10' has one image; nothing can be retrieved for it"

    trees.in_shop(tmp_path)
    path = tmp_path / "Inshop_Clothes/Eval/list_eval_partition.txt"
    lines = path.read_text().splitlines(keepends=True)
    moved = [line.replace("query  ", "gallery") if "id_00000028" in line else line for line in lines]
    moved = [line.replace("query", "gallery") if "id_00000028" in line else line for line in moved]
    moved[2] = moved[2].replace("id_00000007  ", "id_00000042  ")
    path.write_text("".join(moved))
    # As a run says it, which it does not stop.
    note = _of(verify_datasets(tmp_path), "InShop").notes[-1]
    assert note.startswith("1 class trains and is in the test, the first is 'id_00000042'; figures that tell of new")


def test_query_class_without_gallery(tmp_path, trees):
    trees.in_shop(tmp_path)
    path = tmp_path / "Inshop_Clothes/Eval/list_eval_partition.txt"
    lines = [line for line in path.read_text().splitlines(keepends=True) if not ("gallery" in line and "28" in line)]
    path.write_text("".join(lines))
    part = _of(verify_datasets(tmp_path), "InShop")
    assert "query: 1 classes are not in the gallery, the first is 'id_00000028'" in part.notes


def test_wrong_arguments(tmp_path):
    with pytest.raises(DatasetError, match="nowhere is no folder"):
        main(["verify", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="unknown dataset 'Birds'; give some of CUB"):
        main(["verify", str(tmp_path), "--datasets", "Birds"])
    with pytest.raises(ValueError, match=r"invalid choice: 'check'.*puma datasets --help"):
        main(["check"])
    with pytest.raises(ValueError, match="required"):
        main([])


def test_list_names_every_dataset(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for facts in CATALOGUE.values():
        assert f"{facts.name}: {facts.title}" in out
        assert facts.source in out
    assert "train 11,318 classes, 59,551 images; test 11,316 classes, 60,502 images" in out


def test_few_shot_files(benchmark_tree, tmp_path, capsys):
    names = ["--datasets", "CUB", "StanfordDogs"]
    root, out = str(benchmark_tree.root), str(tmp_path / "splits")
    assert main(["few-shot", root, "--out", out, "--shots", "1", "2", "--seed", "5", *names]) == 0
    assert sorted(os.listdir(out)) == ["few_shot_1.json", "few_shot_2.json"]
    split = read_few_shot(os.path.join(out, "few_shot_1.json"))
    assert (split.seed, list(split.images), len(split.images["StanfordDogs"])) == (5, ["CUB", "StanfordDogs"], 60)
    assert "160 images of 160 classes in 2 datasets, seed 5" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="InShop"):
        main(["few-shot", root, "--out", out, "--datasets", "InShop"])
    # As the message advises.
    assert main(["few-shot", root, "--out", out, "--datasets", "InShop", "--data.check_counts", "false"]) == 0


def test_few_shot_files_without_bad_images(tmp_path, trees):
    trees.flowers(tmp_path)
    report, name = str(tmp_path / "report.json"), ["--datasets", "Flowers102"]
    draw = ["few-shot", str(tmp_path), "--out", str(tmp_path), "--shots", "1", *name]
    main(draw)
    drawn = read_few_shot(tmp_path / "few_shot_1.json").images["Flowers102"]
    bad = drawn["pink primrose"][0]
    (tmp_path / "flowers" / bad).write_bytes(b"")
    main(["verify", str(tmp_path), "--open-images", "--report", report, *name])
    for how in ([], ["--known-bad", report]):
        with pytest.warns(UserWarning, match=rf"1 of 102 images are left out, the first is {bad}"):
            main([*draw, "--bad-images", "skip", *how])
        again = read_few_shot(tmp_path / "few_shot_1.json").images["Flowers102"]
        assert again.pop("pink primrose") != [bad]
        assert again == {kind: keys for kind, keys in drawn.items() if kind != "pink primrose"}


def test_importing_the_command_is_light():
    """`puma --help` must not wait for torch."""
    code = "import sys, puma_plugin.cli.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_whole_benchmark_in_full_size(tmp_path, trees, capsys):
    """271,000 files with the published counts: verified, loaded, joined, drawn from; each in seconds."""
    trees.everything(tmp_path)
    took = {}

    def timed(what, work):
        start = time.perf_counter()
        result = work()
        took[what] = round(time.perf_counter() - start, 2)
        return result

    assert timed("verify", lambda: main(["verify", str(tmp_path), "--datasets", *CATALOGUE])) == 0
    train = timed("train", lambda: UnifiedDataset(load_benchmark(tmp_path, "train")))
    test = timed("test", lambda: UnifiedDataset(load_benchmark(tmp_path, "test")))
    few = timed("few-shot", lambda: main(["few-shot", str(tmp_path), "--out", str(tmp_path / "splits")]))
    print(capsys.readouterr().out, took)
    assert few == 0
    assert (train.num_classes, test.num_classes) == (15_952, 15_937)
    assert len(train) + len(test) == sum(facts.total for facts in CATALOGUE.values())
    assert int(test.query_mask.sum()) + int(test.gallery_mask.sum()) == 2 * len(test) - 14_218 - 12_612
    assert max(took.values()) < 60


@pytest.fixture
def own(tmp_path, trees):
    for number, key in enumerate(
        [*(f"good/{name}" for name in "abcd"), "split/train/a", "split/train/b", "split/test/c", "split/test/d"]
    ):
        for i in range(3):
            trees.write_jpeg(tmp_path / "own" / key / f"{i}.jpg", number)
    return tmp_path / "own"


def test_own_folders(own, trees, capsys):
    assert main(["verify", str(own), "--own", "--open-images"]) == 0
    out = capsys.readouterr().out
    assert "ready: good, split" in out
    assert "train   2 classes, 6 images" in out

    for name in "abcd":
        trees.write_jpeg(own / "lone" / name / "0.jpg", 1)
        if name != "c":
            trees.write_jpeg(own / "lone" / name / "1.jpg", 1)
    trees.write_jpeg(own / "few" / "a" / "0.jpg", 1)
    trees.write_jpeg(own / "few" / "b" / "0.jpg", 1)
    (own / "nothing").mkdir()
    (own / "good" / "b" / "1.jpg").write_bytes(b"")
    assert main(["verify", str(own), "--own", "--open-images", "--report", str(own / "r.json")]) == 1
    out = capsys.readouterr().out
    assert "ready: split; would fail: few, good, lone, nothing" in out
    advice = "add images, leave such classes out (--data.small_classes skip), or train with --data.min_images 1"
    assert f"problem: test: 1 class has fewer than 2 images, the first is 'c'; {advice}\n" in out
    assert "problem: train: one class only, 'a'; add classes, two are needed" in out
    # Said once for both splits, with the distribution's own folder above.
    assert f"problem: train, test: {own}/nothing holds no subfolders; put each class into a subfolder" in out
    assert f"  {own}/nothing\n" in out
    assert "lay it out as ROOT/NAME/CLASS/*.jpg" in out
    assert f"{own}/good/b/1.jpg (UnidentifiedImageError" in out
    with pytest.warns(UserWarning, match="1 of 6"):
        kept = ImageFolder(own / "good", "train", bad_images="skip", known_bad=own / "r.json")
    assert list(kept.item_keys) == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/2.jpg"]


def test_own_folders_on_a_disk_that_is_not_mounted(own, capsys):
    """Without a word the rest would be trained on."""
    gone = own.parent / "unmounted"
    for place in ("birds", "split/test/e", "notes.txt"):
        (own / place).symlink_to(gone)
    assert main(["verify", str(own), "--own"]) == 1
    out = capsys.readouterr().out
    told = f"is a link to {gone}, which does not exist; mount its disk, or mend or remove the link\n"
    assert f"problem: train, test: {own}/birds {told}" in out
    assert f"problem: test: {own}/split/test/e {told}" in out
    assert "left aside" not in out
    assert "ready: good; would fail: birds, split" in out
    for name in ("good", "split"):
        (own / name).rename(own.parent / name)
    assert main(["verify", str(own), "--own"]) == 1
    assert f"problem: train, test: {own}/birds {told}" in capsys.readouterr().out


def test_own_folders_beside_what_systems_leave_there(own, trees, capsys):
    """macOS in a zip file, Synology beside pictures."""
    for place in ("", "good/", "split/", "split/train/", "good/a/"):
        (own / f"{place}__MACOSX" / "plain").mkdir(parents=True)
        (own / f"{place}__MACOSX" / "plain" / "._1.jpg").touch()
        trees.write_jpeg(own / f"{place}@eaDir" / "1.jpg" / "SYNOPHOTO_THUMB_M.jpg", 1)
    assert main(["verify", str(own), "--own"]) == 0
    out = capsys.readouterr().out
    assert "ready: good, split" in out
    assert out.count("2 classes, 6 images") == 4
    assert "left aside" not in out


def test_own_distributions_looked_for_as_the_benchmark(own, capsys):
    assert main(["verify", str(own)]) == 1
    assert f"of your own are looked over with: puma datasets verify --own {own}" in capsys.readouterr().out
    assert main(["verify", str(own), "--own"]) == 0
    assert "of your own" not in capsys.readouterr().out


def test_own_by_the_settings_of_the_training(own, capsys):
    (own / "split" / "test" / "d" / "2.jpg").unlink()
    assert main(["verify", str(own), "--own", "--min-images", "3"]) == 1
    text = "problem: test: 1 class has fewer than 3 images, the first is 'd'; add images, leave such classes out ("
    assert f"{text}--data.small_classes skip), or train with --data.min_images 2\n" in capsys.readouterr().out
    # Of two test classes one is left.
    assert main(["verify", str(own), "--own", "--min-images", "3", "--small-classes", "skip"]) == 1
    out = capsys.readouterr().out
    assert "note: test: left out: 1 class has fewer than 3 images, the first is 'd'\n" in out
    assert "problem: test: one class only, 'c'; add classes, two are needed\n" in out
    (own / "split" / "test" / "d" / "1.jpg").unlink()
    assert main(["verify", str(own), "--own", "--min-images", "1"]) == 0

    (own / "lists").mkdir()
    lines = ["path,label", *(f"good/{c}/{i}.jpg,{c}" for c in "abcd" for i in range(3))]
    (own / "lists" / "m.csv").write_text("\n".join(lines))
    assert main(["verify", str(own / "lists" / "m.csv"), "--own"]) == 1
    assert main(["verify", str(own / "lists" / "m.csv"), "--own", "--image-root", str(own)]) == 0
    for arguments, match in [
        ([str(own), "--min-images", "1"], "go with --own"),
        ([str(own), "--small-classes", "skip"], "go with --own"),
        ([str(own), "--own", "--min-images", "0"], "min_images must be at least 1, got 0"),
        ([str(own), "--own", "--image-root", str(own)], "root is for a manifest's paths"),
    ]:
        with pytest.raises(ValueError, match=match):
            main(["verify", *arguments])


def test_own_small_classes(own, trees, capsys):
    """Left out before the others are split, and not counted among the files that nobody looks at."""
    trees.write_jpeg(own / "good" / "e" / "0.jpg", 1)
    assert main(["verify", str(own), "--own", "--small-classes", "skip"]) == 0
    out = capsys.readouterr().out
    assert "note: train, test: left out: 1 class has fewer than 2 images, the first is 'e'\n" in out
    assert "test    2 classes, 6 images" in out
    assert "not used" not in out
    assert main(["verify", str(own), "--own", "--small-classes", "skip", "--min-images", "9"]) == 1
    assert "problem: test: no class is left; add classes, two are needed" in capsys.readouterr().out


def test_own_manifest(own, capsys):
    lines = ["path,label,split,distribution"]
    lines += [
        f"good/{c}/{i}.jpg,{c},{s},x" for c, s in zip("abcd", 2 * ("train", "test"), strict=True) for i in range(3)
    ]
    lines += [f"split/train/{c}/{i}.jpg,{c},train,y" for c in "ab" for i in range(4)]
    (own / "all.csv").write_text("\n".join(lines))
    assert main(["verify", str(own / "all.csv"), "--own"]) == 1
    out = capsys.readouterr().out
    assert "ready: x; would fail: y" in out
    assert "problem: test: manifest" in out
    assert "missing: 2 images" in out


def test_own_classes_that_train_and_test_are_noted(own, trees, capsys):
    """Harmless to a run, so a note: some test known classes on purpose."""
    for number, key in enumerate(("train/cat", "train/dog", "test/dog", "test/cow")):
        for image in range(2):
            trees.write_jpeg(own / "mixed" / key / f"{image}.jpg", number)
    assert main(["verify", str(own), "--own"]) == 0
    out = capsys.readouterr().out
    assert out.count("note: ") == 1
    assert "note: 1 class trains and is in the test, the first is 'dog'; figures that tell of new classes" in out


def test_own_files_left_aside_are_counted(own, trees, capsys):
    """No reason to fail, but whoever meant them as images has to know."""
    for key in ("good/a/1.heic", "good/b/2.HEIC", "good/notes.txt", "good/c/scan", "good/a/._0.heic"):
        (own / key).touch()
    trees.write_jpeg(own / "split" / "cover.jpg", 1)
    assert main(["verify", str(own), "--own", "--report", str(own / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "  4 files left aside: .heic 2, no ending 1, .txt 1 (files are read that end in .bmp, .gif, .jfif, " in out
    assert "  1 file left aside: .jpg 1 (.jpg: outside the class folders that train and test)\n" in out
    good, split = json.loads((own / "r.json").read_text())["datasets"]
    assert (good["left_aside"], split["left_aside"]) == ({".heic": 2, "": 1, ".txt": 1}, {".jpg": 1})


def test_own_images_outside_of_every_distribution_are_counted(own, trees, capsys):
    for name in ("cover.jpg", "map.png"):
        trees.write_jpeg(own / name, 1)
    (own / "notes.txt").touch()
    assert main(["verify", str(own), "--own", "--report", str(own / "r.json")]) == 0
    assert f"  2 images lie directly in {own}, outside of every distribution, and would not be used" in (
        capsys.readouterr().out
    )
    assert json.loads((own / "r.json").read_text())["loose"] == 2


def test_a_root_of_splits_is_no_folder_of_distributions(own):
    """It would be trained as two distributions, called train and test, with test images among those trained on."""
    (own / "good").rename(own / "Test")
    with pytest.raises(DatasetError, match=f"{own} holds 'Test', so it .* single distribution with its splits.*NAME"):
        main(["verify", str(own), "--own"])
    (own / "Test").rename(own / "gallery")  # of paintings, perhaps
    assert main(["verify", str(own), "--own"]) == 0
    (own / "split").rename(own / "query")
    with pytest.raises(DatasetError, match="holds 'gallery' and 'query', so it"):
        main(["verify", str(own), "--own"])


def test_own_files_left_aside_explain_an_empty_class(own, capsys):
    (own / "good" / "z").mkdir()
    (own / "good" / "z" / "1.heic").touch()
    assert main(["verify", str(own), "--own"]) == 1
    out = capsys.readouterr().out
    assert f"class folder {own}/good/z holds no image (.bmp, " in out
    assert "  1 file left aside: .heic 1 (" in out  # and not the images of the other classes


def test_own_folder_beside_the_split_folders(own, trees, capsys):
    """Told once for both splits, as any other fault."""
    trees.write_jpeg(own / "split" / "val" / "e" / "0.jpg", 1)
    assert main(["verify", str(own), "--own"]) == 1
    out = capsys.readouterr().out
    assert "ready: good; would fail: split" in out
    assert f"problem: train, test: {own}/split has the folder 'val' beside train, test, whose images would not" in out


def test_own_errors(own):
    with pytest.raises(DatasetError, match=f"{own}/good holds .* looks like a single distribution.*give .*{own}$"):
        main(["verify", str(own / "good"), "--own"])
    with pytest.raises(DatasetError, match="nowhere does not exist; give a folder with one subfolder per distribution"):
        main(["verify", str(own / "nowhere"), "--own"])
    with pytest.raises(DatasetError, match="holds no distribution"):
        main(["verify", str(own / "good" / "a"), "--own"])
    with pytest.raises(ValueError, match="--own looks at others; give one of the two"):
        main(["verify", str(own), "--own", "--datasets", "CUB"])
    with pytest.raises(
        ValueError, match="--check-counts is for datasets of the benchmark; of your own no counts are pub"
    ):
        main(["verify", str(own), "--own", "--check-counts", "false"])
