"Your own photos: layouts, lists, names and formats that are not what they look like."

import json
import os
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from conftest import photo
from hypothesis import given, settings
from hypothesis import strategies as st

from see_nb.data.datasets import check_dataset, load_dataset
from see_nb.data.folders import OwnPhotos, list_folder
from see_nb.data.photos import LINKS, check_photos, find_files, read_photo
from see_nb.errors import SeeError
from see_nb.training.recipes import Recipe
from see_nb.training.splits import Splits, load_split

CLASSES = ["cup", "fork", "knife", "plate", "spoon", "wok"]


@pytest.fixture
def own(tmp_path) -> Path:
    "Six classes of two photos; one class is a link, some names are hidden."
    for name in CLASSES:
        for k in range(2):
            photo(tmp_path / "own" / name / ("deep/er" if k else "") / f"{k}.jpeg")
    (tmp_path / "own" / "wok").rename(tmp_path / "wok")
    (tmp_path / "own" / "wok").symlink_to(tmp_path / "wok")
    photo(tmp_path / "own" / "cup" / ".thumbnail.jpg")
    photo(tmp_path / "own" / ".cache" / "x.jpg")
    return tmp_path / "own"


def classes_of(folder: Path, split: str) -> list[str]:
    frame = list_folder(folder).frame
    return sorted(set(frame.label[frame.split == split]))


def test_a_folder_is_split_by_class_the_same_way_everywhere(own):
    assert classes_of(own, "test") == ["fork", "knife", "wok"]  # drawn so by every version
    train, test = (load_dataset("folder", own, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 6) and sorted(train.classes + test.classes) == CLASSES
    assert len(load_dataset("folder", own, test_fraction=1 / 6).classes) == 5
    two = load_dataset("folder", own, "test", train_classes=CLASSES[2:])
    assert two.classes == ["cup", "fork"]
    assert "all 12 photos decode" in check_dataset("folder", own)


def test_labels_csv_gives_classes_and_splits(own):
    table = own / "labels.csv"
    table.write_text("path,label\ncup/0.jpeg,round\nplate/0.jpeg,round\nfork/0.jpeg,long\n")
    assert len(load_dataset("folder", own)) + len(load_dataset("folder", own, "test")) == 3
    table.write_bytes(  # as a spreadsheet writes it, with a column of its own
        b"\xef\xbb\xbfpath,price,label,split\r\ncup/0.jpeg,5,'round, deep',train\r\n"
        b"fork/0.jpeg,6,long,test\r\nknife/0.jpeg,7,long,TEST\r\n".replace(b"'", b'"')
    )
    assert load_dataset("folder", own).classes == ["round, deep"]
    assert load_dataset("folder", own, "test").classes == ["long"]


LISTS = {
    "path;label\ncup/0.jpeg;a\n": "line 1: expected the header 'path,label' .* got 'path;label'",
    "path,path,label\na,a,b\n": "line 1: expected the header .* got 'path,path,label'",
    "": "line 1: expected the header 'path,label' and rows below it, got '' and 0 rows",
    "path,label\n": "and rows below it, got 'path,label' and 0 rows",
    "path,label\ncup/0.jpeg,\n": "line 2: expected 2 values",  # an image with no class
    "path,label\ncup/0.jpeg,a,b\n": "line 2: expected 2 values",
    "path,label\ncup/0.jpeg," + "a" * 10**5 + "\n": "line 2: expected 2 values .* 1 to 1,000",
    "path,label\ncup/0.jpeg," + "a" * 10**6 + "\n": "field larger",
    "path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,b,val\n": "line 3: expected train or test",
    "path,label,split\ncup/0.jpeg,a,train\nfork/0.jpeg,a,test\n": "expected each class in one part once, got a more often",
    "path,label\ncup/0.jpeg,a\nfork/9.jpeg,b\n": r"1 of 2 listed images are missing \(fork/9.jpeg",
    "path,label\ncup/0.jpeg,a\nfork/0.jpeg,a\n": "test_fraction: expected a share that leaves a class on each side of a in",
    "path,label\ncup/0.jpeg,café\n".encode(
        "utf-16"
    ): "codec can.t decode byte 0xff .* Save it as text in UTF-8",
}


@pytest.mark.parametrize("text", LISTS)
def test_a_wrong_list_is_told(own, text):
    (own / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SeeError, match=LISTS[text]) as error:
        load_dataset("folder", own)
    assert len(str(error.value)) < 1000


LAYOUTS = {  # photos, and what is said of them
    "a/1.png b/2.png stray.png": r"got 1 images with no class \(stray.png\)",
    "train/a/1.png train/b/1.png": r"got \['train'\], which look like splits",
    "images/a/1.png images/b/1.png": "a class on each side of images in .* Add classes, or give the folder",
    "": "expected photos in .* or below, got none. Give",
    "a/1.png b/2.cr3": "got no photo of b that can be read here. Save the photos as JPEG",
}
SPLITS = ["Train valid test", "TRAIN VAL", "train test more", "train_set 2_test", "train unlabeled"]
for names in [*SPLITS, "train2017 val2017 more"]:
    paths = " ".join(f"{name}/{label}/1.png" for name in names.split() for label in "ab")
    LAYOUTS[paths] = "which look like splits. Put the classes side by side"


@pytest.mark.parametrize("paths", LAYOUTS)
def test_a_folder_that_is_not_one_sub_folder_per_class_is_refused(tmp_path, paths):
    for path in paths.split():
        photo(tmp_path / path, kind="PNG")
    with pytest.raises(SeeError, match=LAYOUTS[paths]):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    "names",
    ["car,plane,train", "freight train,metro train,steam train", "5.Train_bird,bee,cow,fly"],
)
def test_classes_may_have_a_word_of_splits_in_their_names(tmp_path, names):
    for name in names.split(","):
        photo(tmp_path / name / "1.png")
        photo(tmp_path / name / "2.png")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "read me.txt").touch()  # no class
    assert sorted(set(list_folder(tmp_path).frame.label)) == names.split(",")


# Nothing vanishes


def test_every_format_that_pillow_reads_is_a_photo(tmp_path):
    kinds = {"gif": "GIF", "avif": "AVIF", "jfif": "JPEG", "webp": "WEBP", "JP2": "JPEG2000"}
    for ending, kind in kinds.items():
        photo(tmp_path / ending / f"1.{ending}", kind=kind)
    assert [path.split("/")[0] for path in find_files(tmp_path).photos] == sorted(kinds)


def test_what_is_left_out_is_counted_by_reason_in_one_sentence(own):
    for path in ("cup/new.cr3", "cup/notes.txt", "cup/Thumbs.db", "loose.cr3"):
        (own / path).touch()
    photo(own / "__MACOSX" / "cup" / "0.jpeg")
    photo(own / "cup" / "@eaDir" / "0.jpeg" / "THUMB.jpg")
    expected = (
        r"left out are files .*: 3 \(loose.cr3, cup/new.cr3, cup/notes.txt\); "
        r"left out are hidden files .* and the like: 4 \(.cache, __MACOSX, cup/.thumbnail.jpg, ...\)"
    )
    with pytest.warns(UserWarning, match=expected):
        assert len(load_dataset("folder", own)) == 6
    sentence = OwnPhotos.of(own).left_out
    assert sentence in check_dataset("folder", own) and sentence in list_folder(own).note


def test_photos_that_a_list_passes_over_are_counted_and_named(own):
    listed = ["cup/0.jpeg", "wok/0.jpeg", str(own / "fork/0.jpeg"), "fork/deep/er/1.jpeg"]
    rows = "".join(f"{path},{i // 2}\n" for i, path in enumerate(listed))
    (own / "labels.csv").write_text("path,label\n" + rows)
    (own / "cup" / "new.cr3").touch()
    sentence = "labels.csv does not list 8 of 12 photos (cup/deep/er/1.jpeg, "
    assert sentence in list_folder(own).note and sentence in check_dataset("folder", own)
    frame = OwnPhotos.of(own).frame
    assert len(frame) == 12 and sorted(frame.label) == [*[""] * 8, *"0011"]


# Links, pipes, names


def test_each_photo_is_listed_once_whatever_links_lead_to_it(own, tmp_path):
    (own / "a twin").symlink_to(own / "cup")  # a class that could train while `cup` tests
    (own / "fork" / "copy.jpeg").symlink_to(own / "knife" / "0.jpeg")
    (own / "above").symlink_to(tmp_path)
    (own / "spoon" / "round").symlink_to("/")
    (own / "cup" / "itself").symlink_to(own / "cup" / "itself")
    (own / "cup" / "nowhere.jpeg").symlink_to(own / "gone")
    found = find_files(own)
    assert len(found.photos) == 12 and found.photos[-1] == "wok/deep/er/1.jpeg"
    links = {"a twin", "above", "fork/copy.jpeg", "spoon/round", "cup/itself", "cup/nowhere.jpeg"}
    assert set(found.left_out[LINKS]) == links


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_named_and_never_waited_for(own):
    os.mkfifo(own / "cup" / "pipe.jpeg")
    with pytest.warns(UserWarning, match=r"left out are pipes.*: 1 \(cup/pipe.jpeg\)"):
        check_photos(load_dataset("folder", own).images)
    with pytest.raises(SeeError, match="pipe.jpeg: cannot be read, for it is no file"):
        read_photo(own / "cup" / "pipe.jpeg")


FORMS = ["./cup/0.jpeg", "cup//0.jpeg", "cup\\0.jpeg", "fork/../cup/0.jpeg", "{own}/cup/0.jpeg"]


@pytest.mark.parametrize("path", [*FORMS, "link/0.jpeg", "fork/link.jpeg"])
def test_a_path_in_another_form_is_the_same_photo(own, path):
    (own / "link").symlink_to("cup")
    (own / "fork" / "link.jpeg").symlink_to(own / "cup" / "0.jpeg")
    (own / "labels.csv").write_text(f"path,label\ncup/0.jpeg,a\n{path.format(own=own)},b\n")
    with pytest.raises(SeeError, match="line 3: expected each photo once"):
        load_dataset("folder", own)


def test_a_list_under_another_name_or_behind_a_dead_link_is_not_passed_over(own):
    (own / "Labels.csv").write_text("path,label\n")
    assert "1 (Labels.csv)" in OwnPhotos.of(own).left_out
    (own / "labels.csv").symlink_to(own / "gone.csv")
    with pytest.raises(SeeError, match="labels.csv: cannot be read"):
        load_dataset("folder", own)


def test_blanks_and_accents_make_no_second_class(own):
    name = unicodedata.normalize("NFD", "café")
    lines = ["cup/0.jpeg,c0", "fork/0.jpeg,c0 ", f"knife/0.jpeg,{name}", "plate/0.jpeg,café"]
    (own / "labels.csv").write_text("path, label\n" + "\n".join(lines) + "\n", "utf-8")
    assert list_folder(own).frame.label.tolist() == ["c0", "c0", "café", "café"]
    photo(own / name / "é.jpeg")  # a list finds a file whichever form its name has
    (own / "labels.csv").write_text("path,label\ncafé/é.jpeg,a\ncup/0.jpeg,b\n", "utf-8")
    assert OwnPhotos.of(own).frame.label.tolist() == ["a", "b", *[""] * 11]
    (own / "labels.csv").unlink()
    photo(own / "cup " / "1.png")
    assert set(list_folder(own).frame.label) == {*CLASSES, "café"}


NAMES = st.binary(min_size=1, max_size=12).map(lambda name: name.translate(None, b"/\0."))


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="this system takes UTF-8 only")
@settings(max_examples=25)
@given(names=st.lists(NAMES.filter(bool), min_size=2, max_size=5, unique=True))
def test_any_name_of_a_file_and_of_a_class_works(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    for name in names:
        os.mkdir(os.fsencode(root) + b"/" + name)
        for end in (b"1.png", name + b".png"):
            photo(Path(os.fsdecode(os.fsencode(root) + b"/" + name + b"/" + end)))
    frame = OwnPhotos.of(root).frame
    used = {path.split("/")[0] for path in frame.path}
    left = sum(OwnPhotos.of(root).found.left_out.values(), [])
    assert len(used) + len({path.split("/")[0] for path in left} - used) == len(names)
    frame.label.str.encode("utf-8")  # any program can write it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parts = [load_dataset("folder", root, split) for split in ("train", "test")]
        except SeeError:  # two names that are one class, or look like a split
            return
    assert sum(map(len, parts)) == len(frame)
    assert set(frame.label) == {*parts[0].classes, *parts[1].classes}
    json.dumps([part.facts() for part in parts]).encode()


# The split of a trained model

OWN = Recipe(dataset="folder", image_size=16)


def test_a_training_keeps_its_classes_when_one_is_added(own):
    trained = load_dataset("folder", own).classes
    for name in ("bowl", "zester"):
        photo(own / name / "0.png")
        photo(own / name / "1.png")
    assert set(load_dataset("folder", own, "test").classes) & set(trained)  # drawn anew
    test = load_dataset("folder", own, "test", train_classes=trained)
    assert not set(test.classes) & set(trained) and {"bowl", "zester"} <= set(test.classes)
    assert load_dataset("folder", own, train_classes=trained).classes == trained


def test_a_trained_class_under_another_name_is_not_tested_and_another_folder_whole(own):
    facts = load_dataset("folder", own).facts()
    assert not set(load_split(OWN, own, trained=facts).classes) & set(facts["classes"])
    (own / facts["classes"][0]).rename(own / "zz")
    with pytest.raises(SeeError, match=rf"expected all .*, but not \['{facts['classes'][0]}'\]"):
        load_split(OWN, own, trained=facts)
    with pytest.warns(UserWarning, match="none of the classes that trained is there by name"):
        test = load_split(OWN, own, trained={"name": "folder", "classes": ["ant", "bee"]})
    assert len(test.classes) == 6 and len(test) == 12


def test_too_few_classes_are_told(own):
    with pytest.warns(UserWarning, match="only 3 classes"):
        with pytest.raises(SeeError, match=r"^validation: expected 0 \(--validation 0\) .* 0.1"):
            Splits.load(OWN, own)
    with pytest.raises(SeeError, match="test_fraction: expected a share that leaves a class"):
        load_dataset("folder", own, test_fraction=0.99)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_without_permission_is_told(own):
    (own / "cup").chmod(0)
    try:
        with pytest.raises(SeeError, match="cannot be looked into"):
            load_dataset("folder", own)
    finally:
        (own / "cup").chmod(0o755)
