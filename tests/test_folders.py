"Your own photos: layouts, lists, names and formats that are not what they look like."

import json
import os
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from PIL import Image

from see_nb.data.datasets import check_dataset, load_dataset
from see_nb.data.folders import OwnPhotos, list_folder
from see_nb.data.photos import find_files, read_photo
from see_nb.errors import SeeError
from see_nb.training.recipes import Recipe
from see_nb.training.splits import Splits, load_split


def photo(path: Path, colour=(200, 60, 20), size=(24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def own(tmp_path) -> Path:
    for name in ("cup", "fork", "knife", "plate", "spoon", "wok"):
        for k in range(2):
            photo(tmp_path / "own" / name / ("deep/er" if k else "") / f"{k}.jpeg")
    (tmp_path / "own" / "wok").rename(tmp_path / "wok")
    (tmp_path / "own" / "wok").symlink_to(tmp_path / "wok")
    photo(tmp_path / "own" / "cup" / ".thumbnail.jpg")
    photo(tmp_path / "own" / ".cache" / "x.jpg")
    return tmp_path / "own"


def test_folder_splits_by_class(own):
    train, test = (
        load_dataset("folder", own, check=True),
        load_dataset("folder", own, "test", check=True),
    )
    assert (len(train), len(test)) == (6, 6)
    assert sorted(train.classes + test.classes) == ["cup", "fork", "knife", "plate", "spoon", "wok"]
    again = load_dataset("folder", own, seed=0)
    assert again.classes == train.classes and again.images.files == train.images.files
    assert len({tuple(load_dataset("folder", own, seed=s).classes) for s in range(6)}) > 1
    assert len(load_dataset("folder", own, test_fraction=1 / 6).classes) == 5
    assert load_dataset("folder", own, "test", test_classes=["wok", "cup"]).classes == [
        "cup",
        "wok",
    ]
    assert "all 12 photos decode" in check_dataset("folder", own)


def test_labels_csv_gives_classes_and_splits(own):
    (own / "labels.csv").write_text(
        "path,label\ncup/0.jpeg,round\nplate/0.jpeg,round\nfork/0.jpeg,long\n"
    )
    assert len(load_dataset("folder", own)) + len(load_dataset("folder", own, "test")) == 3
    (own / "labels.csv").write_bytes(
        b'\xef\xbb\xbfpath,label,split\r\ncup/0.jpeg,"round, deep",train\r\nfork/0.jpeg,long,test\r\n'
        b"knife/0.jpeg,long,test\r\n"
    )  # as Excel writes it
    assert load_dataset("folder", own).classes == ["round, deep"] and load_dataset(
        "folder", own, "test"
    ).classes == ["long"]


CSVS = {
    "file,label\n": r"labels.csv, line 1: expected the header 'path,label', got 'file,label'",
    "path;label\ncup/0.jpeg;a\n": "line 1: expected the header 'path,label', got 'path;label'",
    "": "line 1: expected the header 'path,label', got 'the end of the file'",
    "path,label\ncup/0.jpeg\n": "line 2: expected 2 values",
    "path,label\ncup/0.jpeg,\n": "line 2: expected 2 values",  # an image with no class
    "path,label\ncup/0.jpeg,a\ncup/0.jpeg,b\n": "line 3: expected each photo once",
    "path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,b,val\n": "line 3: expected train or test as split",
    "path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,a,test\nwok/0.jpeg,b,test\n": "got 1 classes in both parts of .*, a.",
    "path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,b,train\n": "got no test. Add some",
    "path,label\ncup/0.jpeg,a\nfork/9.jpeg,b\n": r"1 of 2 listed images are missing \(fork/9.jpeg\)",
    "path,label\ncup/0.jpeg,a\nfork/0.jpeg,a\n": r"expected at least two classes, .* got \['a'\]",
}


@pytest.mark.parametrize("text", CSVS)
def test_a_wrong_labels_csv_is_told(own, text):
    (own / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=CSVS[text]):
        load_dataset("folder", own)


def test_a_wrong_folder_is_told(own, tmp_path):
    (own / "labels.csv").write_text("path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,b,test\n")
    with pytest.raises(ValueError, match="has a column split already"):
        load_dataset("folder", own, test_classes=["a"])
    (own / "labels.csv").unlink()
    for options, message in (
        ({"test_classes": ["pan"]}, r"got the unknown \['pan'\]"),
        (
            {"test_classes": ["cup", "fork", "knife", "plate", "spoon", "wok"]},
            "expected a list of some, not all",
        ),
        ({"test_fraction": 0.99}, "test_fraction: expected a share"),
        ({"fraction": 0.5}, "got fraction for 'folder'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset("folder", own, **options)
    photo(own / "stray.png")
    with pytest.raises(ValueError, match=r"got 1 images with no class \(stray.png\)"):
        load_dataset("folder", own)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="expected sub-folders with images, or a labels.csv, got neither"
    ):
        load_dataset("folder", tmp_path / "empty")
    photo(tmp_path / "empty" / "a" / "1.png")
    with pytest.raises(ValueError, match=r"expected at least two classes, .* got \['a'\]"):
        load_dataset("folder", tmp_path / "empty")
    photo(tmp_path / "splits" / "train" / "a" / "1.png")
    photo(tmp_path / "splits" / "test" / "b" / "1.png")
    with pytest.raises(ValueError, match="which look like splits"):
        load_dataset("folder", tmp_path / "splits")


def test_the_split_of_a_folder_is_fixed(own):
    "The same names are drawn on every machine and by every version."
    frame = list_folder(own).frame
    assert sorted(set(frame.label[frame.split == "test"])) == ["fork", "knife", "wok"]


# Nothing vanishes


def test_every_format_that_pillow_reads_is_a_photo(tmp_path):
    for name, ending in (("a", "gif"), ("b", "avif"), ("c", "jfif"), ("d", "webp"), ("e", "JP2")):
        for k in range(2):
            photo(tmp_path / name / f"{k}.png")
            kind = {"jfif": "JPEG", "JP2": "JPEG2000"}.get(ending, ending.upper())
            Image.open(tmp_path / name / f"{k}.png").save(tmp_path / name / f"{k}.{ending}", kind)
            (tmp_path / name / f"{k}.png").unlink()
    assert sorted(set(list_folder(tmp_path).frame.label)) == list("abcde")
    assert "all 10 photos decode" in check_dataset("folder", tmp_path)


def test_a_class_that_cannot_be_read_is_refused(own):
    (own / "bowl").mkdir()
    for k in range(3):
        (own / "bowl" / f"{k}.cr3").write_bytes(b"some bytes")
    with pytest.raises(SeeError, match=r"no photo of bowl can be read: 3 .cr3 \(bowl/0.cr3, .*cr3"):
        load_dataset("folder", own)
    with pytest.raises(SeeError, match="no photo of bowl can be read"):
        check_dataset("folder", own)
    with pytest.warns(UserWarning, match="no photo of bowl can be read"):
        load_dataset("folder", own, allow_incomplete=True)


def test_files_that_are_left_out_are_counted_and_named(own):
    (own / "cup" / "new.cr3").touch()
    (own / "cup" / "notes.txt").touch()
    (own / "docs").mkdir()
    (own / "docs" / "read me.txt").touch()
    (own / "cup" / "Thumbs.db").touch()
    (own / "__MACOSX" / "cup").mkdir(parents=True)
    photo(own / "__MACOSX" / "cup" / "0.jpeg")
    (own / "README").touch()
    (own / "loose.cr3").touch()
    (own / "tray" / "inner").mkdir(parents=True)
    expected = (
        r"left out are files .*: 2 .cr3, 2 .txt \(loose.cr3, cup/new.cr3, cup/notes.txt, ...\); "
        r"left out are hidden files and folders: 2 \(.cache, cup/.thumbnail.jpg\); "
        r"left out are thumbnails, wastebaskets and the like: 1 \(__MACOSX\); "
        r"left out are empty folders: 1 \(tray\)"
    )
    with pytest.warns(UserWarning, match=expected):
        train = load_dataset("folder", own)
    assert len(train) == 6
    assert "2 .cr3" in check_dataset("folder", own) and "(tray)" in check_dataset("folder", own)


def test_photos_that_a_list_passes_over_are_counted_and_named(own):
    listed = ["cup/0.jpeg", "wok/0.jpeg", str(own / "fork/0.jpeg"), "fork/deep/er/1.jpeg"]
    (own / "labels.csv").write_text(
        "path,label\n" + "".join(f"{p},{i // 2}\n" for i, p in enumerate(listed))
    )
    (own / "cup" / "new.cr3").touch()
    expected = (
        r"labels.csv does not list 9 of 13 photos: 8 .jpeg, 1 .cr3 \(cup/deep/er/1.jpeg, .*\)"
    )
    with pytest.warns(UserWarning, match=expected):
        load_dataset("folder", own)
    assert "9 of 13 photos" in check_dataset("folder", own)
    photos = sorted(p.relative_to(own).as_posix() for p in own.glob("[!.]*/**/*.jpeg"))
    photos += ["wok/0.jpeg", "wok/deep/er/1.jpeg"]
    rows = {p: f"{p},{p[0]}\n" for p in photos if "/." not in p}
    (own / "cup" / "new.cr3").unlink()
    (own / "labels.csv").write_text("path,label\n" + "".join(rows.values()))
    assert len(rows) == 12 and list_folder(own).note == ""


@pytest.mark.parametrize("link", ["round", "itself", "nowhere"])
def test_links_that_lead_back_end_and_are_named(own, link):
    target = {"round": own / "cup", "itself": own / "cup" / "itself", "nowhere": own / "gone"}[link]
    (own / "cup" / link).symlink_to(target)
    with pytest.warns(
        UserWarning, match=rf"links that lead nowhere, back, or .*: 1 \(cup/{link}\)"
    ):
        train = load_dataset("folder", own)
    assert len(train) + len(list_folder(own).part("test")) == 12


def test_a_listed_link_to_itself_is_a_missing_photo(own):
    (own / "cup" / "0.jpeg").unlink()
    (own / "cup" / "0.jpeg").symlink_to(own / "cup" / "0.jpeg")
    (own / "labels.csv").write_text("path,label\ncup/0.jpeg,a\nwok/0.jpeg,b\n")
    with pytest.raises(SeeError, match=r"1 of 2 listed images are missing \(cup/0.jpeg\)"):
        load_dataset("folder", own)


# Splits and levels that look like classes


@pytest.mark.parametrize(
    "names",
    [
        *("train valid test", "Train test", "TRAIN VAL", "training testing", "train"),
        *("train test more", "train_set test_set", "1_train 2_test", "train unlabeled"),
        *("train2017 val2017 more", "trainset testset"),
    ],
)
def test_split_folders_are_refused_with_the_way_out(tmp_path, names):
    for name in names.split():
        for label in "ab":
            photo(tmp_path / name / label / "1.png")
    with pytest.raises(SeeError, match="which look like splits. Put the classes side by side"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["car", "plane", "train"],
        ["freight train", "metro train", "steam train"],
        ["005.Train_bird", "012.Test_bird", "bee", "cow", "fly"],
    ],
)
def test_classes_may_have_a_word_of_splits_in_their_names(tmp_path, names):
    for name in names:
        for k in range(2):
            photo(tmp_path / name / f"{k}.png")
    assert sorted(set(list_folder(tmp_path).frame.label)) == names


def test_classes_one_level_below_are_pointed_at(tmp_path):
    for name in "ab":
        photo(tmp_path / "images" / name / "1.png")
    with pytest.raises(SeeError, match=r"got \['images'\]. Add another class, or give .*/images."):
        load_dataset("folder", tmp_path)


# Names


def test_blanks_and_accents_make_no_second_class(own):
    name = unicodedata.normalize("NFD", "café")
    lines = ["cup/0.jpeg,c0", "fork/0.jpeg,c0 ", f"knife/0.jpeg,{name}", "plate/0.jpeg,café"]
    (own / "labels.csv").write_text("path, label\n" + "\n".join(lines) + "\n")
    assert list_folder(own).frame.label.tolist() == ["c0", "c0", "café", "café"]
    (own / "labels.csv").unlink()
    photo(own / "cup " / "1.png")
    photo(own / "Fork" / "1.png")
    listing = list_folder(own)
    assert sorted(set(listing.frame.label)) == [
        "Fork",
        *sorted(["cup", "fork", "knife", "plate", "spoon", "wok"]),
    ]
    assert "'cup' and 'cup '" in listing.note and "'Fork' and 'fork'" in listing.note


@pytest.mark.parametrize(
    "path",
    [
        *("./cup/0.jpeg", "cup//0.jpeg", "cup\\0.jpeg", "fork/../cup/0.jpeg"),
        *("{own}/cup/0.jpeg", "link/0.jpeg", "fork/link.jpeg"),
    ],
)
def test_a_path_in_another_form_is_the_same_photo(own, path):
    (own / "link").symlink_to("cup")
    (own / "fork" / "link.jpeg").symlink_to(own / "cup" / "0.jpeg")
    rows = f"cup/0.jpeg,a\n{path.format(own=own)},b\n"
    (own / "labels.csv").write_text("path,label\n" + rows)
    with pytest.raises(SeeError, match="line 3: expected each photo once"):
        load_dataset("folder", own)


def test_another_alphabet_is_refused_instead_of_merging_classes(own):
    text = "path,label\ncup/0.jpeg,café\nfork/0.jpeg,cafè\n"
    for encoding in ("latin-1", "utf-16"):
        (own / "labels.csv").write_bytes(text.encode(encoding))
        with pytest.raises(SeeError, match="expected text in UTF-8"):
            load_dataset("folder", own)
    (own / "labels.csv").write_text(text)
    assert len(set(list_folder(own).frame.label)) == 2


@pytest.mark.parametrize("name", ["Labels.csv", "LABELS.CSV"])
def test_a_list_under_another_name_is_not_passed_over(own, name):
    (own / name).write_text("path,label\n")
    with pytest.raises(SeeError, match=f"expected a file of this name or none, got {name}"):
        load_dataset("folder", own)


def test_a_list_that_is_no_file_is_told(own):
    (own / "labels.csv").symlink_to(own / "gone.csv")
    with pytest.raises(SeeError, match="got a link to nowhere"):
        load_dataset("folder", own)


# The split


def test_a_training_keeps_its_classes_when_one_is_added(own):
    trained = load_dataset("folder", own).classes
    for name in ("bowl", "zester"):
        for k in range(2):
            photo(own / name / f"{k}.png")
    assert set(load_dataset("folder", own, "test").classes) & set(trained)  # drawn anew
    test = load_dataset("folder", own, "test", train_classes=trained)
    assert not set(test.classes) & set(trained) and {"bowl", "zester"} <= set(test.classes)
    assert load_dataset("folder", own, train_classes=trained).classes == trained


OWN = Recipe(dataset="folder", image_size=16)


def test_a_trained_class_under_another_name_is_not_tested(own):
    facts = load_dataset("folder", own).facts()
    assert not set(load_split(OWN, own, trained=facts).classes) & set(facts["classes"])
    (own / facts["classes"][0]).rename(own / "zz")
    with pytest.raises(SeeError, match=rf"expected all .*, but not \['{facts['classes'][0]}'\]"):
        load_split(OWN, own, trained=facts)


def test_another_folder_is_tested_whole(own):
    facts = {"name": "folder", "classes": ["ant", "bee"]}
    with pytest.warns(
        UserWarning, match="none of the classes that trained is there by name, so all test"
    ):
        test = load_split(OWN, own, trained=facts)
    assert test.classes == ["cup", "fork", "knife", "plate", "spoon", "wok"] and len(test) == 12


def test_too_few_classes_for_a_validation_name_its_option(own):
    with pytest.warns(UserWarning, match="only 3 classes"):
        with pytest.raises(
            SeeError, match=r"^validation: expected 0 \(--validation 0\) .* got 0.1"
        ):
            Splits.load(OWN, own)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test_fraction": float("nan")}, "test_fraction: expected a share .*, got nan"),
        ({"test_fraction": float("inf")}, "test_fraction: expected a share .*, got inf"),
        ({"test_fraction": -1}, "test_fraction: expected a share"),
        ({"seed": -1}, "seed: expected a number from 0"),
        ({"test_classes": "wok"}, "test_classes: expected a list of some.*got 'wok'"),
        ({"test_classes": []}, "test_classes: expected a list of some.*got 0 of them"),
        ({"train_classes": "wok"}, "train_classes: expected a list of some.*got 'wok'"),
        ({"train_classes": []}, "train_classes: expected a list of some.*got 0 of them"),
        ({"train_classes": ["pan"]}, "no image of the train split"),
        ({"train_classes": ["cup"], "test_classes": ["wok"]}, "got both"),
    ],
)
def test_a_wrong_choice_of_classes_is_told(own, options, message):
    with pytest.raises(SeeError, match=message):
        load_dataset("folder", own, **options)


def test_one_image_per_class_is_told(own, tmp_path):
    for name in "abcd":
        photo(tmp_path / "lone" / name / "1.png")
    with pytest.raises(
        SeeError, match="2 of the 2 test classes have one image.*Recall@K would be 0"
    ):
        load_dataset("folder", tmp_path / "lone", "test")
    with pytest.raises(SeeError, match="2 of the 2 test classes have one image"):
        check_dataset("folder", tmp_path / "lone")
    (own / "wok" / "0.jpeg").unlink()
    with pytest.warns(UserWarning, match="1 of the 2 test classes have one image"):
        load_dataset("folder", own, "test", test_classes=["wok", "cup"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "folder in .*: left out are hidden files")
        load_dataset("folder", own, "train", test_classes=["wok", "cup"])


def test_a_huge_field_is_told(own):
    (own / "labels.csv").write_text("path,label\ncup/0.jpeg," + "a" * 10**6 + "\n")
    with pytest.raises(
        SeeError,
        match="line 2: expected a path of at most 1,000 and a class of at most 250 letters",
    ) as error:
        load_dataset("folder", own)
    assert len(str(error.value)) < 1000


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_without_permission_is_told(own):
    (own / "cup").chmod(0)
    with pytest.raises(SeeError, match="cannot be looked into"):
        load_dataset("folder", own)


def test_each_photo_is_listed_once_whatever_links_lead_to_it(own, tmp_path):
    (own / "twin").symlink_to(own / "cup")  # a class that could train while `cup` tests
    (own / "fork" / "copy.jpeg").symlink_to(own / "knife" / "0.jpeg")
    (own / "above").symlink_to(tmp_path)
    (own / "knife" / "elsewhere.jpeg").symlink_to(tmp_path / "wok" / "0.jpeg")
    found = find_files(own)
    assert len(found.photos) == 12 and found.photos[-1] == "wok/deep/er/1.jpeg"
    links = ["above", "fork/copy.jpeg", "twin", "wok/0.jpeg"]
    assert sorted(next(v for k, v in found.left_out.items() if k.startswith("links"))) in (
        links,
        [*links[:2], "knife/elsewhere.jpeg", "twin"],
    )
    assert OwnPhotos.of(own).frame.label.nunique() == 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_named_and_never_waited_for(own):
    os.mkfifo(own / "cup" / "pipe.jpeg")
    with pytest.warns(UserWarning, match=r"left out are pipes.*: 1 \(cup/pipe.jpeg\)"):
        load_dataset("folder", own, check=True)
    with pytest.raises(SeeError, match="pipe.jpeg: cannot be read, for it is no file"):
        read_photo(own / "cup" / "pipe.jpeg")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="this system takes UTF-8 only")
def test_names_that_are_no_text_work(own):
    odd = os.fsencode(own) + b"/caf\xe9"
    os.mkdir(odd)
    for name in (b"/\xff.jpeg", b"/2.jpeg"):
        photo(Path(os.fsdecode(odd + name)))
    frame = OwnPhotos.of(own).frame
    assert frame.label.nunique() == 7 and "caf\\xe9" in set(frame.label)
    assert "all 14 photos decode" in check_dataset("folder", own)
    train, test = (load_dataset("folder", own, split) for split in ("train", "test"))
    assert len(train) + len(test) == 14 and len(train.images.hashes[0]) == 32
    json.dumps(train.facts() | test.facts()).encode()


def test_accents_are_found_in_both_of_their_forms(own):
    photo(own / unicodedata.normalize("NFD", "café") / "é.jpeg".encode().decode())
    (own / "labels.csv").write_text("path,label\ncafé/é.jpeg,a\ncup/0.jpeg,b\n", "utf-8")
    frame = OwnPhotos.of(own).frame
    assert frame.label.tolist() == ["a", "b", *[""] * 11]
    assert len(list_folder(own).photos()) == 2
