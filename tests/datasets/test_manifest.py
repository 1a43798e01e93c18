"""CSV and Parquet manifests."""

import sys

import pytest

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.manifest import (
    ManifestDataset,
    distributions_of,
    list_manifest_distribution,
    read_manifest,
)


def _write(path, heading, rows):
    path.write_text("\n".join([heading, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def images(tmp_path, trees):
    for name in ("cat", "dog", "emu", "fox"):
        for i in range(3):
            trees.write_jpeg(tmp_path / "img" / f"{name}{i}.jpg", ord(name[0]))
    return tmp_path


def _rows(names, counts=range(3), *more):
    return [(f"img/{name}{i}.jpg", name, *more) for name in names for i in counts]


def test_split_by_class(images):
    file = _write(images / "pets.csv", "path,label", _rows(["dog", "cat", "fox", "emu"]))
    train, test = ManifestDataset(file, "train"), ManifestDataset(file, "test")
    assert train.name == "pets"
    assert train.class_names == ["cat", "dog"]
    assert test.class_names == ["emu", "fox"]
    assert list(train.item_keys) == [f"img/{n}{i}.jpg" for n in ("dog", "cat") for i in range(3)]
    assert train.targets.tolist() == [1, 1, 1, 0, 0, 0]
    image, target = test[0]
    assert (image.mode, target) == ("RGB", 1)
    assert ManifestDataset(file, "test", test_fraction=0.25).class_names == ["fox"]


def test_columns_in_any_order_and_whole_number_labels(images):
    labels = {"cat": 10, "dog": 9, "emu": 2, "fox": 100}
    rows = [(labels[label], "x", path) for path, label in _rows(labels)]
    file = _write(images / "pets.csv", "label,camera, path", rows)
    assert ManifestDataset(file, "train").class_names == ["2", "9"]
    assert ManifestDataset(file, "test").class_names == ["10", "100"]


@pytest.mark.parametrize("written", [int, float])
def test_numbers_are_in_their_order_in_every_format(images, written):
    """Also where a column of whole numbers has become one of floats, as pandas makes it around missing values."""
    labels = {"cat": written(10), "dog": written(9), "emu": written(2), "fox": written(100)}
    rows = [(path, labels[name]) for path, name in _rows(labels)]
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet manifests need pyarrow")
    from pyarrow import parquet

    paths, numbers = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"path": paths, "label": numbers}), images / "m.parquet")
    for file in (_write(images / "m.csv", "path,label", rows), images / "m.parquet"):
        assert ManifestDataset(file, "train").class_names == [str(written(2)), str(written(9))]
        assert ManifestDataset(file, "test").class_names == [str(written(10)), str(written(100))]


def test_numbers_that_are_not_whole_and_versions_are_text(images):
    labels = {"cat": "1.10", "dog": "1.2", "emu": "10.0", "fox": "9.0"}
    rows = [(path, labels[name]) for path, name in _rows(labels)]
    assert read_manifest(_write(images / "m.csv", "path,label", rows)).label_names == ["1.10", "1.2", "10.0", "9.0"]


def test_a_number_written_in_two_ways_is_no_two_classes(images):
    rows = [*_rows(["cat"], range(3), 1, "a"), *_rows(["dog"], range(3), 2, "a"), *_rows(["emu"], range(3), "1.0", "a")]
    rows = [(path, label, distribution) for path, _, label, distribution in rows]
    file = _write(images / "m.csv", "path,label,distribution", rows)
    with pytest.raises(
        DatasetError, match=r"a: manifest .*m\.csv has the labels '1' and '1\.0', which would be two cl"
    ):
        read_manifest(file)
    for written in ("01", "001.00"):  # as spreadsheets write and strip them
        rows[-3:] = [(path, written, distribution) for path, _, distribution in rows[-3:]]
        with pytest.raises(DatasetError, match=rf"has the labels '1' and '{written}', which would be two"):
            read_manifest(_write(images / "m.csv", "path,label,distribution", rows))
    rows[-3:] = [(path, "1_0", distribution) for path, _, distribution in rows[-3:]]  # what Python takes for 10
    assert read_manifest(_write(images / "m.csv", "path,label,distribution", rows)).label_names == ["1", "1_0", "2"]
    rows[-3:] = [(path, "1.0", distribution) for path, _, distribution in rows[-3:]]
    # Another distribution has classes of its own.
    rows[-3:] = [(path, label, "b") for path, label, _ in rows[-3:]]
    assert read_manifest(_write(images / "m.csv", "path,label,distribution", rows)).label_names == ["1", "1.0", "2"]


def test_splits_and_distributions(images):
    rows = [
        *_rows(["cat", "dog"], range(3), "train", "a"),
        *_rows(["emu"], range(2), "query", "a"),
        *_rows(["emu", "fox"], [2], "gallery", "a"),
        *_rows(["emu"], [0], "gallery", "b")[:0],
        *_rows(["emu"], range(3), "train", "b"),
        *_rows(["fox"], range(3), "test", "b"),
    ]
    file = _write(images / "all.csv", "path,label,split,distribution", rows)
    train = distributions_of(file, split="train")
    assert {name: len(part) for name, part in train.items()} == {"a": 6, "b": 3}
    table = read_manifest(file)
    parts = distributions_of(table, split="test", min_images=1)
    assert {name: part.class_names for name, part in parts.items()} == {"a": ["emu", "fox"], "b": ["fox"]}
    test = ManifestDataset(table, "test", distribution="a", min_images=1)
    assert test.class_names == ["emu", "fox"]
    assert test.query_mask.tolist() == [True, True, False, False]
    assert test.gallery_mask.tolist() == [False, False, True, True]
    assert len(ManifestDataset(table, "query", distribution="a")) == 2
    assert len(ManifestDataset(table, "gallery", distribution="a")) == 2
    other = ManifestDataset(table, "test", distribution="b")
    assert other.query_mask is None
    assert list(ManifestDataset(table, "gallery", distribution="b").item_keys) == list(other.item_keys)
    with pytest.raises(DatasetError, match=r"holds 2 distributions \(a, b\); say which as distribution="):
        ManifestDataset(file)
    with pytest.raises(DatasetError, match="holds no distribution 'c'; it holds a, b"):
        ManifestDataset(file, distribution="c")


def test_test_rows_are_queries_and_gallery(images):
    rows = [*_rows(["cat"], range(3), "test"), *_rows(["dog"], [0], "query"), *_rows(["dog"], [1], "gallery")]
    test = ManifestDataset(_write(images / "m.csv", "path,label,split", rows), "test")
    assert test.query_mask.tolist() == [True] * 4 + [False]
    assert test.gallery_mask.tolist() == [True] * 3 + [False, True]


def test_paths_elsewhere(images, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    rows = [(f"./{path}", label) for path, label in _rows(["cat", "dog"])]
    file = _write(elsewhere / "m.csv", "path,label", rows)
    dataset = ManifestDataset(file, root=images)
    assert dataset.paths[0] == str(images / "img/cat0.jpg")
    assert dataset.item_keys[0] == "img/cat0.jpg"
    assert list(distributions_of(file, root=images)["m"].paths) == list(dataset.paths)
    rows = [(images / path, label) for path, label in _rows(["cat", "dog"])]
    file = _write(elsewhere / "absolute.csv", "path,label", rows)
    assert ManifestDataset(file, root=images).item_keys[0] == "img/cat0.jpg"
    with pytest.raises(DatasetError, match=r"row 1 of manifest .*absolute.csv has the path .*not below .*as root"):
        ManifestDataset(file)
    beside = f"{images}-of-others"
    file = _write(elsewhere / "beside.csv", "path,label", [(f"{beside}/cat0.jpg", "cat")])
    with pytest.raises(
        DatasetError, match=f"row 1 of manifest .*beside.csv has the path {beside}/cat0.jpg, .*not belo"
    ):
        ManifestDataset(file, root=images)


def test_quoted_values_and_byte_order_mark(images, trees):
    trees.write_jpeg(images / "img" / "a, b.jpg", 1)
    trees.write_jpeg(images / "img" / "ü.jpg", 1)
    text = 'path,label\n"img/a, b.jpg","big, red"\nimg/ü.jpg,"big, red"\n\nimg/cat0.jpg,cat\nimg/cat1.jpg,cat\n'
    (images / "m.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert ManifestDataset(images / "m.csv", "train").class_names == ["big, red"]


def test_quotes_after_a_space(images, trees):
    trees.write_jpeg(images / "img" / "a, b.jpg", 1)
    rows = ["path, label, split", '"img/a, b.jpg", "big, red", train', 'img/cat0.jpg, "big, red", train']
    (images / "m.csv").write_text("\n".join(rows))
    dataset = ManifestDataset(images / "m.csv", "train")
    assert (list(dataset.item_keys), dataset.class_names) == (["img/a, b.jpg", "img/cat0.jpg"], ["big, red"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv is empty; its first line names the columns: path,label,split,distribution"),
        ("path,label\n", "m.csv has no rows"),
        ("path,class\nimg/cat0.jpg,cat\n", r"m.csv has no column label \(it has path, class\)"),
        ("file,name\n", "no column path and no column label"),
        ("path;label\nimg/cat0.jpg;cat\n", r"it has path;label\); .* optional; commas separate them"),
        ("path,label\nimg/cat0.jpg,cat,x\n", "line 2 of manifest .* has 3 columns, the heading has 2"),
        ("path,label\nimg/cat0.jpg,cat\nimg/cat1.jpg,\n", "row 2 of manifest .* has no label; fill it in"),
        (
            "path,label,split\nimg/cat0.jpg,cat,val\n",
            "row 1 of manifest .* has the split 'val'; give one of train, test",
        ),
        ("path,label,split\nimg/cat0.jpg,cat,test\n", r"m \(train\): manifest .* has no row for it \(only test\)"),
        ("path,label\nimg/cat0.jpg,cat\nimg/cat1.jpg,cat\n", r"m \(train\): a class-disjoint split needs 2 classes"),
        ("path,label,split\n" + 2 * "img/cat0.jpg,cat,train\n", r"lists img/cat0.jpg 2 times, so it would find itself"),
        (
            "path,label,split\nimg/cat0.jpg,cat,train\nimg/cat1.jpg,cat,train\nimg/cat0.jpg,dog,query\n",
            r"lists img/cat0.jpg for train and for query \(1 such images\), so the test .* remove one of the rows",
        ),
        ("path,label,split\nimg/cat0.jpg,cat,train\n", r"class 'cat' has 1 image \(.*img/cat0.jpg\), 2 are needed"),
        (
            "path,label,split\nimg/no.jpg,cat,train\n",
            r"m \(train\): 1 of 1 files are missing, the first is .*img/no.jpg; the manifest's paths are relative to "
            r"\S+, with / between folders: give another folder as root \(--data.root\), or copy the images again, or",
        ),
        ("path,label,split\nimg\\cat0.jpg,cat,train\n", r"1 of 1 files are missing, .* with / between folders"),
        ('path,label\n"img/cat0.jpg', "needs two classes|no column|columns"),
    ],
)
def test_errors_name_file_and_row(images, text, message):
    (images / "m.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        ManifestDataset(images / "m.csv", "train")


def test_an_unknown_split_is_said_before_anything_is_read(images):
    with pytest.raises(ValueError, match="split is 'val'; give one of train, test, query, gallery"):
        ManifestDataset(images / "none.csv", "val")


def test_whether_rows_name_their_split(images):
    assert not read_manifest(_write(images / "m.csv", "path,label", _rows(["cat"]))).has_splits("m")
    rows = _rows(["cat"], range(3), "train")
    assert read_manifest(_write(images / "m.csv", "path,label,split", rows)).has_splits("m")


def test_all_images_of_a_distribution(images):
    parts = [("train", "a"), ("query", "a"), ("gallery", "a"), ("test", "b")]
    rows = [(f"img/cat{i}.jpg", "cat", *part) for i, part in zip((0, 1, 2, 0), parts, strict=True)]
    table = read_manifest(_write(images / "m.csv", "path,label,split,distribution", rows))
    assert list(list_manifest_distribution(table, "a").keys) == ["img/cat0.jpg", "img/cat1.jpg", "img/cat2.jpg"]
    assert list(list_manifest_distribution(table, "b").keys) == ["img/cat0.jpg"]
    twice = read_manifest(_write(images / "m.csv", "path,label", 2 * _rows(["cat"], [0])))
    with pytest.raises(DatasetError, match=r"m: manifest .*m\.csv lists img/cat0\.jpg 2 times"):
        list_manifest_distribution(twice, "m")


def test_queries_of_one_image_need_a_gallery_of_their_own(images):
    rows = [*_rows(["cat"], [0], "query"), *_rows(["cat"], [1], "gallery")]
    assert len(ManifestDataset(_write(images / "m.csv", "path,label,split", rows), "query")) == 1
    # The test is asked for instead, whose images are found among themselves.
    file = _write(images / "m.csv", "path,label,split", _rows(["cat"], [0], "test"))
    with pytest.raises(DatasetError, match=r"class 'cat' has 1 image .*, 2 are needed"):
        ManifestDataset(file, "query")


def test_query_without_gallery(images):
    rows = [*_rows(["cat"], range(2), "query"), *_rows(["dog"], range(2), "gallery")]
    with pytest.raises(DatasetError, match=r"query class 'cat' is in no gallery row of manifest .*m.csv"):
        ManifestDataset(_write(images / "m.csv", "path,label,split", rows), "test")


def test_no_file_and_wrong_encoding(images):
    with pytest.raises(DatasetError, match=r"manifest .*none.csv does not exist; give a CSV or Parquet file"):
        ManifestDataset(images / "none.csv")
    (images / "m.csv").write_bytes("path,label\nimg/ü.jpg,x\n".encode("latin-1"))
    with pytest.raises(
        DatasetError, match=r"^line 2 of .*m.csv cannot be read \(byte 0xfc is no UTF-8\); save it as CSV in UTF-8"
    ):
        ManifestDataset(images / "m.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_line_of_another_encoding(images, end):
    """Text is decoded in blocks of many lines: which of them is wrong has to be looked for."""
    lines = ["path,label", *(f"img/{number}.jpg,x" for number in range(2, 30_001))]
    lines[19_999], lines[20_001] = "img/k\xe4tzchen.jpg,x", "img/\xfc.jpg,x"
    (images / "m.csv").write_bytes(end.join(lines).encode("latin-1"))
    with pytest.raises(DatasetError, match=r"^line 20000 of .*m.csv cannot be read \(byte 0xe4 is no UTF-8\)"):
        read_manifest(images / "m.csv")


def test_the_line_of_a_value_without_end(images):
    (images / "m.csv").write_text("path,label\na.jpg,x\nb.jpg," + 200_000 * "x" + "\n")
    with pytest.raises(DatasetError, match=r"^line 3 of .*m.csv cannot be read \(field larger than field limit"):
        read_manifest(images / "m.csv")


def test_skip_drops_rows(images):
    (images / "img" / "dog1.jpg").write_bytes(b"")
    rows = [*_rows(["cat", "dog"], range(3), "train"), ("img/no.jpg", "cat", "train")]
    with pytest.warns(UserWarning, match="2 of 7"):
        dataset = ManifestDataset(_write(images / "m.csv", "path,label,split", rows), bad_images="skip")
    assert [item.key for item in dataset.skipped] == ["img/dog1.jpg", "img/no.jpg"]


def test_spaces_around_values_and_several_ways_to_write_a_path(images):
    rows = [*_rows(["cat"], range(2)), ("img/cat2.jpg", " cat "), *_rows(["dog"], range(2)), (" img/dog2.jpg ", "dog")]
    file = _write(images / "m.csv", "path,label", rows)
    assert ManifestDataset(file, "train").class_names == ["cat"]
    assert list(ManifestDataset(file, "test").item_keys)[-1] == "img/dog2.jpg"
    for same in ("img/./cat0.jpg", "img//cat0.jpg", "./img/cat0.jpg", "img/../img/cat0.jpg"):
        rows = [*_rows(["cat", "dog"], range(3), "train"), (same, "cat", "test"), *_rows(["emu"], range(3), "test")]
        with pytest.raises(DatasetError, match=r"lists img/cat0.jpg for train and for test"):
            ManifestDataset(_write(images / "m.csv", "path,label,split", rows), "train")


def test_missing_values_and_bytes_in_parquet(images):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet manifests need pyarrow")
    from pyarrow import parquet

    paths, labels = zip(*_rows(["cat", "dog"]), strict=True)
    encoded = [name.encode() for name in labels]
    parquet.write_table(pyarrow.table({"path": paths, "label": encoded}), images / "m.parquet")
    assert ManifestDataset(images / "m.parquet").class_names == ["cat"]
    parquet.write_table(pyarrow.table({"path": paths, "label": [1.0] * 5 + [float("nan")]}), images / "m.parquet")
    with pytest.raises(DatasetError, match=r"row 6 of manifest .*m.parquet has no label"):
        ManifestDataset(images / "m.parquet")
    latin = [name.encode("latin-1") for name in ("kätzchen",) * 6]
    parquet.write_table(pyarrow.table({"path": paths, "label": latin}), images / "m.parquet")
    with pytest.raises(DatasetError, match=r"m.parquet holds text that is no UTF-8 .*; write it in UTF-8"):
        ManifestDataset(images / "m.parquet")


def test_other_columns_of_parquet_are_passed_over(images):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet manifests need pyarrow")
    from pyarrow import parquet

    paths, labels = zip(*_rows(["cat", "dog"]), strict=True)
    parquet.write_table(pyarrow.table({"width": range(6), "path": paths, "label": labels}), images / "m.parquet")
    assert list(read_manifest(images / "m.parquet").keys) == list(paths)


def test_parquet(images):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet manifests need pyarrow")
    from pyarrow import parquet

    rows = [*_rows(["cat", "dog"], range(3), "train"), *_rows(["emu"], range(2), "test")]
    paths, labels, splits = zip(*rows, strict=True)
    columns = {"split": splits, "label": pyarrow.array(labels).dictionary_encode(), "extra": range(8), "path": paths}
    parquet.write_table(pyarrow.table(columns), images / "m.parquet")
    by_csv = _write(images / "m.csv", "path,label,split", rows)
    for split in ("train", "test"):
        ours, csv = ManifestDataset(images / "m.parquet", split), ManifestDataset(by_csv, split)
        assert list(ours.paths) == list(csv.paths)
        assert ours.targets.tolist() == csv.targets.tolist()
        assert ours.class_names == csv.class_names
    parquet.write_table(pyarrow.table({"path": ["a", None], "label": [1, 2]}), images / "m.parquet")
    with pytest.raises(DatasetError, match=r"row 2 of manifest .*m.parquet has no path"):
        ManifestDataset(images / "m.parquet")
    parquet.write_table(pyarrow.table({"file": ["a"]}), images / "m.parquet")
    with pytest.raises(DatasetError, match=r"no column path and no column label .it has file"):
        ManifestDataset(images / "m.parquet")
    parquet.write_table(pyarrow.table({"image": ["a"], "label": [1]}), images / "m.parquet")
    with pytest.raises(DatasetError, match=r"no column path \(it has image, label\); .* optional$"):
        ManifestDataset(images / "m.parquet")
    (images / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"m.parquet is no readable Parquet file"):
        ManifestDataset(images / "m.parquet")


def test_parquet_without_pyarrow(images, monkeypatch):
    (images / "m.parquet").write_bytes(b"PAR1")
    # What an import of a package that is not installed does.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"m.parquet is a Parquet file, which needs pyarrow: pip install pyarrow"):
        ManifestDataset(images / "m.parquet")
