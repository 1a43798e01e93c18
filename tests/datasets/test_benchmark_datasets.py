"""The eight datasets of the benchmark, every split and layout, against what was written to disk."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_metric_learning.datasets as pml_datasets
import torch
import torchvision

from puma_plugin.datasets.benchmark import BENCHMARK, benchmark_names, load_benchmark
from puma_plugin.datasets.cars196 import Cars196
from puma_plugin.datasets.cub import CUB
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.fgvc_aircraft import FGVCAircraft
from puma_plugin.datasets.flowers102 import Flowers102
from puma_plugin.datasets.in_shop import InShop
from puma_plugin.datasets.nabirds import NABirds
from puma_plugin.datasets.stanford_dogs import StanfordDogs
from puma_plugin.datasets.stanford_online_products import StanfordOnlineProducts
from puma_plugin.datasets.unified_dataset import UnifiedDataset

# Training classes by published number; of the two others the files say it.
LAST_TRAINING_CLASS = {"CUB": 100, "Cars196": 98, "StanfordDogs": 60, "Flowers102": 51, "FGVCAircraft": 50}
CLASSES = {"CUB": 200, "Cars196": 196, "NABirds": 555, "StanfordDogs": 120, "Flowers102": 102, "FGVCAircraft": 100}


def _in_split(name, truths, split):
    """The images of a split, by the rules of the benchmark."""
    if name == "StanfordOnlineProducts":
        return [t for t in truths if (t.part == "train") == (split == "train")]
    if name == "InShop":
        parts = ("query", "gallery") if split == "test" else (split,)
        return [t for part in parts for t in truths if t.part == part]
    last = LAST_TRAINING_CLASS.get(name) or sorted({t.number for t in truths})[277]
    return [t for t in truths if (t.number <= last) == (split == "train")]


def _names(truths):
    """Name of each class number; a shared name gets the number appended."""
    by_number = {t.number: t.name for t in truths}
    values = list(by_number.values())
    return {n: f"{name} ({n})" if values.count(name) > 1 else name for n, name in by_number.items()}


def _check(dataset, truths, split, trees):
    """Keys, classes, names and pixels of a dataset equal the truths, in whatever order they come."""
    expected = {t.path: t for t in truths}
    assert sorted(dataset.item_keys) == sorted(expected)
    assert len(dataset) == len(dataset.targets) == len(dataset.paths) == len(truths)
    assert dataset.targets.dtype == np.int64
    numbers = sorted({t.number for t in truths})
    names = _names(truths)
    assert dataset.class_names == [names[n] for n in numbers]
    for key, target in zip(dataset.item_keys, dataset.targets, strict=True):
        assert numbers[target] == expected[key].number
    for index in np.random.default_rng(0).choice(len(truths), min(len(truths), 25), replace=False).tolist():
        image, target = dataset[index]
        assert image.mode == "RGB"
        assert target == dataset.targets[index]
        pixel = np.asarray(image)[5, 6].astype(int)
        assert np.abs(pixel - trees.color_of(expected[dataset.item_keys[index]].number % 1000)).max() <= 4
    assert dataset.split == split


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", BENCHMARK)
def test_every_dataset_and_split(benchmark_tree, trees, name, split):
    dataset = BENCHMARK[name](benchmark_tree.root, split, check_counts=name in CLASSES)
    truths = _in_split(name, benchmark_tree.truths[name], split)
    _check(dataset, truths, split, trees)
    if name in CLASSES:
        train = LAST_TRAINING_CLASS.get(name, 278)
        assert len(dataset.class_names) == (train if split == "train" else CLASSES[name] - train)


@pytest.mark.parametrize("name", [n for n in BENCHMARK if n != "InShop"])
def test_query_and_gallery_are_the_test_set(benchmark_tree, name):
    test, query, gallery = (
        BENCHMARK[name](benchmark_tree.root, s, check_counts=False) for s in ("test", "query", "gallery")
    )
    assert list(test.item_keys) == list(query.item_keys) == list(gallery.item_keys)
    assert test.query_mask is None
    assert test.gallery_mask is None


def test_in_shop_parts(benchmark_tree, trees):
    truths = benchmark_tree.truths["InShop"]
    for split in ("query", "gallery"):
        _check(InShop(benchmark_tree.root, split), _in_split("InShop", truths, split), split, trees)
    test = InShop(benchmark_tree.root, "test")
    part = {t.path: t.part for t in truths}
    assert test.query_mask.dtype == test.gallery_mask.dtype == torch.bool
    for key, query, gallery in zip(test.item_keys, test.query_mask.tolist(), test.gallery_mask.tolist(), strict=True):
        assert (query, gallery) == (part[key] == "query", part[key] == "gallery")


def test_in_shop_wrong_class_count(benchmark_tree):
    with pytest.raises(ValueError, match=r"InShop \(train\): 3 classes .*3,997 are published.*check_counts=False"):
        InShop(benchmark_tree.root, "train")


@pytest.mark.parametrize("root", ["the parent", "the folder itself", "a string"])
def test_root_may_be_the_folder_or_its_parent(tmp_path, trees, root):
    trees.dogs(tmp_path)
    given = {"the parent": tmp_path, "the folder itself": tmp_path / "dogs", "a string": str(tmp_path)}[root]
    dataset = StanfordDogs(given, "train")
    assert dataset.location.folder == str(tmp_path / "dogs")


def test_cub_folder_itself_and_agreement_with_pml(benchmark_tree):
    root = benchmark_tree.root
    for split in ("train", "test"):
        ours, theirs = CUB(root / "CUB_200_2011", split), pml_datasets.CUB(str(root), split=split)
        first = 1 if split == "train" else 101
        assert list(ours.paths) == theirs.paths
        assert (ours.targets + first).tolist() == theirs.labels


@pytest.mark.parametrize(("name", "folder"), [("CUB", "CUB_200_2011"), ("NABirds", "nabirds")])
def test_renamed_birds_are_told_by_their_lists(tmp_path, trees, name, folder):
    """Those of both datasets are called the same, so that the name "birds" says nothing."""
    truths = trees.makers[name](tmp_path)
    birds = (tmp_path / folder).rename(tmp_path / "birds")
    _check(BENCHMARK[name](birds, "test"), _in_split(name, truths, "test"), "test", trees)
    other = {"CUB": "NABirds", "NABirds": "CUB"}[name]
    with pytest.raises(ValueError, match=f"{other}: not found in {birds}"):
        BENCHMARK[other](birds)


def test_birds_that_may_be_of_either_dataset_are_refused(tmp_path, trees):
    trees.nabirds(tmp_path)
    birds = (tmp_path / "nabirds").rename(tmp_path / "birds")
    lists = birds / "images.txt"
    lists.write_text("".join(f"{n} {line.split()[1]}\n" for n, line in enumerate(lists.read_text().splitlines(), 1)))
    for dataset in (CUB, NABirds):
        with pytest.raises(
            ValueError, match=rf"{birds} holds files as of .*, but its images\.txt begins with '1 0\d+/.*; ren"
        ):
            dataset(birds)
    # Its own name says which; the lists are then read as they are, and found wrong.
    with pytest.raises(ValueError, match=r"NABirds: image .* is in only one of"):
        NABirds(birds.rename(tmp_path / "nabirds"))


def test_products_agree_with_pml(benchmark_tree):
    root = benchmark_tree.root
    ours = StanfordOnlineProducts(root, "test", check_counts=False)
    theirs = pml_datasets.StanfordOnlineProducts(str(root), split="test")
    assert list(ours.paths) == theirs.paths
    assert np.unique(theirs.labels, return_inverse=True)[1].tolist() == ours.targets.tolist()


def test_aircraft_agrees_with_torchvision(benchmark_tree):
    root = benchmark_tree.root
    theirs = {}
    for part in ("trainval", "test"):
        parsed = torchvision.datasets.FGVCAircraft(root, part, loader=str)
        theirs |= {path: parsed.classes[number] for path, number in (parsed[i] for i in range(len(parsed)))}
    for split in ("train", "test"):
        ours = FGVCAircraft(root, split)
        assert all(ours.class_names[t] == theirs[p] for p, t in zip(ours.paths, ours.targets, strict=True))


@pytest.mark.parametrize("maker", ["cars_torchvision", "cars_class_folders"])
def test_other_layouts_of_cars(tmp_path, trees, maker):
    truths = getattr(trees, maker)(tmp_path)
    for split in ("train", "test"):
        dataset = Cars196(tmp_path, split)
        _check(dataset, _in_split("Cars196", truths, split), split, trees)
    assert dataset.location.layout.name == {"cars_torchvision": "train and test"}.get(maker, "class folders")
    if maker == "cars_torchvision":
        theirs = torchvision.datasets.StanfordCars(tmp_path, "test", loader=str)
        labels = {theirs[i][0]: theirs.classes[theirs[i][1]] for i in range(len(theirs))}
        shared = [(p, t) for p, t in zip(dataset.paths, dataset.targets, strict=True) if p in labels]
        assert len(shared) == 98
        assert all(dataset.class_names[t] == labels[p] for p, t in shared)


def _as_kaggle_unpacks(folder):
    """Images in a folder of the same name, and the list of the original archive, which numbers other files, beside."""
    for part in ("cars_train", "cars_test"):
        (folder / part).rename(folder / "part")
        (folder / part).mkdir()
        (folder / "part").rename(folder / part / part)
    (folder / "cars_annos.mat").write_bytes(b"of car_ims/000001.jpg, ...")


@pytest.mark.parametrize(
    ("moved", "name"),
    [
        ({}, "stanford_cars"),
        ({"devkit": "car_devkit/devkit"}, "stanford-cars-dataset"),
        ({"cars_test_annos_withlabels.mat": "cars_test_annos_withlabels (1).mat"}, "cars"),
        ({"cars_test_annos_withlabels.mat": "devkit/cars_test_annos_withlabels (1).mat"}, "archive"),
        ({"cars_test_annos_withlabels.mat": "devkit/cars_test_annos_withlabels.mat"}, "cars"),
        ({"devkit/cars_train_annos.mat": "cars_train_annos.mat", "devkit/cars_meta.mat": "cars_meta.mat"}, "archive"),
    ],
)
def test_kaggles_copy_of_cars(tmp_path, trees, moved, name):
    """With the labels, wherever the tutorials put them; the folder itself may be called as the archive was."""
    truths = trees.cars_torchvision(tmp_path)
    folder = tmp_path / "stanford_cars"
    for source, target in moved.items():
        (folder / target).parent.mkdir(exist_ok=True)
        (folder / source).rename(folder / target)
    _as_kaggle_unpacks(folder)
    folder = folder.rename(tmp_path / name)
    nested = [replace(t, path=f"{t.path.split('/')[0]}/{t.path}") for t in truths]
    for split in ("train", "test"):
        dataset = Cars196(folder if name == "archive" else tmp_path, split)
        _check(dataset, _in_split("Cars196", nested, split), split, trees)


@pytest.mark.parametrize("name", ["stanford_cars", "archive"])
def test_kaggles_copy_of_cars_without_labels(tmp_path, trees, name):
    """Its cars_annos.mat is no reason to ask for car_ims, and never read."""
    trees.cars_torchvision(tmp_path)
    folder = (tmp_path / "stanford_cars").rename(tmp_path / name)
    _as_kaggle_unpacks(folder)
    (folder / "cars_test_annos_withlabels.mat").unlink()
    says = r"get the labels from https://github.com/pytorch/vision/issues/7545 .* cars_annos\.mat is of car_ims\.tgz"
    with pytest.raises(ValueError, match=rf"Cars196: {folder} lacks cars_test_annos_withlabels\.mat; {says}"):
        Cars196(folder)
    shutil.rmtree(folder / "devkit")
    missing = "devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat"
    with pytest.raises(ValueError, match=rf"Cars196: {folder} lacks {missing}; {says}"):
        Cars196(folder)


def test_cars_test_without_labels_under_the_name_of_those_with(tmp_path, trees):
    """The devkit's cars_test_annos.mat names no classes, and renaming it does not help."""
    from scipy.io import savemat

    trees.cars_torchvision(tmp_path)
    rows = np.zeros((1, 3), [("bbox_x1", object), ("fname", object)])
    savemat(tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(
        ValueError, match=r"cars_test_annos_withlabels.mat cannot be parsed \(ValueError: no field .*clas"
    ):
        Cars196(tmp_path)


def test_lists_of_cars_under_each_others_names(tmp_path, trees):
    trees.cars_torchvision(tmp_path)
    folder = tmp_path / "stanford_cars"
    meta, train = folder / "devkit/cars_meta.mat", folder / "devkit/cars_train_annos.mat"
    names, rows = meta.read_bytes(), train.read_bytes()
    train.write_bytes(names)
    with pytest.raises(ValueError, match=rf"Cars196: {train} holds no variable 'annotations' \(it holds class_names\)"):
        Cars196(tmp_path)
    train.write_bytes(rows)
    meta.write_bytes(rows)
    with pytest.raises(ValueError, match=rf"Cars196: {meta} holds no variable 'class_names' \(it holds annotations\)"):
        Cars196(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, r" holds no variable 'annotations' \(it holds class_names\)"),
        ({"class_names": None}, r" holds no variable 'class_names' \(it holds annotations\)"),
        (
            {"annotations": np.zeros(2, [("fname", object)])},
            " cannot be parsed .ValueError: no field of name relative_im",
        ),
        ({"class": 0}, " contains class number 0, the numbers run from 1 to 196"),
        ({"class": 197}, " contains class number 197, the numbers run from 1 to 196"),
    ],
)
def test_what_is_wrong_with_the_original_list_of_cars(tmp_path, trees, change, message):
    from scipy.io import loadmat, savemat

    trees.cars(tmp_path)
    file = tmp_path / "cars196" / "cars_annos.mat"
    content = {name: value for name, value in loadmat(file).items() if not name.startswith("__")}
    if "class" in change:
        content["annotations"][0, -1]["class"] = change["class"]
    else:
        content |= change
    savemat(file, {name: value for name, value in content.items() if value is not None})
    with pytest.raises(ValueError, match=f"Cars196: {file}{message}"):
        Cars196(tmp_path)


@pytest.mark.parametrize("folder", ["car196", "stanford_cars", "cars"])
def test_original_cars_under_other_names(tmp_path, trees, folder):
    trees.cars(tmp_path, folder)
    assert Cars196(tmp_path, "test").location.folder == str(tmp_path / folder)


@pytest.mark.parametrize(
    ("lists", "images", "folder"),
    [
        ("Eval", "Img", "In-shop Clothes Retrieval Benchmark"),
        ("", "", "inshop"),
        ("Eval", "", "DeepFashion/In-shop"),
        ("", "Img", "InShop"),
    ],
)
def test_other_layouts_of_in_shop(tmp_path, trees, lists, images, folder):
    truths = trees.in_shop(tmp_path, lists, images, folder)
    dataset = InShop(tmp_path, "test", check_counts=False)
    _check(dataset, _in_split("InShop", truths, "test"), "test", trees)


@pytest.mark.parametrize(
    ("folder", "images", "lists"),
    [("stanford_dogs", "images", True), ("stanford-dogs-dataset", "images/Images", False), ("Dogs", "Images", False)],
)
def test_other_layouts_of_dogs(tmp_path, trees, folder, images, lists):
    truths = trees.dogs(tmp_path, folder, images, lists)
    for split in ("train", "test"):
        _check(StanfordDogs(tmp_path, split), _in_split("StanfordDogs", truths, split), split, trees)


def test_torchvision_folder_of_flowers(tmp_path, trees):
    truths = trees.flowers(tmp_path, "flowers-102")
    dataset = Flowers102(tmp_path, "test")
    _check(dataset, _in_split("Flowers102", truths, "test"), "test", trees)
    assert dataset.class_names == torchvision.datasets.Flowers102.classes[51:]


def test_nabirds_without_names(tmp_path, trees):
    trees.nabirds(tmp_path)
    (tmp_path / "nabirds" / "classes.txt").unlink()
    assert NABirds(tmp_path, "train").class_names[:3] == ["0295", "0296", "0297"]


def test_shared_class_names_are_told_apart(benchmark_tree):
    names = NABirds(benchmark_tree.root, "train").class_names
    assert names[:3] == ["Bird Kind 0 (295)", "Bird Kind 0 (296)", "Bird Kind 2"]
    assert len(set(names)) == 278


def test_unified(benchmark_tree):
    """All eight joined: masks of In-shop, classes contiguous over all, and the same images under stable ids."""
    test = load_benchmark(benchmark_tree.root, "test", check_counts=False)
    assert list(test) == list(BENCHMARK)
    joined = UnifiedDataset(test)
    assert joined.distribution_names == list(BENCHMARK)
    assert joined.num_classes == sum(len(part.class_names) for part in test.values())
    assert len(joined) == sum(map(len, test.values()))
    labels = joined.labels.numpy()
    in_shop = labels[:, 1] == list(BENCHMARK).index("InShop")
    assert torch.equal(joined.query_mask[torch.from_numpy(in_shop)], test["InShop"].query_mask)
    assert joined.query_mask[torch.from_numpy(~in_shop)].all()
    assert joined.gallery_mask[torch.from_numpy(~in_shop)].all()
    assert joined.class_names[0] == "CUB/101.Bird_101"
    # The authors' protocol numbers test classes after the training classes of their dataset, In-shop's from 0.
    first = {"CUB": 100, "Cars196": 98, "StanfordOnlineProducts": 11_318, "InShop": 0, "NABirds": 278,
             "StanfordDogs": 60, "Flowers102": 51, "FGVCAircraft": 50}  # fmt: skip
    found = {
        name: int(joined.local_classes[labels[:, 1] == d].min()) for d, name in enumerate(joined.distribution_names)
    }
    assert found == first
    part = joined.subset(torch.arange(len(joined)).flip(0)[::50])
    places = [joined.item_ids.tolist().index(item) for item in part.item_ids.tolist()]
    assert torch.equal(part.local_classes, joined.local_classes[places])
    assert {
        CUB(benchmark_tree.root, "train").first_class,
        InShop(benchmark_tree.root, "query", check_counts=False).first_class,
    } == {0}


def test_load_benchmark_names_every_fault(benchmark_tree):
    with pytest.raises(ValueError) as caught:
        load_benchmark(benchmark_tree.root, "train")
    message = str(caught.value)
    assert "StanfordOnlineProducts (train): 6 classes" in message
    assert "InShop (train): 3 classes" in message
    assert message.endswith(f"see `puma datasets verify {benchmark_tree.root}`")
    assert "CUB" not in message


def test_of_reduced_copies_what_is_advised_passes_over_counts_too(tmp_path):
    with pytest.raises(DatasetError, match=rf"see `puma datasets verify {tmp_path} --check-counts false`$"):
        load_benchmark(tmp_path, check_counts=False)


def test_benchmark_names():
    assert benchmark_names(["InShop", "CUB"]) == ["CUB", "InShop"]
    assert len(benchmark_names()) == 8
    with pytest.raises(ValueError, match="unknown dataset 'SOP'; give some of CUB, Cars196"):
        benchmark_names(["SOP"])


def test_grey_and_cmyk_become_rgb(tmp_path, trees):
    truths = trees.cub(tmp_path)
    for truth, mode in zip(truths[:2], ("L", "CMYK"), strict=True):
        trees.write_jpeg(tmp_path / "CUB_200_2011" / truth.path, 55, mode)
    dataset = CUB(tmp_path, "train")
    assert [dataset[i][0].mode for i in range(3)] == ["RGB"] * 3
    assert dataset[0][0].size == (12, 10)


def test_transform_subset_pickle(benchmark_tree):
    dataset = CUB(benchmark_tree.root, "test", transform=torchvision.transforms.ToTensor())
    assert dataset[0][0].shape == (3, 10, 12)
    part = dataset.subset([5, 4, 0])
    assert list(part.item_keys) == [dataset.item_keys[i] for i in (5, 4, 0)]
    assert part.targets.tolist() == [1, 1, 0]
    assert part.class_names == ["101.Bird_101", "103.Bird_103"]
    assert dataset.with_transform(None)[0][0].mode == "RGB"
    assert len(dataset) == 200
    copy = pickle.loads(pickle.dumps(part))
    assert torch.equal(copy[0][0], part[0][0])
    assert list(copy.paths) == list(part.paths)
    assert "200 images, 100 classes" in repr(dataset)


@pytest.mark.parametrize("name", BENCHMARK)
def test_not_found_says_where_to_get_it(tmp_path, name):
    with pytest.raises(ValueError) as caught:
        BENCHMARK[name](tmp_path, "train")
    message = str(caught.value)
    assert message.startswith(f"{name}: not found in {tmp_path}")
    assert "get: http" in message
    assert "-> ROOT/" in message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("CUB", "CUB_200_2011/images.txt"),
        ("CUB", "CUB_200_2011/image_class_labels.txt"),
        ("Cars196", "cars196/cars_annos.mat"),
        ("StanfordOnlineProducts", "Stanford_Online_Products/Ebay_train.txt"),
        ("InShop", "Inshop_Clothes/Eval/list_eval_partition.txt"),
        ("NABirds", "nabirds/image_class_labels.txt"),
        ("Flowers102", "flowers/imagelabels.mat"),
        ("FGVCAircraft", "fgvc-aircraft-2013b/data/images_variant_trainval.txt"),
    ],
)
def test_missing_annotation_file(tmp_path, trees, name, file):
    trees.makers[name](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(
        ValueError, match=f"{name}: .* lacks .*{Path(file).name}; get what the archive does not hold, or"
    ):
        BENCHMARK[name](tmp_path, "train", check_counts=False)


def test_a_link_to_a_dataset_that_does_not_exist(tmp_path, trees):
    """No trace of it would be found otherwise. The others are read as ever."""
    trees.dogs(tmp_path, lists=False)
    (tmp_path / "nabirds").symlink_to(tmp_path / "unmounted")
    with pytest.raises(
        DatasetError,
        match=f"^NABirds: {tmp_path}/nabirds is a link to {tmp_path}/unmounted, which does not exist; mount",
    ):
        NABirds(tmp_path)
    assert len(StanfordDogs(tmp_path).class_names) == 60
    (tmp_path / "dogs" / "Images" / "n03000000-Poodle").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DatasetError, match=f"Poodle is a link to {tmp_path}/unmounted, which does not exist"):
        StanfordDogs(tmp_path)


def test_what_systems_leave_beside_pictures_is_no_breed(tmp_path, trees):
    trees.dogs(tmp_path, lists=False)
    trees.write_jpeg(tmp_path / "dogs" / "Images" / "@eaDir" / "0.jpg", 1)
    assert len(StanfordDogs(tmp_path, "test").class_names) == 60


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"CUB: .*nowhere is no folder"):
        CUB(tmp_path / "nowhere")


def test_an_unknown_split_is_said_before_anything_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match="split is 'val'; give one of train, test, query, gallery"):
        CUB(tmp_path / "nowhere", "val")


def test_wrong_class_count(tmp_path, trees):
    trees.cub(tmp_path, classes=150)
    assert len(CUB(tmp_path, "train").class_names) == 100
    with pytest.raises(ValueError, match=r"CUB \(test\): 50 classes are listed in .*, 100 are published"):
        CUB(tmp_path, "test")
    assert len(CUB(tmp_path, "test", check_counts=False).class_names) == 50
    with pytest.raises(ValueError, match="CUB \\(query\\): 50 classes"):
        CUB(tmp_path, "query")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("CUB", "CUB_200_2011/images.txt", "1\n", "line 1 of .*images.txt has 1 columns instead of 2"),
        ("CUB", "CUB_200_2011/image_class_labels.txt", "1 1\n3 1\n", "in only one of"),
        ("StanfordOnlineProducts", "Stanford_Online_Products/Ebay_train.txt", "head\n1 x y z\n", "cannot be parsed"),
        ("InShop", "Inshop_Clothes/Eval/list_eval_partition.txt", "1\nh\na.jpg id_1\n", "line 3 .* 2 columns instead"),
        ("InShop", "Inshop_Clothes/Eval/list_eval_partition.txt", "1\nh\na.jpg id_1 val\n", "status 'val'"),
        ("NABirds", "nabirds/images.txt", "a 0295/a.jpg\n", "in only one of"),
        ("NABirds", "nabirds/image_class_labels.txt", "a one\n", "cannot be parsed .*ValueError"),
        ("FGVCAircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", "0034309 Unheard\n", "cannot be parsed"),
        ("Cars196", "cars196/cars_annos.mat", "no matlab", "cars_annos.mat cannot be parsed"),
        ("Flowers102", "flowers/imagelabels.mat", "", "imagelabels.mat cannot be parsed"),
        ("StanfordDogs", "dogs/file_list.mat", "MATLAB 5.0 MAT-file, but no more", "file_list.mat cannot be parsed"),
    ],
)
def test_damaged_annotation_file(tmp_path, trees, name, file, content, message):
    trees.makers[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"(?s)^{name}: .*{message}.*(again|copy)"):
        BENCHMARK[name](tmp_path, "train", check_counts=False)


def test_mat_of_another_dataset(tmp_path, trees):
    trees.flowers(tmp_path)
    flowers = tmp_path / "flowers"
    (flowers / "setid.mat").replace(flowers / "imagelabels.mat")
    with pytest.raises(
        ValueError, match=r"imagelabels.mat holds no variable 'labels' \(it holds trnid, valid, tstid\)"
    ):
        Flowers102(tmp_path)


def test_class_number_out_of_range(tmp_path, trees):
    from scipy.io import savemat

    trees.flowers(tmp_path)
    savemat(tmp_path / "flowers" / "imagelabels.mat", {"labels": np.array([[1, 103, 2]], np.uint8)})
    with pytest.raises(ValueError, match=r"Flowers102: .*contains class number 103, the numbers run from 1 to 102"):
        Flowers102(tmp_path)


def test_cub_class_number_out_of_range(tmp_path, trees):
    trees.cub(tmp_path)
    labels = tmp_path / "CUB_200_2011" / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "1 201\n", 1))
    with pytest.raises(ValueError, match=r"CUB: .*contains class number 201, the numbers run from 1 to 200"):
        CUB(tmp_path)


def test_missing_image(tmp_path, trees):
    truths = trees.cub(tmp_path)
    for truth in truths[6:8]:
        (tmp_path / "CUB_200_2011" / truth.path).unlink()
    with pytest.raises(
        ValueError, match=rf"CUB \(train\): 2 of 200 files are missing, the first is .*{truths[6].path}"
    ):
        CUB(tmp_path, "train")
    assert len(CUB(tmp_path, "test")) == 200
